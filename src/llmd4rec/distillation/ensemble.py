"""The weights of an ensemble of teachers: what validation says beyond its own noise.

    scores = Σ_m w_m scores_m / Σ_m w_m          w whole numbers, chosen by hill climbing

A mean of models ranks better than each of them where their errors differ, and worse where one of them is much weaker.
One model's weight goes up or down by one as long as that makes the mean better on the validation targets by more than
the standard error of the difference, user by user: a small validation set prefers some mixture by chance alone, and a
student of that mixture is the worse for it. A model of weight 0 is unused. It is ensemble selection (Caruana et al.,
ICML 2004) with a start and the one-standard-error rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmd4rec.log import bar

#: The largest weight of a model.
MAX_WEIGHT = 4


def choose_weights(
    judge: Callable[[Sequence[int]], NDArray[np.float64]], start: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """The weights that hill climbing ends with, and the mean of what `judge` gives for them.

    Args:
        judge: how good an ensemble with the given weights is for each validation target; larger is better.
        start: weights to begin with, one for each model, not all of them 0.
    """
    found: dict[tuple[int, ...], NDArray[np.float64]] = {}
    with bar("weighing teachers", None, "mixtures") as progress:

        def judged(weights: tuple[int, ...]) -> NDArray[np.float64]:
            if weights not in found:
                found[weights] = judge(weights)
                progress.advance(1)
            return found[weights]

        here = tuple(start)
        judged(here)
        while True:
            near = [
                (*here[:number], here[number] + change, *here[number + 1 :])
                for number in range(len(here))
                for change in (-1, 1)
                if 0 <= here[number] + change <= MAX_WEIGHT
            ]
            better = [weights for weights in near if any(weights) and _surely_better(judged(weights), judged(here))]
            if not better:
                return here, float(judged(here).mean())
            here = max(better, key=lambda weights: float(judged(weights).mean()))


def _surely_better(new: NDArray[np.float64], old: NDArray[np.float64]) -> bool:
    """Whether the mean difference exceeds its standard error."""
    gain = new - old
    error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return bool(gain.mean() > error)


def describe_weights(weights: Mapping[str, int]) -> str:
    """`2 × a + b (c unused)`."""
    used = [f"{weight} × {name}" if weight > 1 else name for name, weight in weights.items() if weight]
    unused = [name for name, weight in weights.items() if not weight]
    return " + ".join(used) + (f" ({', '.join(unused)} unused)" if unused else "")
