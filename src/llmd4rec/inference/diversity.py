"""Re-ranking for variety: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over the item table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
#: So many times k of the best candidates, and at least :data:`LEAST_POOL`, are chosen from.
POOL, LEAST_POOL = 5, 50


def pool_size(k: int) -> int:
    """How many of the best candidates are chosen from."""
    return max(LEAST_POOL, POOL * k)


def most_marginal(scores_N: Floats, vectors_ND: Floats, k: int, diversity: float) -> list[int]:
    """The places of k items, chosen one after another, each the one with the largest

        (1 - diversity) · score - diversity · (largest cosine with an item chosen before)

    where scores are stretched to 0 ... 1 over the N candidates. The first is the one with the best score.

    Args:
        scores_N: best first.
        vectors_ND: the candidates' rows of the item table.
        diversity: 0 keeps the order of the scores.
    """
    spread = float(scores_N[0] - scores_N[-1]) if len(scores_N) else 0.0
    relevance = (scores_N - scores_N[-1]) / spread if spread > 0 else np.zeros_like(scores_N)
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = vectors_ND / np.where(lengths > 0, lengths, 1)
    closest = np.full(len(scores_N), -1.0, dtype=np.float32)
    chosen: list[int] = []
    left = np.ones(len(scores_N), dtype=bool)
    while left.any() and len(chosen) < k:
        gain = (1 - diversity) * relevance - (diversity * closest if chosen else 0)
        best = int(np.argmax(np.where(left, gain, -np.inf)))
        chosen.append(best)
        left[best] = False
        closest = np.maximum(closest, unit_ND @ unit_ND[best])
    return chosen
