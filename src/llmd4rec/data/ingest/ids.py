"""Identifiers: any string; whole numbers as their decimal string; the same whichever type a file stores them in.

Blanks around them stay, since identifiers are never altered and two may differ by nothing else; the report warns.
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest.limits import LONGEST_ID
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.row_filter import condition_text
from llmd4rec.errors import DataError

#: Written by careless exports in place of a missing value, in small letters; a warning, since they may be real.
PLACEHOLDERS = (
    *("nan", "null", "(null)", "[null]", "<null>", "nil", "none", "(none)", "<none>", "na", "<na>", "n/a", "#n/a"),
    *("nat", "\\n", "-", "--", "?", "undefined", "unknown", "(unknown)", "not set", "(not set)", "missing"),
    *("(missing)", "empty", "(empty)", "#ref!", "#value!", "anonymous", "guest"),
    "00000000-0000-0000-0000-000000000000",
)
#: What programs write where there is no number; a warning where it holds more rows than any other identifier.
_NUMBERS = ("-1", "0", "-1.0", "0.0", "00", "000", "0000", "999", "9999", "99999", "999999")
#: One identifier holds an outsized share of a log if it has this share of the rows and so many times as many as the
#: next one; a user also if it has the greater share among thousands of others.
OUTSIZED_SHARE, OUTSIZED_TIMES = 0.01, 4
OUTSIZED_AMONG_MANY = 0.1
_MANY = 1000
#: Below so many rows, or identifiers, no share is outsized.
_LEAST_ROWS, _LEAST_IDS = 20, 5
#: Byte order marks, soft hyphens, joiners and control characters.
_INVISIBLE = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
_SHORTENED = r"^\d[.,]\d+[Ee]\+\d+$"
#: So large a share of identifiers that only capitals tell from another one is no chance.
_ALIKE_SHARE = 0.01
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


def warn_of_placeholders(ids: pl.Series, codes: pl.Series, what: str, column: str, report: Report) -> None:
    """Warns of identifiers that often stand for a missing one, and of one that holds an outsized share of the log.

    Args:
        ids: the identifier of each code.
        codes: one a row, null where there is none.
        what: `user` or `item`.
        column: its column.
        report: gets the warnings.
    """
    if not len(ids):
        return
    counts = np.bincount(codes.drop_nulls().to_numpy(), minlength=len(ids))
    rows = int(counts.sum())
    suspects = ids.str.strip_chars().str.to_lowercase().is_in(PLACEHOLDERS)
    negative = ids.str.contains(r"^-\d")
    minus_one = (ids == "-1") & (int(negative.sum()) == 1)
    why = {int(at): "which often stands for a missing identifier" for at in (suspects | minus_one).arg_true()}
    for at in _outsized(ids, counts, among_many=what == "user"):
        why.setdefault(at, "far more than any other has: does it stand for a missing identifier?")
    for at, reason in sorted(why.items(), key=lambda pair: ids[pair[0]]):
        report.warn(
            f"one {what} is called {ids[at]!r} and has {counts[at]:,} of {rows:,} rows ({counts[at] / rows:.1%}), "
            f'{reason}; it was kept; to leave it out, say --where "{condition_text(column, "!=", ids[at])}"'
        )


def _outsized(ids: pl.Series, counts: NDArray[np.int64], *, among_many: bool) -> list[int]:
    """The codes of identifiers that hold an outsized share of the log: at most three."""
    if len(ids) < _LEAST_IDS:
        return []
    top = np.argsort(-counts, kind="stable")[: min(4, len(ids))]
    rows, sizes = int(counts.sum()), counts[top]
    minimum = max(_LEAST_ROWS, OUTSIZED_SHARE * rows)
    found: set[int] = set()
    for at in range(len(top) - 1):  # two placeholders may both be large: what counts is the gap behind them
        if sizes[at] >= minimum and sizes[at] >= OUTSIZED_TIMES * sizes[at + 1]:
            found |= {int(code) for code in top[: at + 1]}
    if among_many and len(ids) >= _MANY:
        found |= {int(code) for code in top if counts[code] >= OUTSIZED_AMONG_MANY * rows}
    if sizes[0] >= minimum and ids[int(top[0])] in _NUMBERS and sizes[0] >= 2 * sizes[1]:
        found.add(int(top[0]))
    return sorted(found)


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


def warn_of_spellings(ids: pl.Series, what: str, report: Report) -> None:
    """Warns of distinct identifiers that a program or a person may have spelled in another way than they were meant.

    Blanks around them, signs that cannot be seen, capitals alone that tell them apart, numbers as a spreadsheet
    shortens them: each makes two of one identifier, or one of two.
    """
    warn_of_blanks(ids, what, report)
    hidden = ids.filter(ids.str.contains(_INVISIBLE))
    if len(hidden):
        sign = ord(str(hidden.str.extract(f"({_INVISIBLE})")[0]))
        report.warn(
            f"{len(hidden):,} {what} have an identifier with a sign that cannot be seen (U+{sign:04X} in "
            f"{hidden[0]!r}); they were kept as they are: remove the sign from the file if it means nothing"
        )
    short = ids.filter(ids.str.contains(_SHORTENED))
    if len(short):
        report.warn(
            f"{len(short):,} {what} are numbers as a spreadsheet shortens them, such as {short[0]!r}: different ones "
            "may have become one; export the column as text"
        )
    small = ids.str.to_lowercase()
    alike = int(small.is_duplicated().sum())
    if alike >= max(2, _ALIKE_SHARE * len(ids)):
        first = ids.filter(small == small.filter(small.is_duplicated())[0]).head(2).to_list()
        report.warn(
            f"{alike:,} of {len(ids):,} {what} differ from another one only in capitals, such as "
            f"{' and '.join(map(repr, first))}; they were kept apart: write them alike if they are one"
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
