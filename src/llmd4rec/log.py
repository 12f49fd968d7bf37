"""Messages by standard logging; progress with rates and time left: a bar on a terminal, elsewhere a line a minute.

Everything goes through the logger `llmd4rec`, so Python's own means hold: `getLogger("llmd4rec").setLevel("ERROR")`
silences it, and `llmd4rec.progress` beneath it has the lines on progress alone. A program that has configured logging
(`logging.basicConfig(...)`) gets all messages in its own handlers. Where there are none, in a notebook or a script,
they appear on standard error without any configuring: warnings always, the rest on a terminal or in a notebook. The
command line cuts the logger off from the root, whose handlers other libraries may set, and says everything wherever it
runs: in the log of a nightly job people look for what was guessed and chosen.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as _Task
from rich.text import Text

#: Without a terminal, seconds from one line to the next; what is done sooner says nothing.
LINE_SECONDS = 60.0
#: Messages go to standard error so that `--json` on standard output stays clean.
console = Console(stderr=True)
logger = logging.getLogger("llmd4rec")
_progress_logger = logging.getLogger("llmd4rec.progress")


class _DefaultHandler(logging.Handler):
    """Standard error by way of rich, above a bar that is running; nothing where the program has handlers of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if logger.propagate and logging.getLogger().handlers:
            return
        important = record.levelno >= logging.WARNING
        command_line = not logger.propagate
        watched = sys.stderr.isatty() or console.is_jupyter
        if not (important or record.name != logger.name or command_line or watched):
            return
        label = f"{record.levelname.lower()}: " if important else ""
        with contextlib.suppress(OSError):  # a full disk or a closed pipe: a message less, but the work goes on
            console.print(Text(label + self.format(record)), soft_wrap=True)


if not logger.handlers:
    logger.addHandler(_DefaultHandler())
    logger.setLevel(logger.level or logging.INFO)


def never_fail(*streams: TextIO | None) -> None:
    """From now on what a stream's encoding has no sign for is replaced: a pipe may be in cp1252 or ASCII."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) not in ("replace", "backslashreplace"):
            reconfigure(errors="replace")


def print_json(value: Any, indent: int | None = None) -> None:
    """JSON on standard output; escaped where its encoding has no sign for a letter."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    print(text, flush=True)


def stdout_console() -> Console:
    """Where tables go. In a file or a pipe, which has no width, they are not squeezed into 80 columns."""
    never_fail(sys.stdout)
    return Console() if sys.stdout.isatty() else Console(width=120)


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: _Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text("" if speed is None else _rate(speed, unit))


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s"


class Bar:
    """A running progress bar; see :func:`bar`."""

    def __init__(self, show: Callable[[float, str], None]) -> None:
        self._show = show

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Moves on by `amount` units; `note` is shown behind the bar (a loss, for example)."""
        self._show(amount, note)


class _Lines:
    """How far something is, as lines in a log file."""

    #: When the last line was written and anything last moved, by whichever task: many short ones are as long as one.
    last = seen = -LINE_SECONDS

    def __init__(self, what: str, total: float | None, unit: str, start: float, line_seconds: float | None) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.line_seconds = LINE_SECONDS if line_seconds is None else line_seconds
        self.start, self.done, self.begun = start, start, time.monotonic()
        if self.begun - _Lines.seen >= self.line_seconds:
            _Lines.last = self.begun

    def advance(self, amount: float, note: str) -> None:
        self.done += amount
        now = _Lines.seen = time.monotonic()
        if now - _Lines.last < self.line_seconds:
            return
        _Lines.last = now
        speed = (self.done - self.start) / max(now - self.begun, 1e-9)
        parts = [f"{self.done:,.0f} {self.unit}", _rate(speed, self.unit)]
        if self.total is not None:
            parts[0] = f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"
            parts.append(f"{duration((self.total - self.done) / max(speed, 1e-9))} left")
        _progress_logger.info(f"{self.what}: {', '.join(parts)}" + (f"; {note}" if note else ""))


def duration(seconds: float) -> str:
    """A span of time for a person: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextlib.contextmanager
def bar(
    what: str, total: float | None, unit: str = "it", *, start: float = 0, line_seconds: float | None = None
) -> Iterator[Bar]:
    """A progress bar over `total` units on a terminal; a line a minute where standard error is none.

    Args:
        what: is done.
        total: of the units; None: unknown.
        unit: its name.
        start: how many are done already.
        line_seconds: from one line to the next; None: a minute.
    """
    if not sys.stderr.isatty():
        yield Bar(_Lines(what, total, unit, start, line_seconds).advance)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=total, completed=int(start), unit=unit, note="")
        yield Bar(lambda amount, note: progress.update(task, advance=amount, note=note))
