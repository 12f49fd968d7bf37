"""The headers that every answer has: for browsers, for caches, and for connections that are about to end."""

from __future__ import annotations

from collections.abc import Callable

from llmd4rec.server.middleware.types import App, Message, Receive, Scope, Send

_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NO_STORE = (b"cache-control", b"no-store")
_CLOSE = (b"connection", b"close")


class AnswerHeaders:
    """Adds headers to answers. `draining` tells whether the service is about to stop: then clients are told to go."""

    def __init__(self, app: App, draining: Callable[[], bool]) -> None:
        self._app, self._draining = app, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request. HEAD is GET without the body, which the HTTP server leaves out."""
        if scope["method"] == "HEAD":
            inner: Scope = {**scope, "method": "GET"}
        else:
            inner = scope

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                lines = [*message["headers"], *_SECURITY]
                if not any(name == b"cache-control" for name, _ in lines):
                    lines.append(_NO_STORE)
                if self._draining():
                    lines.append(_CLOSE)
                message["headers"] = lines
            await send(message)

        try:
            await self._app(inner, receive, reply)
        finally:
            if inner is not scope and "route" in inner:  # for those outside
                scope["route"] = inner["route"]
