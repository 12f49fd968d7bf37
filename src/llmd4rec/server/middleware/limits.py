"""Limits: how many requests are answered at once, how long each may take, and how large its body may be."""

from __future__ import annotations

import asyncio

from llmd4rec.server.errors import ApiError, overloaded
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.middleware.bodies import Bodies
from llmd4rec.server.middleware.types import BODY, CHANGES, SENDING, App, Message, Receive, Scope, Send, header
from llmd4rec.server.settings import ServiceSettings


class Limits:
    """Reads a request's body, and lets it pass if the service is not full.

    A request counts only once its body is there, so that slow senders take no place of those who have sent theirs.
    """

    def __init__(self, app: App, settings: ServiceSettings, metrics: Metrics) -> None:
        self._app, self._settings = app, settings
        self._bodies = Bodies(settings.max_body)
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request.

        Raises:
            ApiError: the service is full (503), the body is too large (413), not declared as JSON (415) or did not
                arrive in time (408), or there was no answer in time (504).
        """
        settings = self._settings
        counted = scope["path"].startswith("/v1/")
        limit = settings.timeout
        try:
            async with asyncio.timeout(limit) as clock:
                if scope["method"] in SENDING:
                    scope[BODY] = body = await self._bodies.read(scope, receive)
                    if scope["path"].startswith(CHANGES):
                        limit = settings.change_timeout
                        clock.reschedule(asyncio.get_running_loop().time() + limit)
                    if body:
                        _require_json(scope)
                    receive = _replay(body, receive)
                if not counted:
                    await self._app(scope, receive, send)
                    return
                if self.full():  # it was not yet when the head came
                    raise overloaded(f"{settings.concurrency} requests are being answered already")
                self._in_flight += 1
                try:
                    await self._app(scope, receive, send)
                finally:
                    self._in_flight -= 1
        except TimeoutError:
            if scope["method"] in SENDING and BODY not in scope:
                raise ApiError(408, "body_timeout", f"the body did not arrive within {limit:g} s") from None
            raise ApiError(504, "timeout", f"no answer within {limit:g} s", retry_after=1) from None

    def full(self) -> bool:
        """Whether as many requests are being answered as may be."""
        return self._in_flight >= self._settings.concurrency


def _require_json(scope: Scope) -> None:
    # A page of another site can send any other content type without a preflight request.
    if header(scope, b"content-type").split(b";")[0].strip().lower() != b"application/json":
        raise ApiError(
            415,
            "unsupported_media_type",
            "the body is not declared as JSON",
            remedy="Send Content-Type: application/json.",
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body once, then the server's messages (that the client has disconnected)."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_body
