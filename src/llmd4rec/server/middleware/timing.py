"""Counts, times and logs every request."""

from __future__ import annotations

import time

from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.middleware.types import REQUEST_ID, App, Disconnected, Message, Receive, Scope, Send, route

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Timing:
    """Sends `Server-Timing`, and when a request has been answered counts it in the metrics and writes a line."""

    def __init__(self, app: App, metrics: Metrics, log: Log, access_log: bool) -> None:
        self._app, self._metrics, self._log, self._access_log = app, metrics, log, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        started = time.perf_counter()
        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                milliseconds = (time.perf_counter() - started) * 1000
                message["headers"] = [*message["headers"], (b"server-timing", b"total;dur=%.3f" % milliseconds)]
            await send(message)

        try:
            await self._app(scope, receive, reply)
        except Disconnected:
            status = 499
        finally:
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "other"
            name = route(scope)
            self._metrics.answered(method, name, status, seconds)
            if self._access_log:
                self._log.write(
                    "request",
                    method=method,
                    route=name,
                    status=status,
                    ms=round(seconds * 1000, 3),
                    request_id=scope[REQUEST_ID],
                )
