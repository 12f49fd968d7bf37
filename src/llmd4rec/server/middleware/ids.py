"""An id for every request: the client's own, if it sends one that is short and plain, or a new one."""

from __future__ import annotations

import itertools
import re
import secrets

from llmd4rec.server.middleware.types import REQUEST_ID, App, Message, Receive, Scope, Send, header

_PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Puts an id into the scope, from where logs and errors have it, and into the answer as `X-Request-ID`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._new = map("{}-{:x}".format, itertools.repeat(secrets.token_hex(4)), itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        sent = header(scope, b"x-request-id")
        name = sent.decode() if _PLAIN.fullmatch(sent) else next(self._new)
        scope[REQUEST_ID] = name

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        await self._app(scope, receive, reply)
