"""Rows of the item table for items that were never trained, from their texts: ridge regression in closed form.

    row = (text vector, 1) @ text_map          text_map float32 [T + 1, d]

The map is fitted to the trained rows at export. How strongly it is pulled to zero is chosen, and what it is worth is
measured, on items it was not fitted to: the items are dealt into folds, the rows of one fold at a time are replaced by
what a map fitted to the others gives, and the held-out interactions with the fold's items are ranked among the whole
catalogue. The strength is the best on validation items; what is reported is on test items.

The network itself, and the rows of the other items, were trained with the fold's items in the catalogue; only their own
rows are withheld. An item that did not exist then is a little harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FOLDS = 5
CUTOFFS = (10, 50, 100)
#: Scores computed for one strength at most; bounds the time on a large catalogue.
MOST_SCORES = 100_000_000


@dataclass(frozen=True)
class Cases:
    """Held-out interactions.

    Attributes:
        states_ND: the state behind each history.
        targets_N: the row of the item that followed.
        seen: rows of each history.
    """

    states_ND: Floats
    targets_N: Rows
    seen: list[Rows]

    def some(self, most: int, rng: np.random.Generator) -> Cases:
        """At most so many of them, drawn at random."""
        if len(self.targets_N) <= most:
            return self
        chosen = np.sort(rng.choice(len(self.targets_N), most, replace=False))
        return Cases(self.states_ND[chosen], self.targets_N[chosen], [self.seen[place] for place in chosen])


def with_one(texts_NT: Floats) -> Floats:
    """Text vectors with a 1 behind each, [N, T + 1]."""
    return np.concatenate([texts_NT, np.ones((len(texts_NT), 1), dtype=np.float32)], axis=1)


def fit_map(texts_NT: Floats, rows_ND: Floats, strength: float) -> Floats:
    """The map [T + 1, d] with the least squared error plus `strength` times its own squares; the mean is free.

    Args:
        texts_NT: text vectors.
        rows_ND: the rows they belong to.
        strength: relative to the mean square of a text vector's centred numbers, times N / T.
    """
    texts, rows = texts_NT.astype(np.float64), rows_ND.astype(np.float64)
    text_mean, row_mean = texts.mean(axis=0), rows.mean(axis=0)
    centred = texts - text_mean
    moments = centred.T @ centred
    size = max(float(np.trace(moments)) / len(moments), 1e-12)
    weights = np.linalg.solve(moments + strength * size * np.eye(len(moments)), centred.T @ (rows - row_mean))
    return np.concatenate([weights, (row_mean - text_mean @ weights)[None]]).astype(np.float32)


def fit_cold_start(
    texts_IT: Floats, table_ID: Floats, valid: Cases, test: Cases, seed: int = 0
) -> tuple[Floats, dict[str, Any]]:
    """The map fitted to all items with a text, and what its kind is worth on held-out items.

    Args:
        texts_IT: text vectors, zero where an item has no text.
        table_ID: trained rows.
        valid, test: held-out interactions with items of the catalogue.

    Returns:
        The map and a report: strength, recall of held-out items, and beside it what their trained rows reach and what
        rows without texts (the mean row) and chance would.
    """
    rng = np.random.default_rng(seed)
    present = np.flatnonzero(np.any(texts_IT != 0, axis=1))
    fold_I = np.full(len(table_ID), -1)
    fold_I[rng.permutation(present)] = np.arange(len(present)) % FOLDS
    most = max(1, MOST_SCORES // len(table_ID))
    valid, test = (
        Cases(c.states_ND[keep], c.targets_N[keep], [c.seen[place] for place in np.flatnonzero(keep)]).some(most, rng)
        for c in (valid, test)
        for keep in (fold_I[c.targets_N] >= 0,)
    )
    found = {
        strength: _reciprocal(_held_out_ranks(texts_IT, table_ID, fold_I, valid, strength)) for strength in STRENGTHS
    }
    strength = max(found, key=lambda each: found[each])
    ranks = _held_out_ranks(texts_IT, table_ID, fold_I, test, strength)
    without = _held_out_ranks(np.zeros((len(table_ID), 1), np.float32), table_ID, fold_I, test, 1.0)
    trained = _ranks(table_ID, test)
    report = {
        "strength": strength,
        "items": len(present),
        "cases": len(ranks),
        "recall": _recall(ranks),
        "recall_trained_rows": _recall(trained),
        "recall_without_texts": _recall(without),
        "recall_by_chance": {f"@{k}": min(1.0, k / len(table_ID)) for k in CUTOFFS},
    }
    return fit_map(texts_IT[present], table_ID[present], strength), report


def _held_out_ranks(texts_IT: Floats, table_ID: Floats, fold_I: Rows, cases: Cases, strength: float) -> Rows:
    """The rank of each case's target with the rows of its fold made from texts."""
    ranks = np.empty(len(cases.targets_N), dtype=np.int64)
    fold_N = fold_I[cases.targets_N]
    for fold in range(FOLDS):
        chosen = np.flatnonzero(fold_N == fold)
        others, own = (fold_I >= 0) & (fold_I != fold), fold_I == fold
        if not len(chosen) or not others.any():
            ranks[chosen] = len(table_ID)
            continue
        table = table_ID.copy()
        table[own] = with_one(texts_IT[own]) @ fit_map(texts_IT[others], table_ID[others], strength)
        part = Cases(cases.states_ND[chosen], cases.targets_N[chosen], [cases.seen[place] for place in chosen])
        ranks[chosen] = _ranks(table, part)
    return ranks


def _ranks(table_ID: Floats, cases: Cases) -> Rows:
    """The rank of each target among what its history has not seen; ties count against it."""
    ranks = np.empty(len(cases.targets_N), dtype=np.int64)
    at_once = max(1, (1 << 22) // len(table_ID))
    for start in range(0, len(ranks), at_once):
        part = slice(start, start + at_once)
        targets = cases.targets_N[part]
        scores = cases.states_ND[part] @ table_ID.T
        own = scores[np.arange(len(targets)), targets]
        for row, seen in zip(scores, cases.seen[part], strict=True):
            row[seen] = -np.inf
        scores[np.arange(len(targets)), targets] = own
        ranks[part] = (scores >= own[:, None]).sum(axis=1)
    return ranks


def _reciprocal(ranks: Rows) -> float:
    return float((1 / ranks).mean()) if len(ranks) else 0.0


def _recall(ranks: Rows) -> dict[str, float]:
    return {f"@{k}": float((ranks <= k).mean()) if len(ranks) else 0.0 for k in CUTOFFS}
