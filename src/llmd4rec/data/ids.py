"""Identifiers: any string; whole numbers as their decimal string; the same whichever type a file stores them in."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.errors import DataError

#: Written by careless exports in place of a missing value; a warning, since they may be real.
SUSPICIOUS = ("nan", "NaN", "null", "NULL", "None", "<NA>", "N/A")
_WHOLE_FLOAT = r"^-?\d+\.0$"
_EXACT_FLOAT = 2**53


def id_text(column: str, dtype: pl.DataType, where: str) -> pl.Expr:
    """The expression that turns a column of identifiers into strings; missing ones become null.

    Raises:
        DataError: the type cannot be an identifier.
    """
    raw = pl.col(column)
    if dtype.is_float():
        return raw.fill_nan(None).cast(pl.Float64).cast(pl.String)
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Duration):
        raise DataError(
            f"{where}, column {column!r}: {dtype} is no identifier",
            "Name another column, or make it text first.",
        )
    return raw.cast(pl.String)


def tidy(ids: pl.Series, dtype: pl.DataType, where: str, column: str) -> pl.Series:
    """Distinct identifiers as they are kept: blank ones null, `1.0` as `1` where all of them are such.

    Whole numbers become `1.0` when a table passes through a float column (pandas does so when any is missing).

    Raises:
        DataError: they are floats too big to tell neighbours apart.
    """
    ids = pl.select(pl.when(ids.str.strip_chars() != "").then(ids)).to_series()
    filled = ids.drop_nulls()
    if dtype.is_float() and len(filled):
        largest = filled.cast(pl.Float64).abs().max()
        if isinstance(largest, float) and largest > _EXACT_FLOAT:
            raise DataError(
                f"{where}, column {column!r}: identifiers are floats beyond 2^53, so different ones may be equal",
                "Export them as whole numbers or text.",
            )
    if len(filled) and filled.str.contains(_WHOLE_FLOAT).all():
        return ids.str.strip_suffix(".0")
    return ids


def hash_rank(ids: pl.Series) -> NDArray[np.int64]:
    """The rank of each identifier by the hash of its text; int64, same length, a permutation.

    Used as the items' index: stable, and free of any signal (an identifier's own order may be the order of release,
    that of first appearance is the order of time, and ties in scores are broken somewhere by index).
    """
    hashes = np.fromiter(
        (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in ids.to_list()),
        dtype=np.uint64,
        count=len(ids),
    )
    order = pl.DataFrame({"hash": hashes, "id": ids}).with_row_index("at").sort("hash", "id")["at"].to_numpy()
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    return rank
