"""The memory beside a model, where answers are given: the sum of both, and for which moment it answers."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.factors import SPACE, FactorRowScorer
from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.counting import DAY
from llmd4rec.scoring.memory.item_knn import ItemKNNScorer
from llmd4rec.scoring.memory.recency import Events, RecencyScorer
from llmd4rec.scoring.memory.sparse import SparseRows
from llmd4rec.scoring.memory.state import CountedMemory
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.row_sums import WeightedRowSum
from llmd4rec.scoring.rows import RowScorer

Floats = NDArray[np.float32]
#: If the clock is so many half-lives behind the last counted event, nothing of what was chosen is left, and requests
#: are answered for the moment of that event.
OLD_HALF_LIVES = 4


def beside(model: FactorRowScorer, memory: CountedMemory, weight: float, *, indexed: bool = False) -> WeightedRowSum:
    """A model and a memory as one scorer.

    Args:
        model: without an index.
        memory: with the weights of its parts.
        weight: of the model.
        indexed: the sum is searched through an index over the vectors of both side by side.
    """
    both = WeightedRowSum([model, memory], [weight, 1.0])
    if not indexed:
        return both
    tables = [part.vectors_ID for part, own in both.weighted() if own and part.vectors_ID is not None]
    return WeightedRowSum([model, memory], [weight, 1.0], index=ApproximateIndex(*tables))


def memory_of(scorer: RowScorer) -> CountedMemory | None:
    """The memory in what is served."""
    if isinstance(scorer, CountedMemory):
        return scorer
    members = scorer.members if isinstance(scorer, WeightedRowSum) else ()
    return next((member for member in members if isinstance(member, CountedMemory)), None)


def weights_of(memory: CountedMemory, weight: float) -> Mapping[str, float]:
    """The weights of the parts, and that of the model."""
    return {SPACE: weight, **{name: each for name, each in memory.weights.items() if each}}


def counted_up_to(memory: CountedMemory) -> dict[str, int | None]:
    """Until when a memory has counted, for export.json: its last event, and the moment that it answers for at most."""
    return {"last_event": memory.last_event, "as_of": memory.as_of}


def current_moment(recency: RecencyScorer | None) -> int:
    """For which moment a request is answered that names none.

    That is the current time, and at least the moment behind the last counted event, so that all that was counted
    counts. A log that ended long ago is answered for its end.
    """
    clock = int(time.time())
    last = None if recency is None else recency.events.last
    if recency is None or last is None:
        return clock
    settings = recency.events.settings
    ages = [OLD_HALF_LIVES * settings.half_life_days if settings.half_life_days else None, settings.window_days]
    oldest = min((days for days in ages if days is not None), default=None)
    if oldest is not None and clock > last + oldest * DAY:
        return last + 1
    return max(clock, last + 1)


def subset(memory: CountedMemory, rows: NDArray[np.int64]) -> CountedMemory:
    """A memory of a part of its catalogue, in that order; what is told of other items is forgotten."""
    if np.array_equal(rows, np.arange(memory.num_rows)):
        return memory
    place_I = np.full(memory.num_rows, -1, dtype=np.int64)
    place_I[rows] = np.arange(len(rows))
    parts: dict[str, RowScorer] = {}
    for name, part in memory.parts.items():
        if isinstance(part, ContentScorer):
            parts[name] = ContentScorer(
                np.ascontiguousarray(part.vectors_ID[rows]), part.mean_T, part.axes_TD, part.last
            )
        elif isinstance(part, TransitionScorer):
            within = _within(*part.arrays(), place_I, len(rows), part.settings.max_per_row)
            parts[name] = TransitionScorer(part.settings, within, len(rows), part.moment)
        elif isinstance(part, ItemKNNScorer):
            starts, columns, counts, chosen_I = part.arrays()
            within = _within(starts, columns, counts, place_I, len(rows), part.settings.max_per_row)
            parts[name] = ItemKNNScorer(part.settings, within, chosen_I[rows])
        elif isinstance(part, RecencyScorer):
            times, items = part.events.arrays()
            kept = np.flatnonzero(place_I[items] >= 0)
            events = Events(part.events.settings, times[kept], place_I[items[kept]].astype(np.int32), len(rows))
            parts[name] = RecencyScorer(events, len(rows), part.as_of)
    return CountedMemory(memory.settings, parts, memory.weights, memory.as_of, memory.missing)


def _within(
    starts: NDArray[np.int64],
    columns: NDArray[np.int32],
    counts: Floats,
    place_I: NDArray[np.int64],
    size: int,
    max_per_row: int,
) -> SparseRows:
    """Sparse rows of some items alone, which stand at other places; −1: at none."""
    owners = np.repeat(place_I, np.diff(starts))
    kept = np.flatnonzero((owners >= 0) & (place_I[columns] >= 0))
    kept = kept[np.lexsort((place_I[columns[kept]], owners[kept]))]
    starts = np.searchsorted(owners[kept], np.arange(size + 1))
    return SparseRows(starts, place_I[columns[kept]].astype(np.int32), counts[kept], max_per_row)
