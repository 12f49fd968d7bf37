"""Which items of a history changed the score of a recommended item most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.encoder import Encoder, encode
from llmd4rec.inference.query import Query
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import Reason

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: How many reasons are given for each recommended item.
MAX_REASONS = 3


def find_reasons(
    encoder: Encoder, snapshot: Snapshot, query: Query, state_D: Floats | None, rows: Rows, max_length: int
) -> list[tuple[Reason, ...]]:
    """For each recommended row the items of the history with the largest effect on its score.

    An item's effect is how far the score, relative to the catalogue's mean score, falls when the item is left out of
    the history. All shortened histories are encoded together. Without its only item a history has no state, and the
    whole score is the item's effect.

    Args:
        state_D: the state of the whole history; None where no item of it is known.
        max_length: how many items of a history the encoder reads.
    """
    if state_D is None:
        return [()] * len(rows)
    distinct = list(dict.fromkeys(query.history[-max_length:]))
    # Where in the history the items are that are kept: the times of an item go with it.
    kept = [[at for at, row in enumerate(query.history) if row != out][-max_length:] for out in distinct]
    not_empty = [place for place, positions in enumerate(kept) if positions]
    windows = [[query.history[at] for at in kept[place]] for place in not_empty]
    times = None if query.times is None else [[query.times[at] for at in kept[place]] for place in not_empty]
    states_ND = np.zeros((len(distinct), len(state_D)), dtype=np.float32)
    states_ND[not_empty] = encode(encoder, windows, snapshot.table_ID, times, [query.now] * len(windows))
    effects_NK = (state_D - states_ND) @ (snapshot.table_ID[rows] - snapshot.mean_D).T
    largest_KN = np.argsort(-np.abs(effects_NK.T), axis=1, kind="stable")[:, :MAX_REASONS]
    catalogue = snapshot.catalogue
    return [
        tuple(
            Reason(catalogue.ids[distinct[n]], catalogue.title(distinct[n]), float(effects_NK[n, place]))
            for n in chosen.tolist()
        )
        for place, chosen in enumerate(largest_KN)
    ]
