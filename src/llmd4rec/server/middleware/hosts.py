"""Host names: which a request may be addressed to.

Starlette's TrustedHostMiddleware does the same, but answers 400 in plain text, and to health checks too, which load
balancers address to a number.
"""

from __future__ import annotations

from llmd4rec.server.errors import ApiError
from llmd4rec.server.middleware.types import OPEN_PATHS, App, Receive, Scope, Send, header


class Hosts:
    """Refuses requests to another host name than those of `names` (421); without names there is no limit."""

    def __init__(self, app: App, names: frozenset[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if self._names and _name(header(scope, b"host")) not in self._names and scope["path"] not in OPEN_PATHS:
            raise ApiError(
                421,
                "unknown_host",
                "the request is addressed to a host name that this service does not have",
                remedy="If the name is right, start the service with --allow-host NAME.",
            )
        await self._app(scope, receive, send)


def _name(host: bytes) -> str:
    """The name in a Host header, without its port."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
