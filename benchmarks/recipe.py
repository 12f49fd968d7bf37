"""A whole `llmd4rec train` of the default recipe on a small shop, from the start of the process to the report.

The shop is drawn: items stand in a circle, and who has chosen one chooses one of those behind it next. So there is
something to learn, and validation ends each stage as it does on real data; with how many seconds to go says nothing of
large data, whose share of start-up and evaluation is smaller. `probe.py` foretells those.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
from harness import Figure, report

from llmd4rec.data.dataset import Dataset

USERS, ITEMS = 1500, 800


def shop(users: int = USERS, items: int = ITEMS) -> Dataset:
    """Histories of 6 to 20 items, each one to five places behind the one before it; with titles and a category."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 21, users)
    starts = np.repeat(rng.integers(0, items, users), lengths)
    steps = rng.integers(1, 6, int(lengths.sum()))
    before = np.cumsum(steps)
    first = np.repeat(before[np.cumsum(lengths) - lengths], lengths)
    log = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), lengths).astype(str),
            "item_id": ((starts + before - first) % items).astype(str),
            "timestamp": 1_300_000_000 + 3600 * np.arange(len(steps)),
        }
    )
    kinds = np.array(["lamp", "chair", "table", "shelf", "rug", "clock", "vase", "desk"])
    catalogue = pl.DataFrame(
        {
            "item_id": np.arange(items).astype(str),
            "title": [f"{kinds[item // 20 % 8]} of series {item // 20}, number {item}" for item in range(items)],
            "category": kinds[np.arange(items) // 20 % 8],
        }
    )
    return Dataset.from_frames(log, catalogue)


def child(data: Path, folder: Path, overrides: list[str]) -> None:
    """What `llmd4rec train` does, with the times at which its parts end; on standard output, as JSON."""
    from llmd4rec.config.settings import load_settings
    from llmd4rec.distillation.efforts import RECIPE
    from llmd4rec.distillation.settings import DistillationSettings
    from llmd4rec.report.from_run import write_run_report
    from llmd4rec.runs.pipeline import train
    from llmd4rec.runs.results import score_run
    from llmd4rec.training.callbacks.base import Callback
    from llmd4rec.training.trainer import Trainer

    marks: list[tuple[str, float]] = []

    class Marks(Callback):
        def on_start(self, trainer: Trainer) -> None:
            marks.append(("caching" if "round" in trainer.stage else "start", time.time()))

        def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
            marks.append((trainer.stage, time.time()))

    settings = load_settings(DistillationSettings, None, overrides, base=dict(RECIPE))
    run = train(settings, Dataset.load(data), folder, callbacks=[Marks()])
    marks.append(("memory", time.time()))
    dataset = Dataset.load(data)
    write_run_report(run, dataset, score_run(run, dataset))
    marks.append(("evaluation", time.time()))
    print(json.dumps(marks))


def shares(marks: Iterable[tuple[str, float]], begun: float, ended: float) -> dict[str, float]:
    """The seconds of each part, of which stages of a kind are one; they add up to the whole."""
    found: dict[str, float] = {}
    for name, end in [*marks, ("start", ended)]:
        kind = "teachers" if name.startswith("teacher-") else "student" if name.startswith("distilled-") else name
        found[kind] = found.get(kind, 0.0) + end - begun
        begun = end
    return found


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.overrides)
        return
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as folder:
        data, run = Path(folder, "data"), Path(folder, "run")
        shop().save(data)
        given = [each for override in arguments.overrides for each in ("--set", override)]
        begun = time.time()
        command = [sys.executable, __file__, "--child", str(data), str(run), *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        ended = time.time()
        stages = len(json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"])
    parts = shares(json.loads(done.stdout.splitlines()[-1]), begun, ended)
    note = f"{stages} stages; {USERS:,} users, {ITEMS:,} items"
    figures = [Figure("whole train, with evaluation and report", ended - begun, "s", note=note)]
    figures += [
        Figure(f"of it {name}", 100 * seconds / (ended - begun), "%", note=f"{seconds:.1f} s")
        for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
    ]
    notes = ["start: imports, reading the data, building models; the first time on a machine also encoding the texts."]
    notes += [f"With {', '.join(arguments.overrides)}."] if arguments.overrides else []
    report("recipe", "The default recipe, whole", figures, notes)


if __name__ == "__main__":
    main()
