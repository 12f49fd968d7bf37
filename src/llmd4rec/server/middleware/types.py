"""The types of ASGI, and what the middlewares leave in a request's scope for one another and for the routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Keys of the scope: the body that was read, the request id, and the route that answered without the framework.
BODY, REQUEST_ID, ROUTE = "llmd4rec.body", "llmd4rec.request_id", "llmd4rec.route"
#: Paths that everybody may ask, whatever host name the request has: those of load balancers and of the description.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})
#: Methods that may have a body.
SENDING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
#: The beginnings of the paths under which a request that is no GET may be a change.
CHANGES = ("/v1/models", "/v1/items", "/v1/events")


def header(scope: Scope, name: bytes) -> bytes:
    """The value of a request's header, the last one if it was sent twice; empty if it was not sent."""
    found = b""
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


def route(scope: Scope) -> str:
    """The template of the route that answered; the path itself may contain identifiers."""
    return scope.get(ROUTE) or getattr(scope.get("route"), "path", None) or "none"


class Disconnected(Exception):
    """The client closed the connection before it had sent its request."""
