"""How much each of several teachers counts in their consensus: as much as validation says.

    scores = Σ_m c_m scores_m / Σ_m c_m          c whole numbers, chosen by hill climbing from 1, 1, ..., 1

A mean of models ranks better than each of them where their errors differ, and worse where one of them is much weaker.
Starting from the plain mean, one model's count goes up or down by one as long as that makes the mean better on the
validation targets; a count of 0 leaves a model out. Counts are few and small, so there is little to fit by chance. It
is ensemble selection (Caruana et al., ICML 2004) begun with everybody in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmd4rec.progress import bar

#: No model counts more often than this.
MOST = 4


def best_counts(judge: Callable[[Sequence[int]], float], models: int) -> tuple[tuple[int, ...], float]:
    """The counts that hill climbing ends with, and what `judge` says of them.

    Args:
        judge: how good a consensus with the given counts is; larger is better.
        models: how many there are, at least one.
    """
    found: dict[tuple[int, ...], float] = {}
    with bar("weighing teachers", None, "mixtures") as progress:

        def judged(counts: tuple[int, ...]) -> float:
            if counts not in found:
                found[counts] = judge(counts)
                progress.advance(1)
            return found[counts]

        here = (1,) * models
        judged(here)
        while True:
            near = [
                (*here[:number], here[number] + change, *here[number + 1 :])
                for number in range(models)
                for change in (-1, 1)
                if 0 <= here[number] + change <= MOST
            ]
            best = max((counts for counts in near if any(counts)), key=judged, default=here)
            if judged(best) <= judged(here):
                return here, judged(here)
            here = best


def in_words(names: Sequence[str], counts: Sequence[int]) -> str:
    """`2 × a + b (c left out)`."""
    heard = [f"{count} × {name}" if count > 1 else name for name, count in zip(names, counts, strict=True) if count]
    left_out = [name for name, count in zip(names, counts, strict=True) if not count]
    return " + ".join(heard) + (f" ({', '.join(left_out)} left out)" if left_out else "")
