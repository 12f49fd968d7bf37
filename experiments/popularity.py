"""What a finished run's served CRM would rank with more or less of the items' popularity, on validation.

    python experiments/popularity.py runs/mine data/mine [--shares -0.4 -0.2 0 0.2]

Each line adds `share · log(1 + training count)` to every item's score, of the CRM alone, the distilled one and the mean
of the wide ones, and says what that does to NDCG@10 over all, tail, popular and cold items. Where a negative share
costs next to nothing overall and gives much to tail items, teaching has taken from them more than the log asks for:
`logit_adjustment` is that share, taught.

Before that: how many of the true items are tail items, from each user's last training item to the test's. What was
popular in training is less so of what comes next, and less again of what comes after that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.logit_adjustment import popularity_prior
from llmd4rec.errors import LLMD4RecError
from llmd4rec.evaluation.evaluate import EnsembleValidation
from llmd4rec.evaluation.slices import slice_masks, tail_items
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.runs.run import Run

SHARES = (-0.4, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4)


def main() -> None:
    """Prints a line for each share, of the CRM alone, the distilled one and the wide ones together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("data", type=Path, help="the prepared data set it was trained on")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="default: %(default)s")
    arguments = parser.parse_args()
    run, data = Run.open(arguments.run), Dataset.load(arguments.data)
    run.require(data)
    tail = tail_items(data.train_counts)
    last = data.train_end[data.train_end > data.offsets[:-1]] - 1
    steps = {"last training items": last, "validation targets": data.valid, "test targets": data.test}
    for name, positions in steps.items():
        print(f"{name}: {tail[data.items[positions]].mean():.1%} tail items")
    models: dict[str, list[SequenceEncoder]] = {
        stage: [run.load(model, stage)] for model, stage in run.models() if model == "crm"
    }
    if wide := [run.load_stage("wide", name) for name in run.record.stages if name.startswith("wide")]:
        models["wide"] = wide
    counts_I, groups = torch.from_numpy(data.train_counts), ("tail", "head", "cold")
    print(f"{'model':9}  share     all  " + "  ".join(f"{name:>6}" for name in groups))
    for name, rankers in models.items():
        judge = EnsembleValidation(rankers, data, run.settings.evaluation.seen)
        masks = slice_masks(data, judge.positions)
        for share in arguments.shares:
            found = judge([1] * len(rankers), popularity_prior(counts_I, share))
            parts = (found[masks[group]] for group in groups)
            values = [found.mean(), *(part.mean() if len(part) else float("nan") for part in parts)]
            print(f"{name:9}  {share:+5.2f}  " + "  ".join(f"{value:.4f}" for value in values), flush=True)


if __name__ == "__main__":
    try:
        main()
    except LLMD4RecError as error:
        sys.exit(f"error: {error}")
