"""Why an item was recommended: items of the history by what the model learned, and what the memory knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.query import Query
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import Reason, ReasonKind
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.counting import DAY
from llmd4rec.scoring.memory.item_knn import ItemKNNScorer
from llmd4rec.scoring.memory.recency import RecencyScorer
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.row_sums import SumRowQuery, WeightedRowSum
from llmd4rec.scoring.rows import RowQuery, RowScorer

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: How many reasons are given for each recommended item.
MAX_REASONS = 3
#: What each part of a memory that reads a history says of its items.
_KINDS: dict[type[RowScorer], ReasonKind] = {
    ContentScorer: "reads-like",
    TransitionScorer: "follows",
    ItemKNNScorer: "chosen-with",
}


@dataclass(frozen=True)
class _Effects:
    """What one part of the scorer has to say of the recommended rows.

    Attributes:
        items: rows of the history, as many as there are effects of each recommended row; None: it reads no history.
        effects_NK: how far the score of each recommended row falls without each of these.
        numbers_NK: what is told of each; None: nothing is.
    """

    kind: ReasonKind
    items: Sequence[int | None]
    effects_NK: Floats
    numbers_NK: Floats | None = None

    @property
    def told_NK(self) -> Floats:
        """:attr:`numbers_NK`, 0 where nothing is told."""
        return np.zeros_like(self.effects_NK) if self.numbers_NK is None else self.numbers_NK


def find_reasons(
    snapshot: Snapshot, query: Query, scored: RowQuery | None, rows: Rows, max_length: int
) -> list[tuple[Reason, ...]]:
    """For each recommended row what had the largest effects on its score.

    An item's effect is how far the score, relative to the catalogue's mean score, falls when the item is left out of
    the history. All shortened histories are read together. Without its only item a history has no score, and the
    whole score is the item's effect. Each part of a memory has effects of its own, of which those that speak for an
    item are told; what is chosen now has no item, and is compared with the catalogue's mean alone.

    Args:
        snapshot: catalogue and scorer.
        query: the request.
        scored: its whole history, as the scorer has read it; None where no item of it is known.
        rows: what is recommended.
        max_length: how many items of a history the scorer is given.
    """
    if scored is None:
        return [()] * len(rows)
    parts = list(_effects(snapshot, query, scored, rows, max_length))
    effects_NK = np.concatenate([part.effects_NK for part in parts])
    numbers_NK = np.concatenate([part.told_NK for part in parts])
    said: list[tuple[ReasonKind, int | None]] = [(part.kind, item) for part in parts for item in part.items]
    by_model = np.array([kind == "model" for kind, _ in said])
    told_NK = by_model[:, None] | ((effects_NK > 0) & (numbers_NK > 0))
    order_NK = np.argsort(np.where(told_NK, -np.abs(effects_NK), np.float32(np.inf)), axis=0, kind="stable")
    return [
        tuple(
            _reason(snapshot, said[int(at)], float(effects_NK[at, place]), float(numbers_NK[at, place]))
            for at in order_NK[:MAX_REASONS, place].tolist()
            if told_NK[at, place]
        )
        for place in range(len(rows))
    ]


def _reason(snapshot: Snapshot, said: tuple[ReasonKind, int | None], effect: float, number: float) -> Reason:
    catalogue, (kind, row) = snapshot.catalogue, said
    item_id, title = (None, None) if row is None else (catalogue.ids[row], catalogue.title(row))
    return Reason(item_id, title, effect) if kind == "model" else Reason(item_id, title, effect, kind, number)


def _effects(snapshot: Snapshot, query: Query, scored: RowQuery, rows: Rows, max_length: int) -> Iterator[_Effects]:
    """Those of each part of the scorer."""
    scorer = snapshot.scorer
    parts: list[tuple[RowScorer, RowQuery, float]] = [(scorer, scored, 1.0)]
    if isinstance(scorer, WeightedRowSum) and isinstance(scored, SumRowQuery):
        used = [(part, weight) for part, weight in scorer.weighted() if weight]
        parts = [(part, one, weight) for (part, weight), one in zip(used, scored.members, strict=True)]
    present = snapshot.catalogue.present
    distinct = list(dict.fromkeys(query.history[-max_length:]))
    model_NK = np.zeros((len(distinct), len(rows)), dtype=np.float32)  # by all that is no part of a memory
    for part, whole, weight in parts:
        if isinstance(part, RecencyScorer):
            effects_1K = np.float32(weight) * whole.centred_scores(rows, present)
            yield _Effects("recent", [None], effects_1K, _chosen(part, query.now, rows)[None])
        elif isinstance(part, ContentScorer | TransitionScorer | ItemKNNScorer):
            items = list(dict.fromkeys(query.history[-min(max_length, _read_by(part)) :]))
            effects_NK = np.float32(weight) * _left_out(part, query, whole, rows, present, items, max_length)
            yield _Effects(_KINDS[type(part)], items, effects_NK, _told(part, items, rows))
        else:
            model_NK += np.float32(weight) * _left_out(part, query, whole, rows, present, distinct, max_length)
    if not all(
        isinstance(part, RecencyScorer | ContentScorer | TransitionScorer | ItemKNNScorer) for part, _, _ in parts
    ):
        yield _Effects("model", distinct, model_NK)


def _left_out(
    part: RowScorer,
    query: Query,
    whole: RowQuery,
    rows: Rows,
    present: NDArray[np.bool_],
    distinct: Sequence[int],
    max_length: int,
) -> Floats:
    """How far the score of each row falls when each of some items is left out of the history, [items, rows]."""
    # Where in the history the items are that are kept: the times of an item go with it.
    kept = [[at for at, row in enumerate(query.history) if row != out][-max_length:] for out in distinct]
    not_empty = [place for place, positions in enumerate(kept) if positions]
    windows = [[query.history[at] for at in kept[place]] for place in not_empty]
    times = [None if query.times is None else [query.times[at] for at in kept[place]] for place in not_empty]
    effects_NK = np.repeat(whole.centred_scores(rows, present), len(distinct), axis=0)
    if windows:
        shortened = part.prepare(windows, times, [query.now] * len(windows))
        effects_NK[not_empty] -= shortened.centred_scores(rows, present)
    return effects_NK


def _read_by(part: ContentScorer | TransitionScorer | ItemKNNScorer) -> int:
    """How many of the most recent items it reads."""
    if isinstance(part, ItemKNNScorer):
        return part.settings.last
    return len(part.last if isinstance(part, ContentScorer) else part.settings.last)


def _told(part: RowScorer, items: Sequence[int], rows: Rows) -> Floats | None:
    """What is said of each item of the history and each recommended row, [items, rows]."""
    if isinstance(part, ContentScorer):
        cosines_NK: Floats = part.vectors_ID[list(items)] @ part.vectors_ID[rows].T
        return cosines_NK
    if isinstance(part, TransitionScorer | ItemKNNScorer):
        counted = part.followers if isinstance(part, TransitionScorer) else part.together
        counts_NK = np.zeros((len(items), len(rows)), dtype=np.float32)
        for counts_K, item in zip(counts_NK, items, strict=True):
            others, counts = counted(item)
            if len(others):
                place = np.minimum(others.searchsorted(rows), len(others) - 1)
                counts_K[:] = np.where(others[place] == rows, counts[place], 0)
        return counts_NK
    return None


def _chosen(part: RecencyScorer, now: int | None, rows: Rows) -> Floats:
    """How often each row was chosen in the seven days before a moment."""
    moment = part.moment(now)
    times, items = part.events.arrays()
    first, end = times.searchsorted([moment - 7 * DAY, moment])
    counts: Floats = np.bincount(items[first:end], minlength=part.num_rows)[rows].astype(np.float32)
    return counts
