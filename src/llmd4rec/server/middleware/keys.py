"""API keys: who may ask, who may change, who may read the metrics."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from llmd4rec.server.errors import ApiError
from llmd4rec.server.keys import SCOPES, ApiKey, parse_key
from llmd4rec.server.middleware.types import CHANGES, OPEN_PATHS, App, Receive, Scope, Send, header

#: POST requests below the paths of changes that change nothing.
_READING = frozenset({"/v1/items/lookup"})


class Keys:
    """Refuses requests without a valid key (401), and with one that may not do this (403).

    Args:
        app: the application.
        lines: the keys, each with the names of its scopes or none, which is all; without keys everybody may ask.
        is_page: whether a path is a file of the explorer, which needs no key.
    """

    def __init__(self, app: App, lines: Sequence[str], is_page: Callable[[str], bool]) -> None:
        self._app, self._is_page = app, is_page
        self._keys: tuple[ApiKey, ...] = ()
        self.replace(lines)

    def replace(self, lines: Sequence[str]) -> None:
        """Takes other keys from now on.

        Raises:
            LLMD4RecError: a key is too short, or a scope is unknown.
        """
        self._keys = tuple(map(parse_key, lines))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = scope["path"]
        if self._keys and path not in OPEN_PATHS and not self._is_page(path):
            self._check(scope, scope_of(scope["method"], path))
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, needed: str) -> None:
        given = header(scope, b"x-api-key")
        scheme, _, token = header(scope, b"authorization").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        # Every key is compared, each in constant time. A key that is listed twice may do what both lines say.
        known = [key.scopes for key in self._keys if hmac.compare_digest(given, key.secret)]
        if not known:
            raise ApiError(
                401, "unauthorized", "an API key is needed", remedy="Send Authorization: Bearer KEY, or X-API-Key: KEY."
            )
        if not any(needed in scopes for scopes in known):
            raise ApiError(
                403,
                "key_not_allowed",
                f"this key may not do this: it lacks the scope {needed!r}",
                remedy=f"Use a key with it; the scopes are {', '.join(SCOPES)}.",
            )


def scope_of(method: str, path: str) -> str:
    """The scope that a key needs for a request."""
    if path == "/metrics":
        return "metrics"
    if method in ("GET", "HEAD") or path in _READING or not path.startswith(CHANGES):
        return "read"
    return "change"
