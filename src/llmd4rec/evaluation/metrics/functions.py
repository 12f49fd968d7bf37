"""Ranking metrics as functions of the target's rank.

Leave-one-out has exactly one relevant item per user, so every metric depends on its rank alone. All functions
take ranks of any shape, 1 is best, and return one value in [0, 1] per rank; average them to get the figure of
a table.

What is defined: k may be larger than the catalogue, and then counts all of it; a target that is no candidate has a rank
beyond every k; a mean over nobody does not exist, and is left out rather than called 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ranks = NDArray[np.integer]

#: The cutoffs every table of the field uses.
CUTOFFS = (5, 10, 20)


def hit_rate(ranks: Ranks, k: int) -> Floats:
    """HR@k: 1 if the target is among the first k items, else 0. With one relevant item it is also Recall@k.

    Source: Deshpande & Karypis, "Item-based top-N recommendation algorithms", TOIS 2004.
    """
    return (np.asarray(ranks) <= k).astype(np.float64)


def ndcg(ranks: Ranks, k: int) -> Floats:
    """NDCG@k: 1 / log2(1 + rank) if rank ≤ k, else 0. The ideal gain is 1, so DCG and NDCG are the same.

    Source: Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002, with the
    discount log2(1 + rank).
    """
    ranks = np.asarray(ranks)
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def mrr(ranks: Ranks, k: int) -> Floats:
    """MRR@k: 1 / rank if rank ≤ k, else 0.

    Source: Voorhees, "The TREC-8 question answering track report", 1999.
    """
    ranks = np.asarray(ranks)
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def per_user_metrics(ranks: Ranks, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Floats]:
    """`hr@k`, `ndcg@k` and `mrr@k` of every user at every cutoff, in that order of k; each [U].

    Raises:
        ValueError: a rank is below 1, which no ranking gives and which would count for more than the best.
    """
    if np.size(ranks) and np.min(ranks) < 1:
        raise ValueError(f"a rank is {np.min(ranks)}; the best is 1")
    functions = {"hr": hit_rate, "ndcg": ndcg, "mrr": mrr}
    return {f"{name}@{k}": metric(ranks, k) for k in cutoffs for name, metric in functions.items()}


def mean_metrics(ranks: Ranks, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """The averages of :func:`per_user_metrics`; empty for no ranks, as nothing has no mean."""
    if np.size(ranks) == 0:
        return {}
    return {name: float(values.mean()) for name, values in per_user_metrics(ranks, cutoffs).items()}


def coverage(top: NDArray[np.integer], num_items: int) -> float:
    """Catalogue coverage: the share of all items that are recommended to anyone.

    Args:
        top: recommended item indices, [U, k]; negative entries are no item.
        num_items: |I|.

    Source: Ge, Delgado-Battenfeld & Jannach, "Beyond accuracy", RecSys 2010.
    """
    return len(np.unique(top[top >= 0])) / num_items


def popularity(top: NDArray[np.integer], train_counts: NDArray[np.integer]) -> float:
    """The mean training count of the recommended items, over all users and places; 0 if nothing was
    recommended.

    Args:
        top: recommended item indices, [U, k]; negative entries are no item.
        train_counts: how often each item occurs in the training part, [I].
    """
    recommended = top[top >= 0]
    return float(np.asarray(train_counts)[recommended].mean()) if recommended.size else 0.0
