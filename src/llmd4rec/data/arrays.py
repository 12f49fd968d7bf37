"""What preparing makes, as plain arrays and tables; :class:`~llmd4rec.data.dataset.Dataset` adds what they answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

#: The value of `times` where an interaction's time is unknown.
NO_TIME = np.iinfo(np.int64).min

Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]


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
