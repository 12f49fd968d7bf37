"""The catalogue that a run folder keeps, so that the run can answer without its data set."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError

FILE, COUNTS = "catalogue.parquet", "counts.npy"
_REMEDY = "Put it back from a copy, or train a new run."


def write_catalogue(folder: Path, data: Dataset) -> None:
    """Writes the items and how often each occurs in the training data."""
    buffer = io.BytesIO()
    data.catalogue.write_parquet(buffer)  # by way of memory: polars does not say that a disk is full
    (folder / FILE).write_bytes(buffer.getbuffer())
    np.save(folder / COUNTS, data.train_counts, allow_pickle=False)


def read_catalogue(folder: Path) -> pl.DataFrame:
    """All items with their titles and other fields, in index order.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return pl.read_parquet(folder / FILE, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{folder / FILE} is missing or damaged: {error}", _REMEDY) from error


def read_counts(folder: Path, items: int) -> NDArray[np.int64]:
    """How often each item occurs in the training data, [I].

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        counts: NDArray[np.int64] = np.load(folder / COUNTS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{folder / COUNTS} is missing or damaged: {error}", _REMEDY) from error
    if not isinstance(counts, np.ndarray) or counts.dtype != np.int64 or counts.shape != (items,):
        raise RunError(f"{folder / COUNTS} does not hold one count for each of {items:,} items", _REMEDY)
    return counts
