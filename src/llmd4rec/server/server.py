"""The HTTP server: uvicorn with limits on connections and headers, and an orderly shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from llmd4rec.errors import LLMD4RecError
from llmd4rec.inference.recommender import Recommender
from llmd4rec.server.app import create_app
from llmd4rec.server.connections import Connections
from llmd4rec.server.logs import LibraryLog, Log
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.service import THREADS, Service, load_warm
from llmd4rec.server.settings import ServiceSettings

#: So often is the listening socket listened to: the event loop takes one connection from each in a turn, which may take
#: long under load.
LISTENERS = 32
#: Signals that stop the service.
STOPPING = (signal.SIGINT, signal.SIGTERM)
#: Seconds after which a thread that runs Python yields to another. The default, 5 ms, is longer than an answer.
SWITCH_INTERVAL = 0.0005


class _Server(uvicorn.Server):
    """A server that stops in order: `/readyz` fails, then no connection is taken, then requests are finished."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        log: Log,
        on_start: Callable[[], None],
        on_hangup: Callable[[], None] | None,
    ) -> None:
        super().__init__(config)
        self._service, self._log, self._on_start, self._on_hangup = service, log, on_start, on_hangup

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen."""
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the server, not the process: its exit status is 0."""
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        if self._on_hangup is not None and hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles the first signal to stop: requests in progress are finished. The second one does not wait."""
        loop = asyncio.get_running_loop()
        for number in STOPPING:  # no longer the loop's, which may be busy
            loop.remove_signal_handler(number)
            signal.signal(number, _end_at_once)
        self._service.draining = True
        seconds = self._service.settings.drain
        self._log.write("stopping", drain_seconds=seconds)
        loop.call_later(seconds, setattr, self, "should_exit", True)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


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
    read_keys: Callable[[], tuple[str, ...]] | None = None,
) -> None:
    """Serves an export until the process is told to stop.

    Args:
        folder: the export.
        settings: limits and permissions.
        port: to listen on; 0: a free one.
        load: loads a recommender from a folder.
        on_start: called with the address once requests are taken.
        log: where to log; None: standard error.
        read_keys: reads the API keys again, on SIGHUP.

    Raises:
        LLMD4RecError: the folder is not a valid export, or the port cannot be used.
    """
    listener = listen(settings.host, port)  # first, because it fails fast
    try:
        recommender = load_warm(load, folder, settings)
        sys.setswitchinterval(SWITCH_INTERVAL)
        asyncio_run = _runner()
        asyncio_run(_serve(listener, recommender, settings, load, on_start, log or Log(), read_keys))
    finally:
        listener.close()
    _end_threads()


async def _serve(
    listener: socket.socket,
    recommender: Recommender,
    settings: ServiceSettings,
    load: Callable[[Path], Recommender],
    on_start: Callable[[str, Recommender], None],
    log: Log,
    read_keys: Callable[[], tuple[str, ...]] | None,
) -> None:
    service = Service(recommender, settings, Metrics(), log, load)
    for name in ("uvicorn", "asyncio"):
        library = logging.getLogger(name)
        library.handlers[:] = [LibraryLog(log)]
        library.propagate = False
    host, port = listener.getsockname()[:2]
    connections = Connections(settings.timeout, settings.keep_alive)
    app, keys = create_app(service, log)
    config = uvicorn.Config(
        app,
        http=connections.protocol(),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.stop_timeout),
    )

    def reload_keys() -> None:
        assert read_keys is not None
        try:
            keys.replace(read_keys())
        except LLMD4RecError as error:  # those there were stay
            log.write("keys not reloaded", "error", what=error.what, remedy=error.remedy)
        else:
            log.write("keys reloaded")

    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = _Server(config, service, log, lambda: on_start(url, recommender), reload_keys if read_keys else None)
    watching = asyncio.create_task(connections.watch())
    try:
        await server.serve(sockets=[listener, *(listener.dup() for _ in range(LISTENERS - 1))])
    finally:
        watching.cancel()
        connections.end()
        service.close()
        log.write("stopped")


def _end_threads() -> None:
    """Ends the process if a thread of the service still computes, for nobody any more."""
    for thread in threading.enumerate():
        if thread.name.startswith(THREADS):
            thread.join(0.5)
            if thread.is_alive():
                sys.stdout.flush()
                os._exit(0)


def _runner() -> Callable[[Any], None]:
    """uvloop's event loop if it is installed, else Python's own."""
    try:
        import uvloop
    except ImportError:  # it does not exist for every system
        return asyncio.run
    return uvloop.run
