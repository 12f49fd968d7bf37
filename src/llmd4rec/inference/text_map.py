"""Embeddings of items that were never trained, from their texts: ridge regression in closed form.

    embedding = (text vector, 1) @ text_map          text_map float32 [T + 1, d]

The map is fitted to the trained embeddings at export. Its regularisation is chosen, and its recall measured, by
cross-validation over items: the items are split into folds, the embeddings of one fold at a time are replaced by those
of a map fitted to the other folds, and the held-out interactions with the fold's items are ranked among the whole
catalogue. The strength is the best on validation interactions; what is reported is measured on test interactions.

A regression shrinks towards the mean, so such embeddings score too low against trained ones. They are therefore scaled
about the mean, until held-out items take as many places of the top ten as with their trained embeddings. More would
raise their recall at the cost of all other items.

The network and the embeddings of the other items were trained with the fold's items in the catalogue; only the items'
own embeddings are held out. A really new item is a little harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.scoring.topk import top_columns

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
#: The scale is searched between these by bisection, in so many steps.
SCALE_RANGE, BISECTIONS = (0.5, 8.0), 7
FOLDS = 5
CUTOFFS = (10, 50, 100)
#: At most so many scores are computed for a figure of the report, and for a step of the search; bounds the time on a
#: large catalogue.
MAX_SCORES, MAX_SCORES_SEARCH = 100_000_000, 20_000_000


@dataclass(frozen=True)
class Cases:
    """Held-out interactions.

    Attributes:
        states_ND: the state of each history.
        targets_N: the row of the item that followed, which is not in the history.
        seen: rows of each history.
    """

    states_ND: Floats
    targets_N: Rows
    seen: list[Rows]

    def among(self, items_I: NDArray[np.bool_]) -> Cases:
        """Those whose target is among some items."""
        return self.at(np.flatnonzero(items_I[self.targets_N]))

    def sample(self, size: int, rng: np.random.Generator) -> Cases:
        """At most `size` of them, drawn at random."""
        if len(self.targets_N) <= size:
            return self
        return self.at(np.sort(rng.choice(len(self.targets_N), size, replace=False)))

    def at(self, places: Rows) -> Cases:
        """Those at some places."""
        return Cases(self.states_ND[places], self.targets_N[places], [self.seen[place] for place in places])


def with_one(texts_NT: Floats) -> Floats:
    """Text vectors with a 1 behind each, [N, T + 1]."""
    return np.concatenate([texts_NT, np.ones((len(texts_NT), 1), dtype=np.float32)], axis=1)


def fit_map(texts_NT: Floats, rows_ND: Floats, strength: float, scale: float = 1.0) -> Floats:
    """The map [T + 1, d] with the least squared error plus `strength` times its own squares; the mean is free.

    Args:
        texts_NT: text vectors.
        rows_ND: the rows they belong to.
        strength: relative to the mean square of a text vector's centred numbers, times N / T.
        scale: the map's embeddings lie so many times as far from the mean embedding.
    """
    texts, rows = texts_NT.astype(np.float64), rows_ND.astype(np.float64)
    text_mean, row_mean = texts.mean(axis=0), rows.mean(axis=0)
    centred = texts - text_mean
    moments = centred.T @ centred
    size = max(float(np.trace(moments)) / len(moments), 1e-12)
    penalty = strength * size * np.eye(len(moments))
    weights = scale * np.linalg.solve(moments + penalty, centred.T @ (rows - row_mean))
    return np.concatenate([weights, (row_mean - text_mean @ weights)[None]]).astype(np.float32)


def fit_text_map(
    texts_IT: Floats, table_ID: Floats, valid: Cases, test: Cases, seed: int = 0
) -> tuple[Floats, dict[str, Any]]:
    """The map fitted to all items with a text, and the recall of such maps on held-out items.

    Args:
        texts_IT: text vectors, zero where an item has no text.
        table_ID: trained rows.
        valid, test: held-out interactions with items of the catalogue.

    Returns:
        The map and a report: strength, scale, recall of held-out items and their share of the top ten; for comparison
        those of their trained embeddings, of the mean embedding for all, and of chance.
    """
    rng = np.random.default_rng(seed)
    present = np.flatnonzero(np.any(texts_IT != 0, axis=1))
    fold_I = np.full(len(table_ID), -1)
    fold_I[rng.permutation(present)] = np.arange(len(present)) % FOLDS
    valid, test = (
        c.among(fold_I >= 0).sample(max(1, scores // len(table_ID)), rng)
        for c, scores in ((valid, MAX_SCORES_SEARCH), (test, MAX_SCORES))
    )
    mean_D = table_ID[present].mean(axis=0) if len(present) else np.zeros(table_ID.shape[1], np.float32)
    _, fair_share = _ranked(table_ID, table_ID, fold_I, valid)
    best = (-1.0, STRENGTHS[0], 1.0, table_ID)
    for strength in STRENGTHS:
        rows_ID = _held_out_rows(texts_IT, table_ID, fold_I, strength)
        scale = _fair_scale(rows_ID, mean_D, table_ID, fold_I, valid, fair_share)
        rows_ID = _scaled(rows_ID, mean_D, fold_I, scale)
        gain = float((1 / _ranked(rows_ID, table_ID, fold_I, valid)[0]).sum())
        best = max(best, (gain, strength, scale, rows_ID), key=lambda each: each[0])
    _, strength, scale, rows_ID = best
    mean_ID = np.broadcast_to(mean_D, table_ID.shape)
    report: dict[str, Any] = {
        "strength": strength,
        "scale": scale,
        "items": len(present),
        "cases": len(test.targets_N),
    }
    for name, rows in (("", rows_ID), ("_trained_rows", table_ID), ("_without_texts", mean_ID)):
        ranks, share = _ranked(rows, table_ID, fold_I, test)
        report[f"recall{name}"] = {f"@{k}": _mean(ranks <= k) for k in CUTOFFS}
        report[f"share_of_top10{name}"] = share
    report["recall_by_chance"] = {f"@{k}": min(1.0, k / len(table_ID)) for k in CUTOFFS}
    return fit_map(texts_IT[present], table_ID[present], strength, scale), report


def _held_out_rows(texts_IT: Floats, table_ID: Floats, fold_I: Rows, strength: float) -> Floats:
    """Each item's embedding from a map fitted to the other folds; trained embeddings where there is no text."""
    rows_ID = table_ID.copy()
    for fold in range(FOLDS):
        others, own = (fold_I >= 0) & (fold_I != fold), fold_I == fold
        if own.any() and others.any():
            rows_ID[own] = with_one(texts_IT[own]) @ fit_map(texts_IT[others], table_ID[others], strength)
    return rows_ID


def _scaled(rows_ID: Floats, mean_D: Floats, fold_I: Rows, scale: float) -> Floats:
    """Embeddings made from texts, `scale` times as far from the mean."""
    return np.where((fold_I >= 0)[:, None], mean_D + np.float32(scale) * (rows_ID - mean_D), rows_ID)


def _fair_scale(
    rows_ID: Floats, mean_D: Floats, table_ID: Floats, fold_I: Rows, cases: Cases, fair_share: float
) -> float:
    """The scale at which held-out items take a given share of the top ten; 1 where there is nothing to rank."""
    if not len(cases.targets_N):
        return 1.0
    low, high = SCALE_RANGE
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        share = _ranked(_scaled(rows_ID, mean_D, fold_I, middle), table_ID, fold_I, cases)[1]
        low, high = (middle, high) if share < fair_share else (low, middle)
    return float((low * high) ** 0.5)


def _ranked(rows_ID: Floats, table_ID: Floats, fold_I: Rows, cases: Cases) -> tuple[Rows, float]:
    """The rank of each target, where its whole fold has the given embeddings; and the fold's share of the top ten."""
    ranks = np.empty(len(cases.targets_N), dtype=np.int64)
    shares = []
    fold_N = fold_I[cases.targets_N]
    for fold in range(FOLDS):
        chosen, own = np.flatnonzero(fold_N == fold), fold_I == fold
        if len(chosen):
            table = np.where(own[:, None], rows_ID, table_ID)
            ranks[chosen], best_NK = _ranks(table, cases.at(chosen))
            shares.append(own[best_NK].mean(axis=1))
    return ranks, _mean(np.concatenate(shares)) if shares else 0.0


def _ranks(table_ID: Floats, cases: Cases) -> tuple[Rows, Rows]:
    """The rank of each target among the items not in its history, ties against it; and the top ten, [N, 10]."""
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
