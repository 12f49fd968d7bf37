"""Refuses requests while the service is full, at a fraction of what an answer costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmd4rec.server.errors import overloaded
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.middleware.types import App, Receive, Scope, Send

#: Seconds after which a request is refused. Clients that ask again at once, without a look at `Retry-After`, would
#: otherwise take the processor time of the answers.
DELAY = 0.25


class Overload:
    """The outermost middleware: such a request has no id and no line in the log; the metrics count it.

    Args:
        app: the application.
        full: whether no further request can be answered now.
        draining: whether the service is about to stop.
        most: how many can be answered at once.
        metrics: where refused requests are counted.
    """

    def __init__(
        self, app: App, full: Callable[[], bool], draining: Callable[[], bool], most: int, metrics: Metrics
    ) -> None:
        self._app, self._full, self._draining = app, full, draining
        error = overloaded(f"{most} requests are being answered already")
        body = error.body("none")
        self._start, self._body = error.headers(len(body)), body
        self._refused = metrics.rejected.labels(error.code)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")  # as ASGI says it where there is no lifespan
        if not self._full() or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        self._refused.inc()
        await asyncio.sleep(DELAY)
        lines = [*self._start, (b"connection", b"close")] if self._draining() else self._start
        await send({"type": "http.response.start", "status": 503, "headers": lines})
        await send({"type": "http.response.body", "body": self._body})
