"""Connections: the deadlines and limits that can only be held below ASGI.

An ASGI application sees a request once its headers are complete, and an answer no further than it has handed it over.
What a client can do before and after that is limited here, on uvicorn's protocol for httptools:

- a head (request line and headers) has a size and a deadline; so has what is sent when no request is expected, such
  as blank lines, and what is left of the body of a request that has been answered;
- an answer that its client does not read is given up after a deadline, and if too much of them is held, the oldest;
- there is always room for a new connection: if too many are open, one that waits for its client is closed, the one
  that has waited for longest, of the address that has most of them;
- a request to change to another protocol (`Upgrade`) is answered as if it had not been made, as HTTP wants it;
- a client that has closed its sending side still gets its answer.

Deadlines are looked at a few times a second for all connections together, which costs a request nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from llmd4rec.server.errors import ApiError

#: Maximum bytes of a request's headers.
MAX_HEAD_BYTES = 32_768
#: Maximum open connections: less than the 1,024 files that many systems allow.
MAX_CONNECTIONS = 900
#: Maximum bytes of answers that clients have not read yet, beyond one of any size.
MAX_UNREAD_BYTES = 64 << 20
#: Seconds between two looks at the deadlines.
LOOK = 0.25


class Connections:
    """All open connections of one server.

    Args:
        seconds: that a client may take to send a head, or to read an answer.
        keep_alive: seconds an idle connection is kept.
    """

    def __init__(self, seconds: float, keep_alive: float) -> None:
        self.seconds, self.keep_alive = seconds, keep_alive
        self.open: dict[Connection, None] = {}  # from the oldest to the newest
        self._unread: dict[Connection, None] = {}

    def protocol(self) -> type[Connection]:
        """The class that uvicorn makes an instance of for each connection."""
        return type("Connection", (Connection,), {"all": self})

    def opened(self, connection: Connection) -> None:
        """Notes a new connection, and closes another one if there are too many."""
        self.open[connection] = None
        if len(self.open) <= MAX_CONNECTIONS:
            return
        waiting = [one for one in self.open if one is not connection and one.waits_for_its_client()]
        if not waiting:
            connection.drop()
            return
        counts = Counter(one.address for one in waiting)
        most = max(counts.values())
        min((one for one in waiting if counts[one.address] == most), key=lambda one: one.since).drop()

    def closed(self, connection: Connection) -> None:
        """Forgets a connection."""
        self.open.pop(connection, None)
        self._unread.pop(connection, None)

    def unread(self, connection: Connection, more: bool) -> None:
        """Notes that a client does not read as fast as it is answered, or has caught up."""
        if not more:
            self._unread.pop(connection, None)
            return
        self._unread.setdefault(connection)
        while len(self._unread) > 1 and sum(one.unread_bytes() for one in self._unread) > MAX_UNREAD_BYTES:
            next(iter(self._unread)).drop()

    async def watch(self) -> None:
        """Holds the deadlines, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK)
            now = loop.time()
            for connection in list(self.open):
                connection.look(now)

    def end(self) -> None:
        """Cuts what is still open."""
        for connection in list(self.open):
            connection.drop()


class Connection(HttpToolsProtocol):
    """One connection.

    Attributes:
        all: the connections of the server.
        address: of the client.
        since: when what the client is to do now began, in the time of the loop.
    """

    all: ClassVar[Connections]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called when a client has connected."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.since = self.loop.time()
        # The head of a request is being sent; it has been sent but not its body; one has come on this connection.
        self._in_head = self._in_body = self._asked = False
        self._head_bytes = 0
        self._unread_since: float | None = None
        self._ignored_upgrade = False
        self.all.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the client has disconnected."""
        self.all.closed(self)
        super().connection_lost(exc)

    # ---- what a client sends ------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        """Called when bytes arrive."""
        size = len(data)
        while data and not self.transport.is_closing():
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self._refuse(ApiError(400, "invalid_http", "the request is not valid HTTP"))
        if self._in_head:
            self._head_bytes += size
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(ApiError(431, "head_too_large", f"the headers are larger than {MAX_HEAD_BYTES:,} bytes"))

    def _without_upgrade(self) -> bytes:
        """The head that was read, without its wish for another protocol; it is parsed anew.

        The parser would take what follows for that other protocol, a body too.
        """
        if self.parser.get_method() == b"CONNECT":
            self._refuse(ApiError(405, "method_not_allowed", "this service is no proxy"))
            return b""
        lines = [b"%s: %s\r\n" % line for line in self.headers if line[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        start = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
        self.parser = httptools.HttpRequestParser(self)
        return start + b"".join(lines) + b"\r\n"

    def on_message_begin(self) -> None:
        """Called at the first byte of a request."""
        self._in_head, self._asked, self._head_bytes = True, True, 0
        self.since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called for a header; those after a chunked body mean nothing here."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called at the last byte of a head."""
        if self.parser.should_upgrade():
            return  # it is read again
        self._in_head, self._in_body = False, True
        self.since = self.loop.time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called at the last byte of a request."""
        if self._in_body:
            self._in_body = False
            super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Called when the client sends no more; true: it still gets the answer to what it has sent."""
        if not self._answering():
            return False
        self.cycle.keep_alive = False
        return True

    # ---- what it is sent ----------------------------------------------------------------------------------------
    def on_response_complete(self) -> None:
        """Called when an answer has been handed over."""
        super().on_response_complete()
        self.since = self.loop.time()
        # uvicorn's own timer would be stopped by any byte; :meth:`look` is not.
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        """Called when much of an answer has not been read."""
        super().pause_writing()
        self.all.unread(self, True)

    def resume_writing(self) -> None:
        """Called when most of it has been."""
        super().resume_writing()
        self.all.unread(self, False)

    def unread_bytes(self) -> int:
        """Bytes of answers that wait for the client."""
        return self.transport.get_write_buffer_size()

    # ---- deadlines ----------------------------------------------------------------------------------------------
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self._in_body

    def waits_for_its_client(self) -> bool:
        """Whether nothing is being computed for this connection."""
        return not self._answering()

    def look(self, now: float) -> None:
        """Ends the connection if its client has taken too long."""
        seconds, waited = self.all.seconds, now - self.since
        if not self.unread_bytes():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > seconds:
            self.drop()
            return
        if self.transport.is_closing() or self._answering():
            return
        if self._in_head or not self._asked:
            if waited > seconds:
                self._refuse(ApiError(408, "head_timeout", f"the headers did not arrive within {seconds:g} s"))
        elif self._in_body:
            # The application holds the deadline of a body that it reads; this one has been answered already.
            if self.cycle.response_complete and waited > seconds:
                self.transport.close()
        elif waited > self.all.keep_alive:
            self.transport.close()

    def drop(self) -> None:
        """Ends the connection at once."""
        self.all.closed(self)
        self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        body = error.body("none")
        lines = [*error.headers(len(body)), (b"connection", b"close")]
        head = STATUS_LINE[error.status] + b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self.transport.write(head + b"\r\n" + body)
        self.transport.close()
