"""Reads the bodies of requests, within a size for each and for all of them together."""

from __future__ import annotations

import asyncio

from llmd4rec.server.errors import ApiError
from llmd4rec.server.middleware.types import Disconnected, Message, Receive, Scope, header

#: Maximum bytes held of all bodies that have not ended, where a single one is not allowed to be larger.
TOGETHER = 64 << 20


class Bodies:
    """The bodies that are being read.

    If more is held than :data:`TOGETHER`, the body that has been read for longest is given up: whoever sends at an
    ordinary speed is done long before it is the oldest.

    Args:
        largest: maximum bytes of one.
    """

    def __init__(self, largest: int) -> None:
        self._largest, self._together = largest, max(TOGETHER, largest)
        self._held = 0
        self._reading: dict[asyncio.Timeout, None] = {}

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Reads the whole body.

        Raises:
            ApiError: it is too large (413), or was given up for others (408).
            Disconnected: the client has closed the connection.
        """
        limit = self._largest
        declared = int(header(scope, b"content-length")[:20] or b"0")
        if declared > limit and (header(scope, b"expect") or declared > 8 * limit):
            raise _too_large(limit)  # it waits for permission, or would send for long
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):  # nearly always
            if len(message["body"]) > limit:
                raise _too_large(limit)
            return bytes(message["body"])
        given_up = asyncio.timeout(None)
        try:
            async with given_up:
                self._reading[given_up] = None
                return await self._rest(message, receive, declared > limit)
        except TimeoutError:
            if not given_up.expired():
                raise
            raise ApiError(408, "body_too_slow", "the body arrived too slowly, and others needed its place") from None
        finally:
            self._reading.pop(given_up, None)

    async def _rest(self, message: Message, receive: Receive, large: bool) -> bytes:
        limit = self._largest
        parts: list[bytes] = []
        size = held = 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                size += len(part)
                large = large or size > limit
                if not large:
                    parts.append(part)
                    held += len(part)
                    self._held += len(part)
                    self._make_room()
                # A client that is still sending does not read an answer yet: receive a little more and discard it.
                if not message.get("more_body", False) or size > 8 * limit:
                    break
                message = await receive()
        finally:
            self._held -= held
        if large:
            raise _too_large(limit)
        return b"".join(parts)

    def _make_room(self) -> None:
        if self._held > self._together and self._reading:
            oldest = next(iter(self._reading))
            del self._reading[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"the body is larger than {limit:,} bytes", remedy="Send fewer histories at once."
    )
