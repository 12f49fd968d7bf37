"""What a list of a user's own last items would score, were seen items not filtered (`evaluation.filter_seen: false`).

    python experiments/repeats.py data/yelp [data/beauty ...]

Published figures rarely say whether seen items are filtered. Where people come back to items, that decides more than
any model: this list needs none, and no figure with seen items kept means much below it. With them filtered it scores
nothing.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from llmd4rec.data.dataset import Dataset, Int64Array

K = 10


def main() -> None:
    """Prints one line per data set: HR@10 and NDCG@10 on the test targets, and how many were had before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="prepared data sets")
    for folder in parser.parse_args().data:
        data = Dataset.load(folder)
        rank = last_seen_ranks(data.offsets, data.items, data.test)
        found = rank[(rank > 0) & (rank <= K)]
        print(
            f"{folder.name}: {np.count_nonzero(rank) / len(rank):.1%} of {len(rank):,} test targets were had before; "
            f"the last items again, latest first: HR@{K} {len(found) / len(rank):.4f}, "
            f"NDCG@{K} {sum(1 / math.log2(1 + r) for r in found) / len(rank):.4f}"
        )


def last_seen_ranks(offsets: Int64Array, items: np.ndarray, targets: Int64Array) -> Int64Array:
    """The place of each target among the distinct items before it, latest first, from 1; 0 where it is none of them.

    Args:
        offsets: [U + 1].
        items: [N].
        targets: flat positions.
    """
    ranks = np.zeros(len(targets), dtype=np.int64)
    for index, (target, user) in enumerate(zip(targets, np.searchsorted(offsets, targets, "right") - 1, strict=True)):
        history = items[offsets[user] : target][::-1]
        where = np.flatnonzero(history == items[target])
        if len(where):
            ranks[index] = len(np.unique(history[: where[0]])) + 1
    return ranks


if __name__ == "__main__":
    main()
