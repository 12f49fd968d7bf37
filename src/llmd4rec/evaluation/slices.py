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


Heading = Literal["days", "gap", "items"]
#: What a rolling evaluation's headings are called.
ROLLING_HEADINGS = {
    "days": "time since the cut",
    "gap": "time since the user's last event",
    "items": "how often the item occurs before the window",
}
#: Spans of time since the user's last event, in seconds, and what is before each bound.
_GAPS = (
    (3_600, "at most an hour"),
    (SECONDS_PER_DAY, "an hour to a day"),
    (7 * SECONDS_PER_DAY, "1 to 7 days"),
    (30 * SECONDS_PER_DAY, "8 to 30 days"),
    (90 * SECONDS_PER_DAY, "31 to 90 days"),
    (np.inf, "more than 90 days"),
)
_COUNTS = ((0, "new items (0)"), (3, "rare items (1 to 3)"), (np.inf, "other items (4 or more)"))


def rolling_slices(per_target: pl.DataFrame, heading: Heading, every: int, cut: int) -> dict[str, Mask]:
    """Splits the targets of a rolling evaluation; each is in exactly one group, and no group is empty.

    Args:
        per_target: rows of one scorer.
        heading: one of :data:`ROLLING_HEADINGS`.
        every: length of a window, in seconds.
        cut: the moment at which the first window begins.
    """
    if heading == "days":
        values = per_target["time"].to_numpy() - cut
        spans = [(1, 0), (2, 1), (4, 2), (8, 4)]
        bounds: list[tuple[float, str]] = [
            (every * last - 1, f"{span(every * first)} to {span(every * last)}") for last, first in spans
        ]
        bounds.append((np.inf, f"more than {span(8 * every)}"))
    elif heading == "gap":
        values, bounds = per_target["gap"].to_numpy(), list(_GAPS)
    else:
        values, bounds = per_target["item_count"].to_numpy(), list(_COUNTS)
    group = np.searchsorted(np.array([bound for bound, _ in bounds]), values, side="left")
    return {label: group == n for n, (_, label) in enumerate(bounds) if (group == n).any()}


def span(seconds: int) -> str:
    """`14 days`, `1 day`, `6 hours`, `90 seconds`; `0` alone."""
    for size, unit in ((SECONDS_PER_DAY, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds % size == 0 and seconds:
            return f"{seconds // size} {unit if seconds > size else unit.removesuffix('s')}"
    return f"{seconds} seconds" if seconds else "0"


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share by Wilson's score, which holds for few targets and few hits too.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    z = 1.959964
    share, shrunk = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / shrunk
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / shrunk
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
