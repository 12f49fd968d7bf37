"""How much age counts in training: where a log changes with time, newer interactions are drawn more often.

    probability that a pass takes an interaction  =  max(2^(-age / half-life), OLD)

A pass over such a log is shorter and mostly new, and no interaction is forgotten. Whether a log changes, counts tell
before anything is trained: what follows what is counted with that half-life and without any, and each predicts the
validation targets. (That the newest part of a log can teach more than all of it: Verachtert et al., Are we forgetting
something?, 2022.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.arrays import Int64Array
from llmd4rec.data.batching import Histories
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError
from llmd4rec.evaluation.memory_weights import surely_better
from llmd4rec.evaluation.validation import validation_values
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.settings import Memory, Transitions
from llmd4rec.scoring.memory.sparse import SparseRows
from llmd4rec.scoring.memory.state import count_memory
from llmd4rec.scoring.memory.transitions import TransitionScorer

DAY = 86_400.0
#: The half-life where a log changes with time. It is longer where a pass would take less than that share of the log.
HALF_LIFE_DAYS, LEAST_SHARE = 30.0, 0.1
#: However old an interaction is, one pass of twenty takes it.
OLD = 0.05
#: How many validation targets tell whether a log changes.
TARGETS = 3_000


class ByAge(NamedTuple):
    """What a pass takes.

    Attributes:
        half_life_days: the half-life.
        preference: how much more often than others each interaction is taken, [N].
        positions: how many training positions a pass takes, about.
    """

    half_life_days: float
    preference: NDArray[np.float64]
    positions: int


class Drift(NamedTuple):
    """What counts say of a log that may change with time.

    Attributes:
        half_life_days: of training; None: it does not change, or nothing tells.
        aged, plain: NDCG@10 on validation of transitions, counted with that half-life and without any.
    """

    half_life_days: float | None
    aged: float
    plain: float


def by_age(histories: Histories, half_life_days: float) -> ByAge:
    """What a pass takes with a half-life, counted back from the newest training interaction.

    Raises:
        DataError: the histories have no times.
    """
    ages, trained = _ages(histories)
    preference = np.ones(len(ages))
    preference[trained] = _taken(ages[trained], half_life_days)
    return ByAge(half_life_days, preference, max(1, round(float(preference[trained].sum()))))


def drift(data: Dataset, *, filter_seen: bool = True, seed: int = 0) -> Drift:
    """Whether newer interactions predict the validation targets better, and the half-life to train with then.

    Only where a moment divides the log: targets of leave-one-out are of all times.

    Args:
        data: to train on.
        filter_seen: whether items of the history are no candidates.
        seed: of the users that are drawn, where there are more than :data:`TARGETS`.
    """
    nothing = Drift(None, float("nan"), float("nan"))
    if not data.is_temporal or data.event_times is None or not len(data.valid):
        return nothing
    both = Transitions(half_life_days=HALF_LIFE_DAYS, recent_weight=1.0)  # with a half-life and without, in one count
    counted = count_memory(Memory(content=None, recency=None, transitions=both), data, None)
    transitions = None if counted is None else counted.transitions
    if transitions is None:
        return nothing
    starts, columns, numbers_NC = transitions.arrays()
    one, values = both.model_copy(update={"recent_weight": 0.0}), []
    for number in (1, 0):
        rows = SparseRows(starts, columns, np.ascontiguousarray(numbers_NC[:, number : number + 1]), one.max_per_row)
        scorer = TransitionScorer(one, rows, data.num_items, transitions.moment)
        ranker = RowsScorer(scorer, "transitions", max_length=len(one.last))
        values.append(validation_values(ranker, data, filter_seen, TARGETS, seed))
    surely = surely_better(values[0], values[1])
    half_life = _long_enough(data) if surely else None
    return Drift(half_life, float(values[0].mean()), float(values[1].mean()))


def _long_enough(data: Dataset) -> float:
    """:data:`HALF_LIFE_DAYS`, doubled until a pass takes enough."""
    ages, trained = _ages(data)
    days = HALF_LIFE_DAYS
    while _taken(ages[trained], days).mean() < LEAST_SHARE:
        days *= 2
    return days


def halved(age_days: NDArray[np.float64], half_life_days: float) -> NDArray[np.float64]:
    """2^(-age / half-life), and more than 0 however old."""
    left: NDArray[np.float64] = np.exp2(-np.minimum(age_days / half_life_days, 1000))
    return left


def _taken(age_days: NDArray[np.float64], half_life_days: float) -> NDArray[np.float64]:
    """The probability that a pass takes an interaction of that age."""
    return np.maximum(halved(age_days, half_life_days), OLD)


def _ages(histories: Histories) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each interaction the days before the newest training position, and whether it is one, [N]."""
    times: Int64Array | None = histories.event_times
    if times is None:
        raise DataError(
            "the data set has no times, so no interaction is older than another",
            "Prepare it from a log with timestamps, or leave out training.half_life_days.",
        )
    place = np.arange(len(times))
    trained: NDArray[np.bool_] = place < np.repeat(histories.train_end, np.diff(histories.offsets))
    starts = np.asarray(histories.offsets[:-1])
    trained[starts[starts < len(place)]] = False  # the first item of a history is no target
    newest = times[trained].max() if trained.any() else 0
    return np.maximum(newest - np.asarray(times, np.float64), 0) / DAY, trained
