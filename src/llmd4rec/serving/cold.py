"""Rows of the item table for items that were never trained, from their texts: ridge regression in closed form.

    row = (text vector, 1) @ text_map          text_map float32 [T + 1, d]

The map is fitted to the trained rows at export. How strongly it is pulled to zero is chosen, and what it is worth is
measured, on items it was not fitted to: the items are dealt into folds, the rows of one fold at a time are replaced by
what a map fitted to the others gives, and the held-out interactions with the fold's items are ranked among the whole
catalogue. The strength is the best on validation items; what is reported is on test items.

What a regression gives lies nearer to the mean than what it was fitted to, and scores of such rows are too small to win
against trained ones. So the rows are stretched about the mean until withheld ones spread as widely as trained rows do:
not further, which would raise their recall at the cost of everything else. How many of the ten best places they then
take is measured too, beside how many they take with their trained rows.

The network itself, and the rows of the other items, were trained with the fold's items in the catalogue; only their own
rows are withheld. An item that did not exist then is a little harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.serving.topk import top_columns

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
        targets_N: the row of the item that followed, which is not in the history.
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


def fit_map(texts_NT: Floats, rows_ND: Floats, strength: float, stretch: float = 1.0) -> Floats:
    """The map [T + 1, d] with the least squared error plus `strength` times its own squares; the mean is free.

    Args:
        texts_NT: text vectors.
        rows_ND: the rows they belong to.
        strength: relative to the mean square of a text vector's centred numbers, times N / T.
        stretch: what the map gives lies so many times as far from the mean row.
    """
    texts, rows = texts_NT.astype(np.float64), rows_ND.astype(np.float64)
    text_mean, row_mean = texts.mean(axis=0), rows.mean(axis=0)
    centred = texts - text_mean
    moments = centred.T @ centred
    size = max(float(np.trace(moments)) / len(moments), 1e-12)
    penalty = strength * size * np.eye(len(moments))
    weights = stretch * np.linalg.solve(moments + penalty, centred.T @ (rows - row_mean))
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
        The map and a report: strength, stretch, recall of held-out items and their share of the ten best places, and
        beside it what their trained rows reach, and what rows without texts (the mean row) and chance would.
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
    made = {strength: _withheld_rows(texts_IT, table_ID, fold_I, strength) for strength in STRENGTHS}
    found = {
        strength: float((1 / _ranked(rows_ID, table_ID, fold_I, valid)[0]).sum())
        for strength, (rows_ID, _) in made.items()
    }
    strength = max(found, key=lambda each: found[each])
    rows_ID, stretch = made[strength]
    mean_ID = np.broadcast_to(table_ID[present].mean(axis=0) if len(present) else 0, table_ID.shape)
    report: dict[str, Any] = {
        "strength": strength,
        "stretch": stretch,
        "items": len(present),
        "cases": len(test.targets_N),
    }
    for name, rows in (("", rows_ID), ("_trained_rows", table_ID), ("_without_texts", mean_ID)):
        ranks, share = _ranked(rows, table_ID, fold_I, test)
        report[f"recall{name}"] = {f"@{k}": _mean(ranks <= k) for k in CUTOFFS}
        report[f"share_of_top10{name}"] = share
    report["recall_by_chance"] = {f"@{k}": min(1.0, k / len(table_ID)) for k in CUTOFFS}
    return fit_map(texts_IT[present], table_ID[present], strength, stretch), report


def _withheld_rows(texts_IT: Floats, table_ID: Floats, fold_I: Rows, strength: float) -> tuple[Floats, float]:
    """Each item's row from a map fitted to the other folds, stretched; and the stretch."""
    rows_ID = table_ID.copy()
    for fold in range(FOLDS):
        others, own = (fold_I >= 0) & (fold_I != fold), fold_I == fold
        if own.any() and others.any():
            rows_ID[own] = with_one(texts_IT[own]) @ fit_map(texts_IT[others], table_ID[others], strength)
    part = fold_I >= 0
    if not part.any():
        return rows_ID, 1.0
    mean_D = table_ID[part].mean(axis=0)
    spread = float(np.square(rows_ID[part] - mean_D).sum())
    stretch = float(np.sqrt(np.square(table_ID[part] - mean_D).sum() / spread)) if spread > 0 else 1.0
    rows_ID[part] = mean_D + stretch * (rows_ID[part] - mean_D)
    return rows_ID, stretch


def _ranked(rows_ID: Floats, table_ID: Floats, fold_I: Rows, cases: Cases) -> tuple[Rows, float]:
    """The rank of each case's target, its whole fold having the given rows; and the fold's share of the ten best."""
    ranks = np.empty(len(cases.targets_N), dtype=np.int64)
    shares = []
    fold_N = fold_I[cases.targets_N]
    for fold in range(FOLDS):
        chosen, own = np.flatnonzero(fold_N == fold), fold_I == fold
        if len(chosen):
            table = np.where(own[:, None], rows_ID, table_ID)
            part = Cases(cases.states_ND[chosen], cases.targets_N[chosen], [cases.seen[place] for place in chosen])
            ranks[chosen], best_NK = _ranks(table, part)
            shares.append(own[best_NK].mean(axis=1))
    return ranks, _mean(np.concatenate(shares)) if shares else 0.0


def _ranks(table_ID: Floats, cases: Cases) -> tuple[Rows, Rows]:
    """The rank of each target among what its history has not seen, ties against it; and the ten best, [N, 10]."""
    ranks = np.empty(len(cases.targets_N), dtype=np.int64)
    best_NK = np.empty((len(ranks), min(10, len(table_ID))), dtype=np.int64)
    at_once = max(1, (1 << 22) // len(table_ID))
    for start in range(0, len(ranks), at_once):
        part = slice(start, start + at_once)
        targets = cases.targets_N[part]
        scores = cases.states_ND[part] @ table_ID.T
        for row, seen in zip(scores, cases.seen[part], strict=True):
            row[seen] = -np.inf
        own = scores[np.arange(len(targets)), targets]
        ranks[part] = (scores >= own[:, None]).sum(axis=1)
        best_NK[part] = top_columns(scores, best_NK.shape[1])
    return ranks, best_NK


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0
