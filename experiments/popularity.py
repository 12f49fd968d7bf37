"""What a finished run's served CRM would rank with more or less of the items' popularity, on validation.

    python experiments/popularity.py runs/mine data/mine [--shares -0.4 -0.2 0 0.2]

Each line adds `share · log(1 + training count)` to every item's score, alone and distilled, and says what that does to
NDCG@10 over all, tail, popular and cold items. Where a negative share costs next to nothing overall and gives much to
tail items, teaching has taken from them more than the log asks for: `logit_adjustment` is that share, taught.

Before that: how many of the true items are tail items, from each user's last training item to the test's. What was
popular in training is less so of what comes next, and less again of what comes after that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from llmd4rec.data.dataset import Dataset
from llmd4rec.distill.popularity import popularity_prior
from llmd4rec.distill.run import Run
from llmd4rec.errors import LLMD4RecError
from llmd4rec.evaluation.evaluate import evaluate
from llmd4rec.evaluation.slices import tail_items
from llmd4rec.models.ranker import Ranker

SHARES = (-0.4, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4)


class Shifted(Ranker):
    """A model whose scores have `bias_I` added, as one more dimension of states and table."""

    def __init__(self, ranker: Ranker, bias_I: Tensor) -> None:
        super().__init__()
        self.ranker, self.bias_I, self.max_length = ranker, bias_I, ranker.max_length

    @property
    def num_items(self) -> int:
        """As it was."""
        return self.ranker.num_items

    @property
    def dim(self) -> int:
        """One more."""
        return self.ranker.dim + 1

    def states(self, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """[B, L, dim]: a one behind each state."""
        states_BLD = self.ranker.states(items_BL, lengths_B)
        return torch.cat([states_BLD, torch.ones_like(states_BLD[..., :1])], -1)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        """[I, dim]: the bias behind each row."""
        bias_I = self.bias_I if items is None else self.bias_I[items]
        table_ID = self.ranker.item_table(items)
        return torch.cat([table_ID, bias_I.to(table_ID)[:, None]], 1)


def main() -> None:
    """Prints a line for each share, of the CRM alone and of the distilled one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("data", type=Path, help="the prepared data set it was trained on")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="default: %(default)s")
    arguments = parser.parse_args()
    run, data = Run.open(arguments.run), Dataset.load(arguments.data)
    run.require(data)
    tail, last = tail_items(data.train_counts), data.train_end - 1
    for name, positions in {
        "last training items": last,
        "validation targets": data.valid,
        "test targets": data.test,
    }.items():
        print(f"{name}: {tail[data.items[positions]].mean():.1%} tail items")
    counts_I, groups = torch.from_numpy(data.train_counts), ("tail", "head", "cold")
    print(f"{'CRM':9}  share     all  " + "  ".join(f"{name:>6}" for name in groups))
    for model, stage in run.models():
        if model != "crm":
            continue
        ranker = run.load(model, stage)
        for share in arguments.shares:
            shifted = Shifted(ranker, popularity_prior(counts_I, share))
            found = evaluate(shifted, data, split="valid", seen=run.settings.evaluation.seen)
            values = [found.metrics["ndcg@10"], *(found.slices[name].get("ndcg@10", float("nan")) for name in groups)]
            print(f"{stage:9}  {share:+5.2f}  " + "  ".join(f"{value:.4f}" for value in values), flush=True)


if __name__ == "__main__":
    try:
        main()
    except LLMD4RecError as error:
        sys.exit(f"error: {error}")
