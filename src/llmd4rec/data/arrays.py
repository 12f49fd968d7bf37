"""What preparing makes, as plain arrays and tables; :class:`~llmd4rec.data.dataset.Dataset` adds what they answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

#: The value of `times` where an interaction's time is unknown.
NO_TIME = np.iinfo(np.int64).min

#: What a model can declare to read of events beside the items, each int64 [B, L]: when each event was, and when the
#: item after it is chosen, in seconds since 1970.
INPUTS = ("times", "target_times")

Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]


def known_times(times: Int64Array | None, offsets: Int64Array) -> Int64Array | None:
    """The time of every event, unknown ones filled in; None where none is known.

    An event without a time is put at that of the event before it, at the beginning of a history at that of the first
    event with a time, and in a history without any at the median of all known times.

    Args:
        times: [N], `NO_TIME` where unknown.
        offsets: history h is times[offsets[h]:offsets[h + 1]].
    """
    if times is None:
        return None
    known = times != NO_TIME
    if known.all():
        return times
    if not known.any():
        return None
    place, lengths = np.arange(len(times)), np.diff(offsets)
    before = np.maximum.accumulate(np.where(known, place, -1))
    after = np.minimum.accumulate(np.where(known, place, len(times))[::-1])[::-1]
    source = np.where(before >= np.repeat(offsets[:-1], lengths), before, after)
    inside = source < np.repeat(offsets[1:], lengths)
    median = np.sort(times[known])[known.sum() // 2]
    return np.where(inside, times[np.minimum(source, len(times) - 1)], median)


@dataclass(frozen=True)
class PreparedData:
    """Item sequences per user, a catalogue and a split; see :mod:`llmd4rec.data.dataset` for shapes."""

    user_ids: pl.Series
    catalogue: pl.DataFrame
    offsets: Int64Array
    items: Int32Array
    train_end: Int64Array
    valid: Int64Array
    test: Int64Array
    times: Int64Array | None = None
    text_fields: tuple[str, ...] = ()
    #: Fields of the catalogue with several values of an item, `; ` between them, and how each was written; see
    #: multi_values.py. None: a data set of before they were told apart.
    multi_fields: dict[str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
