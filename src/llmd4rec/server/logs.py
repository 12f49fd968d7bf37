"""Structured logs: one JSON object a line, on standard error. No histories, no identifiers, no addresses of clients.

A line has what an operator needs (route, status, milliseconds, request id) and nothing that identifies a person: the
route is its template, never the path or query that was sent, and an exception is logged by its type and location,
without its message, which may quote what was sent.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import IO, Any

import orjson


class Log:
    """Writes events to a binary stream."""

    def __init__(self, stream: IO[bytes] | None = None) -> None:
        self._stream = sys.stderr.buffer if stream is None else stream

    def write(self, event: str, level: str = "info", **facts: Any) -> None:
        """Writes one line. A closed pipe or a full disk must not stop the service."""
        line = {"time": datetime.now(UTC), "level": level, "event": event, **facts}
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))
            self._stream.flush()

    def exception(self, event: str, error: BaseException, **facts: Any) -> None:
        """Writes an unexpected error: its type and where it happened, without its message."""
        frames = traceback.extract_tb(error.__traceback__)[-12:]
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        self.write(event, "error", type=type(error).__name__, places=places, **facts)


class LibraryLog(logging.Handler):
    """Passes the HTTP library's messages to :class:`Log`, so that all lines have one format."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line; of an exception only its type and location."""
        if record.exc_info and record.exc_info[1]:
            self._log.exception("http", record.exc_info[1])
        else:
            self._log.write("http", record.levelname.lower(), message=record.getMessage().strip())
