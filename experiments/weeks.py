"""What an update is worth beside a refit of the same model: both before the same windows, on the same targets.

    python experiments/weeks.py RUN --data FOLDER --windows 3 7 9 --out results/rolling/NAME.json

The model of the run as it was trained, updated before each window (each update goes on from the one before), and
refitted before each of these windows, without a memory, as `llmd4rec evaluate RUN --rolling --modes updated,refitted`
makes them: what it has left in the run folder is not trained again, and what is trained here is left there. Seconds are
those of the training alone, as the runs have noted them; those of an update are of the last one of the chain.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.stage_ids import SERVED
from llmd4rec.evaluation.rolling import ModelFor, rolling
from llmd4rec.evaluation.windows import Rolling, Window, cut_of
from llmd4rec.io.files import write_json
from llmd4rec.runs.rolling import MODES, models_of, trained_before
from llmd4rec.runs.run import Run
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.training.runtime import environment

PAIRS = (("refitted", "updated"), ("frozen", "updated"))
#: Rows of what needs no training are in every table; these are counted in a moment.
QUICK = Memory(content=None)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates, prints and writes the figures of each window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained on a temporal split")
    parser.add_argument("--data", type=Path, help="its data set, if it is not where it was")
    parser.add_argument("--windows", type=int, nargs="+", required=True, help="which, the first behind the cut is 0")
    parser.add_argument("--every", type=int, default=7, metavar="DAYS", help="length of a window")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args(argv)
    run = Run.open(arguments.run)
    data = run.load_data(arguments.data)
    found = figures(run, data, arguments.windows, arguments.every * 86_400)
    command = f"python experiments/weeks.py RUN --windows {' '.join(map(str, arguments.windows))}"
    about = {"command": command, "commit": environment()["commit"], "every": arguments.every}
    write_json(arguments.out, about | {"windows": found})


def figures(run: Run, data: Dataset, windows: Sequence[int], every: int) -> dict[int, dict[str, Any]]:
    """What each mode has in each of these windows, the differences by user, and seconds of training."""
    cut, found = cut_of(data), dict[int, dict[str, Any]]()
    makers = models_of(run, data, run.resolve(SERVED), MODES)
    for number in range(max(windows) + 1):
        window = Window(number, cut + number * every, cut + (number + 1) * every)
        scorers = {"updated": makers["updated"](window)}
        if number not in windows:
            continue
        scorers |= {mode: makers[mode](window) for mode in MODES if mode != "updated"}
        asked = Rolling(windows=1, every=every, choose_on=0, cut=window.start)
        result = rolling(data, asked, memory=QUICK, models={name: always(scorer) for name, scorer in scorers.items()})
        found[number] = {
            "targets": result.targets()[0],
            **{metric: {mode: result.figure(mode, metric) for mode in MODES} for metric in result.metrics},
            "differences": [vars(result.difference(*pair)) for pair in PAIRS],
            "seconds": {mode: seconds(trained_before(run, mode, window)) for mode in MODES if mode != "frozen"},
        }
        print(number, found[number], flush=True)
    return found


def always(scorer: Scorer) -> ModelFor:
    """The same model for whatever window."""
    return lambda window: scorer


def seconds(folder: Path) -> float:
    """How long the training took that was served from a run folder."""
    run = Run.open(folder)
    return float(run.record.stages[run.resolve(SERVED)]["seconds"])


if __name__ == "__main__":
    main()
