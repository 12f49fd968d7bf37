"""Identifiers: any string; whole numbers as their decimal string; the same whichever type a file stores them in.

Blanks around them stay, since identifiers are never altered and two may differ by nothing else; the report warns.
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.limits import LONGEST_ID
from llmd4rec.data.report import Report
from llmd4rec.errors import DataError

#: Written by careless exports in place of a missing value; a warning, since they may be real.
SUSPICIOUS = ("nan", "NaN", "null", "NULL", "None", "<NA>", "N/A")
_WHOLE_FLOAT = r"^-?\d+\.0$"
#: Floats tell whole numbers apart below 2 to the power of this.
_EXACT_BITS: dict[type[pl.DataType], int] = {pl.Float32: 24, pl.Float64: 53}


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
        DataError: they are floats too big to tell neighbours apart, or one is too long to be asked for later.
    """
    long = ids.filter(ids.str.len_chars() > LONGEST_ID)
    if len(long):
        raise DataError(
            f"{where}, column {column!r}: an identifier has {len(long[0]):,} characters, more than {LONGEST_ID} "
            f"({len(long):,} such); it begins with {long[0][:40]!r}",
            "Name the right column, or give these short identifiers, such as a hash of them.",
        )
    ids = pl.select(pl.when(ids.str.strip_chars() != "").then(ids)).to_series()
    filled = ids.drop_nulls()
    if dtype.is_float() and len(filled):
        largest = filled.cast(pl.Float64).abs().max()
        bits = _EXACT_BITS.get(dtype.base_type(), 11)  # the other one has 16 bits
        if isinstance(largest, float) and largest >= 2**bits:
            raise DataError(
                f"{where}, column {column!r}: {dtype} identifiers beyond 2^{bits}, where different ones may be equal",
                "Export them as whole numbers or text.",
            )
    if len(filled) and filled.str.contains(_WHOLE_FLOAT).all():
        return ids.str.strip_suffix(".0")
    return ids


def warn_of_blanks(ids: pl.Series, what: str, report: Report) -> None:
    """Warns where identifiers begin or end with blanks: `u, i` in a CSV file is an item called ` i`."""
    bare = ids.str.strip_chars()
    padded = ids != bare
    if padded.any():
        same = int(bare.filter(padded).is_in(ids.filter(~padded).implode()).sum())
        also = f", {same:,} of them like another one but for these" if same else ""
        report.warn(
            f"{int(padded.sum()):,} {what} have blanks around their identifier, such as {ids.filter(padded)[0]!r}"
            f"{also}; they were kept: remove them from the file if they mean nothing"
        )


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
