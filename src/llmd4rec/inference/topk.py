"""The rows of a table with the highest scores for a state, exactly, in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: Scores held at once: 16 MB, about what a processor's cache holds.
BLOCK_ELEMENTS = 1 << 22
#: If the candidates are less than this share of the table, their rows are gathered before scoring.
GATHER_BELOW = 0.25
#: Columns whose maximum is taken together before the best are sought.
GROUP = 32


def exact_top(states_BD: Floats, table_ID: Floats, k: int, excluded: Sequence[Rows]) -> tuple[list[Rows], list[Floats]]:
    """The k rows of the whole table with the highest scores for each state, best first, and their scores.

    Args:
        states_BD: [B, d].
        table_ID: [I, d].
        k: how many; fewer are returned where the table has no more.
        excluded: for each state, the rows that must not be returned.
    """
    height = len(table_ID)
    at_once = max(1, BLOCK_ELEMENTS // max(1, height))
    rows: list[Rows] = []
    scores: list[Floats] = []
    for start in range(0, len(states_BD), at_once):
        block_BI = states_BD[start : start + at_once] @ table_ID.T
        for scores_I, rows_E in zip(block_BI, excluded[start : start + at_once], strict=True):
            scores_I[rows_E] = -np.inf
        best_BK = top_columns(block_BI, k)
        values_BK = np.take_along_axis(block_BI, best_BK, axis=1)
        for best_K, values_K in zip(best_BK, values_BK, strict=True):
            real = values_K > -np.inf
            rows.append(best_K[real])
            scores.append(values_K[real])
    return rows, scores


def exact_among(state_D: Floats, table_ID: Floats, k: int, candidates: Rows) -> tuple[Rows, Floats]:
    """The k best of some rows for one state, best first, and their scores."""
    if len(candidates) < GATHER_BELOW * len(table_ID):
        scores = table_ID[candidates] @ state_D
    else:
        scores = (table_ID @ state_D)[candidates]
    best = top_columns(scores[None], k)[0]
    return candidates[best], scores[best]


def top_columns(scores_BI: Floats, k: int) -> Rows:
    """The columns of each row's k largest values, largest first; equal ones in the order of the columns."""
    if k * GROUP * 2 > scores_BI.shape[1]:
        return _partitioned(scores_BI, k)
    # The k largest lie in the k groups with the largest maxima. Column c is in group c modulo their number, so that the
    # maxima are taken of whole stretches of memory at once.
    groups = scores_BI.shape[1] // GROUP
    grouped = groups * GROUP
    maxima_BG = scores_BI[:, :grouped].reshape(len(scores_BI), GROUP, groups).max(axis=1)
    best_BK = np.argpartition(maxima_BG, groups - k, axis=1)[:, groups - k :]
    inside_BC = (best_BK[:, :, None] + groups * np.arange(GROUP)).reshape(len(scores_BI), -1)
    rest_BR = np.broadcast_to(np.arange(grouped, scores_BI.shape[1]), (len(scores_BI), scores_BI.shape[1] - grouped))
    columns_BC = np.sort(np.concatenate([inside_BC, rest_BR], axis=1), axis=1)
    among_BK = _partitioned(np.take_along_axis(scores_BI, columns_BC, axis=1), k)
    return np.take_along_axis(columns_BC, among_BK, axis=1)


def _partitioned(scores_BI: Floats, k: int) -> Rows:
    width = scores_BI.shape[1]
    if k < width:
        chosen_BK = np.argpartition(scores_BI, width - k, axis=1)[:, width - k :]
        chosen_BK.sort(axis=1)
    else:
        chosen_BK = np.broadcast_to(np.arange(width), scores_BI.shape)
    order_BK = np.argsort(-np.take_along_axis(scores_BI, chosen_BK, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen_BK, order_BK, axis=1)
