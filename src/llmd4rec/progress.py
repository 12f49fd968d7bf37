"""Progress with rates and time left on a terminal; silence elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as _Task
from rich.text import Text

#: Messages go to standard error so that `--json` on standard output stays clean.
console = Console(stderr=True)


def stdout_console() -> Console:
    """Where tables go. In a file or a pipe, which has no width, they are not squeezed into 80 columns."""
    return Console() if sys.stdout.isatty() else Console(width=120)


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: _Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text("" if speed is None else f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s")


class Bar:
    """A running progress bar; see :func:`bar`."""

    def __init__(self, progress: Progress | None, task: object | None) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Moves on by `amount` units; `note` is shown behind the bar (a loss, for example)."""
        if self._progress is not None:
            self._progress.update(self._task, advance=amount, note=note)  # type: ignore[arg-type]


@contextlib.contextmanager
def bar(what: str, total: float | None, unit: str = "it", *, start: float = 0) -> Iterator[Bar]:
    """A progress bar over `total` units on a terminal; does nothing when standard error is not one."""
    if not sys.stderr.isatty():
        yield Bar(None, None)
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
        yield Bar(progress, task)


def say(message: str) -> None:
    """One line for a person, on a terminal only."""
    if sys.stderr.isatty():
        console.print(message)
