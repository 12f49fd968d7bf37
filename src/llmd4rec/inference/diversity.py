"""Re-ranking for diversity: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) on item embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
#: The best `POOL_FACTOR` · k candidates are re-ranked, and at least `MIN_POOL`.
POOL_FACTOR, MIN_POOL = 5, 50


def pool_size(k: int) -> int:
    """How many of the best candidates are re-ranked for k items."""
    return max(MIN_POOL, POOL_FACTOR * k)


def maximal_marginal_relevance(scores_N: Floats, vectors_ND: Floats, k: int, diversity: float) -> list[int]:
    """The positions of k items, chosen one after another, each the one with the largest

        (1 - diversity) · score - diversity · (largest cosine with an item chosen before)

    where scores are scaled to 0 ... 1 over the N candidates. The first is the one with the best score.

    Args:
        scores_N: best first.
        vectors_ND: the candidates' embeddings.
        diversity: 0 keeps the order of the scores.
    """
    spread = float(scores_N[0] - scores_N[-1]) if len(scores_N) else 0.0
    relevance = (scores_N - scores_N[-1]) / spread if spread > 0 else np.zeros_like(scores_N)
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = vectors_ND / np.where(norms > 0, norms, 1)
    max_cosine_N = np.full(len(scores_N), -1.0, dtype=np.float32)
    chosen: list[int] = []
    remaining = np.ones(len(scores_N), dtype=bool)
    while remaining.any() and len(chosen) < k:
        gain = (1 - diversity) * relevance - (diversity * max_cosine_N if chosen else 0)
        best = int(np.argmax(np.where(remaining, gain, -np.inf)))
        chosen.append(best)
        remaining[best] = False
        max_cosine_N = np.maximum(max_cosine_N, unit_ND @ unit_ND[best])
    return chosen
