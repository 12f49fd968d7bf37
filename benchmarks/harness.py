"""What every benchmark shares: taking turns, a data set of Beauty's shape, peak memory, and the account of a run.

A stage script measures all its ways within one process or turn by turn, so that a busy or throttled machine slows all
of them alike; what is compared are ratios. :func:`report` prints the figures and writes them where `run.py` finds them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"

#: Amazon 2014 Beauty, 5-core.
USERS, ITEMS, INTERACTIONS = 22_363, 12_101, 198_502
PACKAGES = ("llmd4rec", "torch", "numpy", "transformers", "polars")


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        what: what was measured.
        value: the figure.
        unit: its unit; "x" for a ratio, "%" for a share.
        target: what is aimed at, in words; empty if nothing is.
        met: whether it was reached; None without a target.
        note: how it was measured, where that is not obvious.
    """

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None
    note: str = ""


# ---- measuring --------------------------------------------------------------------------------------------------
def alternate(ways: dict[str, Callable[[], object]], *, repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` of each. The ways take turns, and each round begins with another one.

    Args:
        ways: what to run, by name.
        repeats: timed runs of each.
        warmup: untimed rounds before them.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            ways[name]()
            taken = time.perf_counter() - started
            if turn >= 0:
                seconds[name].append(taken)
            if taken > 1:
                print(f"  {name}: {taken:.1f} s" + (" (to warm up)" if turn < 0 else ""), file=sys.stderr, flush=True)
    return seconds


def best(seconds: list[float]) -> float:
    """The shortest: what the way can do when nothing else runs."""
    return min(seconds)


def median(seconds: list[float]) -> float:
    """The middle one: what to expect."""
    return statistics.median(seconds)


# A child begins with the peak of the process that started it, so a small process must start the one to be measured.
_WATCH = """
import os, subprocess, sys, time
started = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - started, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def peak_memory(command: list[str]) -> tuple[float, float]:
    """Runs a command and gives its seconds and its peak resident memory in GB (of its largest process).

    Raises:
        RuntimeError: the command failed; holds the end of what it wrote to its standard error.
    """
    watch = [sys.executable, "-S", "-c", _WATCH, *command]
    ran = subprocess.run(watch, capture_output=True, text=True, check=True)
    seconds, peak, code = ran.stdout.split()
    if int(code):
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{ran.stderr[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(seconds), int(peak) * unit / 1e9


# ---- data -------------------------------------------------------------------------------------------------------
def beauty(data: Path | None = None) -> Dataset:
    """The data set to measure on: a prepared folder, else a synthetic log of Beauty's shape.

    The synthetic log has Beauty's counts of users, items and interactions, item frequencies after Zipf's law, sequence
    lengths from 5 with mean 8.9 and a long tail, and item texts of titles' and categories' usual length.

    Args:
        data: a folder made by `llmd4rec prepare`; None: the one named by LLMD4REC_BENCH_DATA, if set.
    """
    import numpy as np
    import polars as pl

    from llmd4rec.data.dataset import Dataset
    from llmd4rec.errors import LLMD4RecError

    data = data or (Path(os.environ["LLMD4REC_BENCH_DATA"]) if os.environ.get("LLMD4REC_BENCH_DATA") else None)
    if data is not None:
        try:
            return Dataset.load(data)
        except LLMD4RecError as error:
            raise SystemExit(f"error: {error}") from error
    rng = np.random.default_rng(0)
    tail = rng.lognormal(0.75, 1.1, USERS)
    length = 5 + np.minimum(tail * (INTERACTIONS / USERS - 5) / tail.mean(), 195).astype(np.int64)
    length += rng.multinomial(INTERACTIONS - int(length.sum()), np.full(USERS, 1 / USERS))
    weight = 1 / (np.arange(ITEMS) + 30.0) ** 0.8
    item = rng.choice(ITEMS, INTERACTIONS, p=weight / weight.sum())
    item[rng.permutation(INTERACTIONS)[:ITEMS]] = np.arange(ITEMS)  # none is without an interaction
    log = pl.DataFrame(
        {
            "user": np.repeat(np.arange(USERS), length).astype(str),
            "item": item.astype(str),
            "timestamp": 1_300_000_000 + 3600 * np.arange(INTERACTIONS),
        }
    )
    words = np.array(
        [first + second for first in ("ba", "ce", "di", "fo", "gu", "ly") for second in ("lm", "nd", "rse")]
    )
    catalogue = pl.DataFrame(
        {
            "item": np.arange(ITEMS).astype(str),
            "title": [" ".join(rng.choice(words, n)) for n in rng.integers(5, 16, ITEMS)],
            "brand": rng.choice(words, ITEMS),
            "categories": [" > ".join(["Beauty", *rng.choice(words, n)]) for n in rng.integers(1, 4, ITEMS)],
        }
    )
    return Dataset.from_frames(log, catalogue)


# ---- the account ------------------------------------------------------------------------------------------------
def machine() -> dict[str, Any]:
    """What was measured on: processor, cores that may be used, memory, system, thread settings."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gb": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "threads": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OMP_", "GOMP_", "MKL_", "THP_"))
        },
    }


def report(name: str, title: str, figures: Sequence[Figure], notes: Sequence[str] = ()) -> None:
    """Prints the figures as a table and writes them, with machine, versions, commit and date, to `out/<name>.json`."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("what", "value", "target", "note"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for figure in figures:
        colour = {True: "green", False: "red", None: "default"}[figure.met]
        value = f"[{colour}]{shown(figure.value)} {figure.unit}[/{colour}]"
        table.add_row(figure.what, value, figure.target, figure.note)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False)
    record = {
        "name": name,
        "title": title,
        "figures": [dataclasses.asdict(figure) for figure in figures],
        "notes": list(notes),
        "machine": machine(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def shown(value: float) -> str:
    """A figure with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The commit, marked where tracked files differ from it."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=10", "--dirty=+changes", "--exclude=*"]
    ran = subprocess.run(git, capture_output=True, text=True)
    return ran.stdout.strip() or "unknown"
