"""What `llmd4rec train --plan --probe` foretells, against what the stages then take.

    python benchmarks/probe.py DATA ... [--epochs 1] [--set KEY=VALUE ...]

Of each data set the whole plan is probed, then each of its stages is really trained for a few epochs, from teachers
that are chosen and cached for all of its positions. Compared is that much: the stage's teachers, so many epochs, and
their validations. How many epochs validation would allow a stage is not measured here. Seconds are those of the
processor on one thread, which are the same beside other work.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from harness import Figure, report

from llmd4rec.config.settings import load_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import RECIPE, DistillationSettings
from llmd4rec.runs.pipeline import train
from llmd4rec.runs.probe import probe
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.stop_after import StopAfter
from llmd4rec.training.trainer import Trainer

#: The largest factor, up or down, that an estimate may be off.
FACTOR = 1.5


class Ends(Callback):
    """When each training ended, and how many epochs it had."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, int]] = {}

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        self.found[trainer.stage] = time.process_time(), trainer.progress.epoch - 1


def compared(settings: DistillationSettings, data: Dataset, name: str, epochs: int) -> list[Figure]:
    """How long each stage takes with so many epochs, foretold and measured."""
    begun = time.process_time()
    estimates = {each.stage: each for each in probe(settings, data, clock=time.process_time).stages}
    probed = time.process_time() - begun
    figures = [Figure(f"{name}: the probe itself", probed, "s")]
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as folder:
        ends, before = Ends(), time.process_time()
        train(settings, data, Path(folder, "run"), callbacks=[ends, StopAfter(epochs)])
    for stage, (end, had) in ends.found.items():
        real, foretold = end - before, estimates[stage].seconds(had)
        before = end
        factor = max(real / foretold, foretold / real)
        note = f"{foretold:.1f} s foretold, {real:.1f} s measured; {had} epochs"
        goal = f"within a factor of {FACTOR}"
        figures.append(Figure(f"{name}: {stage}", foretold / real, "x", goal, factor <= FACTOR, note))
    return figures


def main() -> None:
    """Compares on each of the given data sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders made by `llmd4rec prepare`")
    parser.add_argument("--epochs", type=int, default=1, help="of each stage")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    base = {**RECIPE, "threads": 1, "device": "cpu"}
    settings = load_settings(DistillationSettings, None, arguments.overrides, base=base)
    figures = []
    for path in arguments.data:
        figures += compared(settings, Dataset.load(path), path.name, arguments.epochs)
    report("probe", "Seconds foretold over seconds measured", figures)


if __name__ == "__main__":
    main()
