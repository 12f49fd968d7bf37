"""`llmd4rec prepare` on a log of ML-20M's shape: seconds and peak memory of the whole command, from CSV and Parquet.

The log has 20 million interactions of 140,000 users with 27,000 items: long-tailed histories from 20 on, item
frequencies after Zipf's law, ratings and seconds; users stand together, as in ML-20M, or every row stands anywhere
(`shuffled`).
Making it does not count. Each command is a process of its own, and they take turns.

The naive way reads the same file into pandas, sorts it by user and time, turns identifiers into codes and marks each
user's last two interactions; it checks and writes nothing. The machine's limit is what reading alone takes: polars
parsing the three columns as whole numbers. Where the time of ours goes is measured in another process, where each
stage is timed by what it calls.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Figure, best, peak_memory, report

ROWS, USERS, ITEMS = 20_000_000, 140_000, 27_000
SHORTEST = 20
MOST_SECONDS, MOST_GB = 60, 5
PREPARE = "import sys; sys.argv[0] = 'llmd4rec'; from llmd4rec.cli import main; main()"
PANDAS = """
import sys, pandas
path = sys.argv[1]
read = pandas.read_csv if path.endswith(".csv") else pandas.read_parquet
log = read(path).sort_values(["userId", "timestamp"], kind="stable", ignore_index=True)
log["user"], users = pandas.factorize(log["userId"])
log["item"], items = pandas.factorize(log["movieId"])
log["from_end"] = log.groupby("user").cumcount(ascending=False)
train = log[log["from_end"] >= 2]
print(len(users), len(items), len(train))
"""
READ = """
import sys, polars
path, columns = sys.argv[1], ("userId", "movieId", "timestamp")
scan = polars.scan_csv if path.endswith(".csv") else polars.scan_parquet
print(scan(path).select(columns).collect(engine="streaming").height)
"""


def main() -> None:
    """Measures and reports; with --stages, only times the stages of one file and prints them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each")
    parser.add_argument("--shuffled", action="store_true", help="also a log whose rows stand in any order")
    parser.add_argument("--stages", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stages:
        print(json.dumps(stages(arguments.stages)))
        return

    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as name:
        folder = Path(name)
        files = generate(folder, arguments.rows, shuffled=arguments.shuffled)
        runs: dict[str, list[tuple[float, float]]] = {}
        for _ in range(arguments.repeats):
            for kind, path in files.items():
                out = str(folder / "prepared")
                command = [PREPARE, "prepare", "--interactions", str(path), "--out", out, "--overwrite"]
                ways = {"ours": command, "reading": [READ, str(path)], "pandas": [PANDAS, str(path)]}
                for way, program in ways.items():
                    if way == "pandas" and kind != "CSV":
                        continue
                    with contextlib.suppress(RuntimeError) if way == "pandas" else contextlib.nullcontext():
                        ran = peak_memory([sys.executable, "-c", *program])
                        runs.setdefault(f"{kind}, {way}", []).append(ran)
        sizes = {kind: path.stat().st_size / 1e9 for kind, path in files.items()}
        times = split(files["CSV"])

    figures = []
    for kind in files:
        ours = [seconds for seconds, _ in runs[f"{kind}, ours"]]
        peak = max(gigabytes for _, gigabytes in runs[f"{kind}, ours"])
        reading = [seconds for seconds, _ in runs[f"{kind}, reading"]]
        figures += [
            Figure(
                f"prepare, {kind}",
                best(ours),
                "s",
                f"< {MOST_SECONDS} s",
                best(ours) < MOST_SECONDS,
                f"{arguments.rows / best(ours) / 1e6:.2f} million interactions/s, file of {sizes[kind]:.2f} GB",
            ),
            Figure(f"peak memory, {kind}", peak, "GB", f"< {MOST_GB} GB", peak < MOST_GB),
            Figure(
                f"over reading alone, {kind}", best(ours) / best(reading), "x", note=f"reading: {best(reading):.1f} s"
            ),
        ]
    naive = runs.get("CSV, pandas")
    if naive:
        seconds, peak = best([s for s, _ in naive]), max(gigabytes for _, gigabytes in naive)
        ratio = seconds / figures[0].value
        note = f"pandas: {seconds:.1f} s, {peak:.1f} GB; checks and writes nothing"
        figures.append(Figure("pandas' time over ours, CSV", ratio, "x", note=note))
    shares = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    notes = [f"Where the time goes (CSV, in-process): {shares}."]
    if not naive:
        notes.append("pandas could not be measured: it is not installed, or memory ran out.")
    report("prepare", f"Preparing {arguments.rows / 1e6:g} million interactions", figures, notes)


def generate(folder: Path, rows: int, *, shuffled: bool) -> dict[str, Path]:
    """Writes the log as CSV and Parquet and, if wanted, shuffled CSV; gives the paths by kind."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    users = max(10, USERS * rows // ROWS)
    tail = rng.lognormal(0, 1.3, users)
    spare = rows - SHORTEST * users
    length = SHORTEST + (tail * (spare / tail.sum())).astype(np.int64)
    length += rng.multinomial(rows - int(length.sum()), np.full(users, 1 / users))
    weight = np.cumsum(1 / (np.arange(ITEMS) + 20.0))
    start = np.repeat(rng.integers(800_000_000, 1_400_000_000, users), length)
    log = pl.DataFrame(
        {
            "userId": np.repeat(np.arange(1, users + 1, dtype=np.int32), length),
            "movieId": (np.searchsorted(weight, rng.random(rows) * weight[-1]) + 1).astype(np.int32),
            "rating": rng.integers(1, 11, rows).astype(np.float32) / 2,
            "timestamp": start + rng.integers(0, 20_000_000, rows),
        }
    )
    files = {"CSV": folder / "ratings.csv", "Parquet": folder / "ratings.parquet"}
    log.write_csv(files["CSV"])
    log.write_parquet(files["Parquet"])
    if shuffled:
        files["shuffled CSV"] = folder / "shuffled.csv"
        log.sample(fraction=1.0, shuffle=True, seed=0).write_csv(files["shuffled CSV"])
    return files


def split(path: Path) -> dict[str, float]:
    """Seconds of each stage, from a process of its own."""
    ran = subprocess.run([sys.executable, __file__, "--stages", str(path)], check=True, capture_output=True, text=True)
    times: dict[str, float] = json.loads(ran.stdout)
    return times


def stages(path: Path) -> dict[str, float]:
    """Prepares a file in this process and times the functions that make up its stages."""
    from llmd4rec.data import prepare
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.data.ingest import interaction_log, pipeline, readers, table

    times: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for name, home, function in (
            ("checksum of the input", readers, "sha256_file"),
            ("reading and parsing", table.Table, "collect"),
            ("codes of identifiers", interaction_log, "_code"),
            ("cleaning and sorting", pipeline, "clean"),
            ("writing and checksum", Dataset, "save"),
        ):
            stack.enter_context(timed(times, name, home, function))
        started = time.perf_counter()
        prepare.prepare_files(path, None, Path(folder) / "prepared")
        whole = time.perf_counter() - started
    return {**times, "the rest": whole - sum(times.values())}


@contextlib.contextmanager
def timed(times: dict[str, float], name: str, home: object, function: str) -> Iterator[None]:
    """Adds the seconds spent in a function of a module or class to `times[name]`."""
    original: Callable[..., object] = getattr(home, function)

    def wrapper(*positional: object, **named: object) -> object:
        started = time.perf_counter()
        try:
            return original(*positional, **named)
        finally:
            times[name] = times.get(name, 0.0) + time.perf_counter() - started

    setattr(home, function, wrapper)
    try:
        yield
    finally:
        setattr(home, function, original)


if __name__ == "__main__":
    main()
