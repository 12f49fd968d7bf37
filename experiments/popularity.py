"""What a finished run's models would rank with more or less of the items' popularity, on validation.

    python experiments/popularity.py runs/mine data/mine [--taus -0.4 -0.2 0 0.2]

Each line adds `tau · log(1 + training count)` to every item's score, of the undistilled model, of the distilled one of
each round and of the mean of the teachers, and says what that does to NDCG@10 over all, tail, popular and cold items.
Where a negative tau costs next to nothing overall and gives much to tail items, distillation has taken from them more
than the log asks for: logit adjustment (`distill.logit_adjustment`) teaches with such a tau.

Before that: how many of the true items are tail items, from each user's last training item to the test's. What was
popular in training is less so of what comes next, and less again of what comes after that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.logit_adjustment import popularity_prior
from llmd4rec.errors import LLMD4RecError
from llmd4rec.evaluation.slices import slice_masks, tail_items
from llmd4rec.evaluation.validation import EnsembleValidation
from llmd4rec.runs.run import Run

TAUS = (-0.4, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4)


def main(given: Sequence[str] | None = None) -> None:
    """Prints a line for each tau, of the undistilled model, the distilled ones and the mean of the teachers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("data", type=Path, help="the prepared data set it was trained on")
    parser.add_argument("--taus", nargs="+", type=float, default=TAUS, help="default: %(default)s")
    arguments = parser.parse_args(given)
    run, data = Run.open(arguments.run), Dataset.load(arguments.data)
    run.require(data)
    tail = tail_items(data.train_counts)
    last = data.train_end[data.train_end > data.offsets[:-1]] - 1
    steps = {"last training items": last, "validation targets": data.valid, "test targets": data.test}
    for name, positions in steps.items():
        print(f"{name}: {tail[data.items[positions]].mean():.1%} tail items")
    done = [stage for stage in run.plan if stage.id in run.record.stages]
    models = {stage.id: [run.load(stage.id)] for stage in done if stage.role == "model"}
    if teachers := [run.load(stage.id) for stage in done if stage.role == "teacher"]:
        models["teachers"] = teachers
    counts_I, groups = torch.from_numpy(data.train_counts), ("tail", "head", "cold")
    print(f"{'model':17}    tau     all  " + "  ".join(f"{name:>6}" for name in groups))
    for name, ensemble in models.items():
        judge = EnsembleValidation(ensemble, data, run.settings.evaluation.filter_seen)
        masks = slice_masks(data, judge.positions)
        for tau in arguments.taus:
            found = judge([1] * len(ensemble), popularity_prior(counts_I, tau))
            parts = (found[masks[group]] for group in groups)
            values = [found.mean(), *(part.mean() if len(part) else float("nan") for part in parts)]
            print(f"{name:17}  {tau:+5.2f}  " + "  ".join(f"{value:.4f}" for value in values), flush=True)


if __name__ == "__main__":
    try:
        main()
    except LLMD4RecError as error:
        sys.exit(f"error: {error}")
