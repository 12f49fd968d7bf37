"""Which users belong to which slice of the evaluation, and the buckets a report breaks a result into."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.dataset import NO_TIME, Dataset

Mask = NDArray[np.bool_]

#: A history of at most this many items is short.
SHORT_HISTORY = 5
#: The share of items, counted from the least popular, that make the tail.
TAIL_SHARE = 0.8
SECONDS_PER_DAY = 86_400

#: What each slice holds, in words for a person.
SLICE_NAMES = {
    "tail": "true item from the tail (the 80% least popular items)",
    "head": "true item from the head (the rest)",
    "cold": "true item never seen in training",
    "short_history": f"history of at most {SHORT_HISTORY} items",
    "long_history": f"history of more than {SHORT_HISTORY} items",
    "next_day": "next-day targets (true item on a later day than the one before)",
    "same_day": "true item on the same day as the one before",
}


def slice_masks(dataset: Dataset, positions: NDArray[np.int64]) -> dict[str, Mask]:
    """Which of the held-out targets belong to each slice.

    Args:
        dataset: the data set.
        positions: flat positions of the targets, [P].

    Returns:
        name → [P] booleans, names as in :data:`SLICE_NAMES`. `next_day` and `same_day` compare UTC days;
        they are there only if the data set has times, and a target whose time or whose predecessor's time is
        unknown is in neither.
    """
    users = dataset.users_of(positions)
    targets = dataset.items[positions]
    lengths = positions - dataset.offsets[users]
    tail = tail_items(dataset.train_counts)[targets]
    short = lengths <= SHORT_HISTORY
    masks = {
        "tail": tail,
        "head": ~tail,
        "cold": dataset.train_counts[targets] == 0,
        "short_history": short,
        "long_history": ~short,
    }
    if dataset.times is not None:
        has_before = lengths > 0
        now, before = dataset.times[positions], dataset.times[np.where(has_before, positions - 1, positions)]
        known = has_before & (now != NO_TIME) & (before != NO_TIME)
        day_now, day_before = now // SECONDS_PER_DAY, before // SECONDS_PER_DAY
        masks["next_day"] = known & (day_now > day_before)
        masks["same_day"] = known & (day_now == day_before)
    return masks


def tail_items(train_counts: NDArray[np.int64]) -> Mask:
    """Which items are in the tail: the lower 80% by training count, [I].

    Items with as many interactions as the most popular item of the tail are in the tail too, so that the
    order of the catalogue decides nothing.
    """
    if len(train_counts) == 0:
        return np.zeros(0, dtype=np.bool_)
    last = max(0, int(TAIL_SHARE * len(train_counts)) - 1)
    return np.asarray(train_counts <= np.partition(train_counts, last)[last])


class Bucket(NamedTuple):
    """A range of history lengths or popularities, and who is in it."""

    label: str
    mask: Mask


def buckets(per_user: pl.DataFrame, column: Literal["history_length", "train_count"], count: int = 5) -> list[Bucket]:
    """Splits users into at most `count` groups of about equal size by a whole-number column.

    Args:
        per_user: an evaluation's per-user table.
        column: `history_length`, or `train_count` (how often the true item occurs in training).
        count: how many groups; fewer where many users share a value.

    Returns:
        Groups in ascending order, labelled `4`, `5–7` or `8+`; every user is in exactly one.
    """
    values = per_user[column].to_numpy()
    if len(values) == 0:
        return []
    quantiles = np.quantile(values, np.linspace(0, 1, count + 1)[1:-1], method="lower")
    # A bucket holds values in (upper edge of the one before, its own upper edge].
    uppers = np.unique(np.append(quantiles, values.max()))
    groups = np.searchsorted(uppers, values, side="left")
    found = []
    for index, upper in enumerate(uppers):
        mask = groups == index
        low = int(values[mask].min())
        if index == len(uppers) - 1 and upper > low:
            label = f"{low}+"
        else:
            label = str(low) if low == upper else f"{low}–{int(upper)}"
        found.append(Bucket(label, mask))
    return found
