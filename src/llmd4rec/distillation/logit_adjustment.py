"""Logit adjustment: popularity that a student need not learn from its teachers (Menon et al., ICLR 2021).

    while it learns   scores = states @ table.T + tau · log(1 + count)
    when it serves    scores = states @ table.T

A mean of teachers keeps what they agree on, which is popular items, and thins out what each of them alone sees in rare
ones; its student has the same leaning. A student that learns with such a prior, and serves without it, gives rare items
some of that back. Nothing is added to what is served.

How much is asked of the teachers, on validation: a fifth, or less where their mean without so much of it ranks worse by
more than next to nothing. (A student leans more than its teachers: what it takes to balance them is too little for it.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

#: What may be chosen, from most to least.
TAUS = (0.2, 0.15, 0.1, 0.05)
#: The largest relative loss of the teachers' mean NDCG.
MAX_LOSS = 0.005


def popularity_prior(counts_I: Tensor, tau: float) -> Tensor:
    """`tau` · log(1 + count) for each item, [I] in 32 bits.

    Args:
        counts_I: how often each item occurs in training.
        tau: with 1, all of the items' popularity would be left to the prior.
    """
    return counts_I.double().log1p().mul(tau).float()


def choose_tau(judge: Callable[[float], NDArray[np.float64]]) -> float:
    """The largest of :data:`TAUS` that costs the teachers at most :data:`MAX_LOSS` of their NDCG, or 0.

    Args:
        judge: NDCG of the teachers' scores, with so much of the prior *taken away*, for each validation target.
    """
    min_ndcg = (1 - MAX_LOSS) * judge(0.0).mean()
    return next((tau for tau in TAUS if judge(tau).mean() >= min_ndcg), 0.0)
