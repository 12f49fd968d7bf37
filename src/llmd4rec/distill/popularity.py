"""How much of the items' popularity a CRM need not learn from its teachers: logit adjustment (Menon et al., ICLR 2021).

    while it learns   scores = states @ table.T + share · log(1 + count)
    when it serves    scores = states @ table.T

A mean of teachers keeps what they agree on, which is popular items, and thins out what each of them alone sees in rare
ones; its student has the same leaning. Whoever learns scores that are read with such a prior, and serves them without,
gives rare items some of that back. Nothing is added to what is served.

How much is asked of the teachers, on validation: as much as it takes for their mean to be better than the CRM alone on
rare items by the same part as it is overall, unless that costs more than next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.evaluation.slices import Mask

#: What may be chosen.
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
#: What a share may cost of the teachers' mean NDCG.
BEARABLE = 0.0025


def popularity_prior(counts_I: Tensor, share: float) -> Tensor:
    """`share` · log(1 + count) for each item, [I] in 32 bits.

    Args:
        counts_I: how often each item occurs in training.
        share: with 1, all of the items' popularity would be left to the prior.
    """
    return counts_I.double().log1p().mul(share).float()


def balanced_share(judge: Callable[[float], NDArray[np.float64]], alone_U: NDArray[np.float64], rare_U: Mask) -> float:
    """The smallest share with which rare items gain what all do: 0 or one of :data:`SHARES`, less where that is dear.

    Args:
        judge: NDCG of the teachers' scores, with so much of the prior *taken away*, for each of U validation targets.
        alone_U: that of the CRM that has had no teacher.
        rare_U: which targets are rare items.
    """
    chosen, without = 0.0, judge(0.0)
    if not rare_U.any():
        return chosen
    found = without
    for share in SHARES:
        # The same relative gain, written so that nothing is divided by what may be 0.
        if found[rare_U].mean() * alone_U.mean() >= found.mean() * alone_U[rare_U].mean():
            break
        found = judge(share)
        if found.mean() < (1 - BEARABLE) * without.mean():
            break
        chosen = share
    return chosen
