"""How much each of several teachers counts in their consensus: what validation says beyond its own noise.

    scores = Σ_m c_m scores_m / Σ_m c_m          c whole numbers, chosen by hill climbing

A mean of models ranks better than each of them where their errors differ, and worse where one of them is much weaker.
From where the climb begins, one model's count goes up or down by one as long as that makes the mean better on the
validation targets by more than the standard error of the difference, user by user: a small validation set prefers some
mixture by chance alone, and a student of that mixture is the worse for it. A count of 0 leaves a model out. It is
ensemble selection (Caruana et al., ICML 2004) with a start and the one-standard-error rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmd4rec.log import bar

#: No model counts more often than this.
MOST = 4


def best_counts(
    judge: Callable[[Sequence[int]], NDArray[np.float64]], start: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """The counts that hill climbing ends with, and what `judge` says of them in the mean.

    Args:
        judge: how good a consensus with the given counts is for each validation target; larger is better.
        start: counts to begin with, one for each model, not all of them 0.
    """
    found: dict[tuple[int, ...], NDArray[np.float64]] = {}
    with bar("weighing teachers", None, "mixtures") as progress:

        def judged(counts: tuple[int, ...]) -> NDArray[np.float64]:
            if counts not in found:
                found[counts] = judge(counts)
                progress.advance(1)
            return found[counts]

        here = tuple(start)
        judged(here)
        while True:
            near = [
                (*here[:number], here[number] + change, *here[number + 1 :])
                for number in range(len(here))
                for change in (-1, 1)
                if 0 <= here[number] + change <= MOST
            ]
            better = [counts for counts in near if any(counts) and _surely_better(judged(counts), judged(here))]
            if not better:
                return here, float(judged(here).mean())
            here = max(better, key=lambda counts: float(judged(counts).mean()))


def _surely_better(new: NDArray[np.float64], old: NDArray[np.float64]) -> bool:
    """Whether the mean difference exceeds its standard error."""
    gain = new - old
    error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return bool(gain.mean() > error)


def in_words(names: Sequence[str], counts: Sequence[int]) -> str:
    """`2 × a + b (c left out)`."""
    heard = [f"{count} × {name}" if count > 1 else name for name, count in zip(names, counts, strict=True) if count]
    left_out = [name for name, count in zip(names, counts, strict=True) if not count]
    return " + ".join(heard) + (f" ({', '.join(left_out)} left out)" if left_out else "")
