"""The largest of many scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: Scores held at once: 16 MB, about what a processor's cache holds.
BLOCK_ELEMENTS = 1 << 22
#: Columns whose maximum is taken together before the best are sought.
GROUP = 32


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
