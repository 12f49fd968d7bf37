"""Turns exceptions into answers of the one format that errors have."""

from __future__ import annotations

from collections.abc import Callable

from llmd4rec.server.errors import ApiError
from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.middleware.types import REQUEST_ID, ROUTE, App, Disconnected, Message, Receive, Scope, Send, route


class Failures:
    """Answers in place of a request that failed, unless its answer has begun.

    Args:
        app: the application.
        metrics, log: where unexpected errors are counted and logged.
        to_api_error: the error to return for an exception; None for an unexpected one.
    """

    def __init__(
        self, app: App, metrics: Metrics, log: Log, to_api_error: Callable[[Exception], ApiError | None]
    ) -> None:
        self._app, self._metrics, self._log, self._to_api_error = app, metrics, log, to_api_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens."""
        begun = False

        async def reply(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, reply)
        except Disconnected:
            raise
        except Exception as error:
            known = self._to_api_error(error)
            if known is None:
                self._metrics.errors.inc()
                self._log.exception("error", error, request_id=scope[REQUEST_ID], route=route(scope))
                known = ApiError(500, "internal", "the service failed; its log has the location")
            elif ROUTE not in scope and "route" not in scope:
                self._metrics.rejected.labels(known.code).inc()
            if not begun:
                await _refuse(send, known, scope[REQUEST_ID])


async def _refuse(send: Send, error: ApiError, request_id: str) -> None:
    body = error.body(request_id)
    lines = error.headers(len(body))
    if error.closes:
        lines.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
