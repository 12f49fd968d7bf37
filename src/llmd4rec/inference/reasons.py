"""Which items of a history changed the score of a recommended item most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.query import Query
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import Reason
from llmd4rec.scoring.rows import RowQuery

Rows = NDArray[np.int64]
#: How many reasons are given for each recommended item.
MAX_REASONS = 3


def find_reasons(
    snapshot: Snapshot, query: Query, scored: RowQuery | None, rows: Rows, max_length: int
) -> list[tuple[Reason, ...]]:
    """For each recommended row the items of the history with the largest effect on its score.

    An item's effect is how far the score, relative to the catalogue's mean score, falls when the item is left out of
    the history. All shortened histories are read together. Without its only item a history has no score, and the
    whole score is the item's effect.

    Args:
        snapshot: catalogue and scorer.
        query: the request.
        scored: its whole history, as the scorer has read it; None where no item of it is known.
        rows: what is recommended.
        max_length: how many items of a history the scorer is given.
    """
    if scored is None:
        return [()] * len(rows)
    distinct = list(dict.fromkeys(query.history[-max_length:]))
    # Where in the history the items are that are kept: the times of an item go with it.
    kept = [[at for at, row in enumerate(query.history) if row != out][-max_length:] for out in distinct]
    not_empty = [place for place, positions in enumerate(kept) if positions]
    windows = [[query.history[at] for at in kept[place]] for place in not_empty]
    times = [None if query.times is None else [query.times[at] for at in kept[place]] for place in not_empty]
    present = snapshot.catalogue.present
    effects_NK = np.repeat(scored.centred_scores(rows, present), len(distinct), axis=0)
    if windows:
        shortened = snapshot.scorer.prepare(windows, times, [query.now] * len(windows))
        effects_NK[not_empty] -= shortened.centred_scores(rows, present)
    largest_KN = np.argsort(-np.abs(effects_NK.T), axis=1, kind="stable")[:, :MAX_REASONS]
    catalogue = snapshot.catalogue
    return [
        tuple(
            Reason(catalogue.ids[distinct[n]], catalogue.title(distinct[n]), float(effects_NK[n, place]))
            for n in chosen.tolist()
        )
        for place, chosen in enumerate(largest_KN)
    ]
