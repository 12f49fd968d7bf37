"""Answers POST requests to fixed paths without the framework, whose layers cost as much as the rest.

What it leaves out is routing, dependency injection and a response object; the body is read by the same type, and the
same function answers. `docs/research/decisions.md` has what it saves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from llmd4rec.server.middleware.types import BODY, ROUTE, App, Receive, Scope, Send


class Direct:
    """Calls by path the function that answers a body; everything else goes to the application."""

    def __init__(self, app: App, answers: Mapping[str, Callable[[bytes], Awaitable[bytes]]]) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        answer = self._answers.get(scope["path"]) if scope["method"] == "POST" else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        scope[ROUTE] = scope["path"]
        body = await answer(scope[BODY])
        lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        await send({"type": "http.response.body", "body": body})
