"""The HTTP server: uvicorn with limits on connections and headers, and an orderly shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from llmd4rec.errors import LLMD4RecError
from llmd4rec.inference.recommender import Recommender
from llmd4rec.server.app import create_app
from llmd4rec.server.errors import ApiError
from llmd4rec.server.logs import LibraryLog, Log
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.service import Service, load_warm
from llmd4rec.server.settings import ServiceSettings

#: Maximum bytes of a request's headers.
MAX_HEAD_BYTES = 32_768
#: Maximum open connections: less than the 1,024 files that many systems allow; more are closed at once.
MAX_CONNECTIONS = 900
#: Seconds an idle connection is kept: longer than load balancers keep theirs, so that they close it.
KEEP_ALIVE = 75
#: Seconds after which a thread that runs Python yields to another. The default, 5 ms, is longer than an answer.
SWITCH_INTERVAL = 0.0005


class _Protocol(HttpToolsProtocol):
    """A connection; it is closed if the headers of a request arrive too slowly or are too large.

    Attributes:
        head_seconds: seconds the headers of a request may take.
    """

    head_seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called when a client has connected."""
        super().connection_made(transport)
        self._in_head, self._head_bytes = True, 0
        self._deadline: asyncio.TimerHandle | None = None
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()
        else:
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the client has disconnected."""
        self._cancel_deadline()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Called at the first byte of a request."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called at the last byte of its headers."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Called when bytes arrive."""
        super().data_received(data)
        if not self._in_head:
            self._cancel_deadline()
        elif not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(ApiError(431, "head_too_large", f"the headers are larger than {MAX_HEAD_BYTES:,} bytes"))
            elif self._deadline is None:
                self._set_deadline()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP with an error of the usual format."""
        self._refuse(ApiError(400, "invalid_http", "the request is not valid HTTP"))

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.head_seconds, self._head_timeout)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_timeout(self) -> None:
        if not self.transport.is_closing():
            self._refuse(ApiError(408, "head_timeout", f"the headers did not arrive within {self.head_seconds:g} s"))

    def _refuse(self, error: ApiError) -> None:
        body = error.body("none")
        lines = [*error.headers(len(body)), (b"connection", b"close")]
        head = STATUS_LINE[error.status] + b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self.transport.write(head + b"\r\n" + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """A server that stops in order: `/readyz` fails, then no connection is taken, then requests are finished."""

    def __init__(self, config: uvicorn.Config, service: Service, log: Log, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._log, self._on_start = service, log, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen."""
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the server, not the process: its exit status is 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal to stop: the first one waits for requests in progress, the second one does not."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        seconds = self._service.settings.drain
        self._log.write("stopping", drain_seconds=seconds)
        asyncio.get_running_loop().call_later(seconds, setattr, self, "should_exit", True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        LLMD4RecError: the port is in use or not permitted, or the address is not one of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":  # on Windows it would allow two services on one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except socket.gaierror as error:
        raise LLMD4RecError(f"--host {host}: there is no such address", "Use 127.0.0.1 or 0.0.0.0.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LLMD4RecError(
                f"port {port} is in use on {host}", "Stop what uses it, or choose another with --port."
            ) from error
        if error.errno == errno.EACCES:
            raise LLMD4RecError(f"port {port} may not be used by this user", "Use one above 1023.") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise LLMD4RecError(
                f"--host {host} is not an address of this machine", "Use 127.0.0.1 or 0.0.0.0."
            ) from error
        raise
    return listener


def serve(
    folder: Path,
    settings: ServiceSettings,
    *,
    port: int,
    load: Callable[[Path], Recommender] = Recommender.load,
    on_start: Callable[[str, Recommender], None] = lambda url, recommender: None,
    log: Log | None = None,
) -> None:
    """Serves an export until the process is told to stop.

    Args:
        folder: the export.
        settings: limits and permissions.
        port: to listen on; 0: a free one.
        load: loads a recommender from a folder.
        on_start: called with the address once requests are taken.
        log: where to log; None: standard error.

    Raises:
        LLMD4RecError: the folder is not a valid export, or the port cannot be used.
    """
    listener = listen(settings.host, port)  # first, because it fails fast
    try:
        recommender = load_warm(load, folder, settings)
        sys.setswitchinterval(SWITCH_INTERVAL)
        asyncio_run = _runner()
        asyncio_run(_serve(listener, recommender, settings, load, on_start, log or Log()))
    finally:
        listener.close()


async def _serve(
    listener: socket.socket,
    recommender: Recommender,
    settings: ServiceSettings,
    load: Callable[[Path], Recommender],
    on_start: Callable[[str, Recommender], None],
    log: Log,
) -> None:
    service = Service(recommender, settings, Metrics(), log, load)
    for name in ("uvicorn", "asyncio"):
        library = logging.getLogger(name)
        library.handlers[:] = [LibraryLog(log)]
        library.propagate = False
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        create_app(service, log),
        http=type("_Protocol", (_Protocol,), {"head_seconds": settings.timeout}),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.change_timeout),
    )
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = _Server(config, service, log, lambda: on_start(url, recommender))
    try:
        await server.serve(sockets=[listener])
    finally:
        service.close()
        log.write("stopped")


def _runner() -> Callable[[Any], None]:
    """uvloop's event loop if it is installed, else Python's own."""
    try:
        import uvloop
    except ImportError:  # it does not exist for every system
        return asyncio.run
    return uvloop.run
