"""Frames of other libraries as polars: column by column, so that one that nobody uses stops nothing.

A column that cannot be read stays in the table without values, and why is kept beside it: to use it is an error that
says so.
"""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

import polars as pl

from llmd4rec.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: What pandas calls columns of Python values that polars reads as they are.
_ONE_KIND = ("string", "integer", "floating", "mixed-integer-float", "boolean", "bytes", "date", "decimal", "empty")
#: Why a column cannot be used, and what to do about it.
Unfit = dict[str, tuple[str, str]]
_TWICE = ("two columns have this name", "Rename or drop one of them.")
_PLAIN = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    TypeError,
    ValueError,
    OverflowError,
    NotImplementedError,
)


def polars_of(frame: Any, where: str) -> tuple[pl.LazyFrame, Unfit]:
    """A frame as polars, and the columns that cannot be used.

    Args:
        frame: a polars or pandas frame or one of a subclass, or what speaks Arrow (a PyArrow table, a DuckDB relation).
        where: what to call it in messages.

    Raises:
        DataError: it is no frame.
    """
    if isinstance(frame, pl.LazyFrame):
        return frame, {}
    if isinstance(frame, pl.DataFrame):
        return _of_polars(frame)
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        return _of_pandas(frame, pandas)
    if hasattr(frame, "__arrow_c_stream__"):
        with contextlib.suppress(*_PLAIN):  # a single column speaks Arrow too
            return _of_polars(pl.DataFrame(frame))
    kind = f"{type(frame).__module__.partition('.')[0]}.{type(frame).__name__}"
    ways = [f".{name}()" for name in ("toPandas", "to_pandas", "compute", "to_df", "df") if hasattr(frame, name)]
    hint = f"Give a polars or pandas frame, such as its {ways[0]}." if ways else "Give a polars or pandas frame."
    raise DataError(f"{where} is a {kind.removeprefix('builtins.')}, not a table", hint)


def _of_polars(frame: pl.DataFrame) -> tuple[pl.LazyFrame, Unfit]:
    unfit: Unfit = {}
    for name, dtype in frame.schema.items():
        if dtype != pl.Object:
            continue
        read = _of_values(frame[name].to_list())
        if isinstance(read, pl.Series):
            frame = frame.with_columns(read.alias(name))
        else:
            unfit[name] = read
            frame = frame.with_columns(pl.lit(None).alias(name))
    return frame.lazy(), unfit


def _of_pandas(frame: pd.DataFrame, pandas: Any) -> tuple[pl.LazyFrame, Unfit]:
    """A pandas frame with what stands in its index beside its columns."""
    names = [_name(label) for label in frame.columns]
    columns = [(name, frame.iloc[:, place]) for place, name in enumerate(names)]
    index = frame.index
    for level in range(index.nlevels):
        values, label = index.get_level_values(level), index.names[level]
        if label is not None and not any(name == str(label) and _same(values, column) for name, column in columns):
            columns.append((str(label), pandas.Series(values, index=range(len(frame)))))
        elif label is None and not pandas.api.types.is_integer_dtype(values.dtype) and len(frame):
            free = next(name for name in ("index", f"level_{level}", f"__index_{level}__") if name not in names)
            columns.append((free, pandas.Series(values, index=range(len(frame)))))
    read: dict[str, pl.Series] = {}
    unfit: Unfit = {}
    for name, column in columns:
        if name in read:
            again = _series(column, pandas)
            if not (isinstance(again, pl.Series) and again.equals(read[name], null_equal=True)):
                unfit[name] = _TWICE
            continue
        found = _series(column, pandas)
        if not isinstance(found, pl.Series):
            unfit[name] = found
            found = pl.Series([None] * len(frame), dtype=pl.Null)
        read[name] = found
    return pl.DataFrame([values.alias(name) for name, values in read.items()]).lazy(), unfit


def _name(label: Any) -> str:
    """A column's name; of one with several, as `groupby(...).agg(...)` makes them, these together."""
    return "_".join(str(part) for part in label if str(part)) if isinstance(label, tuple) else str(label)


def _same(values: Any, column: Any) -> bool:
    try:
        return bool((values == column.to_numpy()).all())
    except (TypeError, ValueError, AttributeError):
        return False


def _series(column: pd.Series, pandas: Any) -> pl.Series | tuple[str, str]:
    """One pandas column as polars, or why it cannot be."""
    column = column.reset_index(drop=True)
    dtype: Any = column.dtype
    if isinstance(dtype, pandas.SparseDtype):
        column = column.sparse.to_dense()
    elif isinstance(dtype, pandas.IntervalDtype):
        return f"values of type {dtype} say nothing here", "Make it text or numbers first."
    elif isinstance(dtype, pandas.PeriodDtype):  # a month as its first moment, which keeps the order
        column = column.dt.to_timestamp()
    elif isinstance(dtype, pandas.CategoricalDtype) and str(dtype.categories.dtype) not in ("object", "str", "string"):
        column = column.astype(object)
    kind = str(column.dtype)
    if (kind.startswith("datetime") or kind.startswith("timestamp")) and getattr(column.dt, "tz", None) is not None:
        # A moment is the same in every zone; polars knows none of those that have no name, such as +05:30.
        column = column.dt.tz_convert("UTC")
    if kind == "object" and pandas.api.types.infer_dtype(column, skipna=True) not in _ONE_KIND:
        return _of_values(column.to_list())
    try:
        read: pl.Series = pl.from_pandas(column)  # type: ignore[assignment]
    except _PLAIN as error:
        return f"values of type {dtype} cannot be read ({_first(error)})", "Make it text or numbers first."
    return read


def _of_values(values: list[Any]) -> pl.Series | tuple[str, str]:
    """Python values of one kind as polars, or why they cannot be."""
    present = [value for value in values if not _is_missing(value)]
    kinds = {type(value) for value in present}
    clean = [None if _is_missing(value) else value for value in values]
    if kinds <= {set, frozenset}:  # several values of an item, in no order of their own
        clean = [None if value is None else sorted(map(str, value)) for value in clean]
    elif kinds and all(issubclass(kind, UUID | PurePath) for kind in kinds):
        clean = [None if value is None else str(value) for value in clean]
    elif len(kinds) > 1 and not _of_one_kind(kinds):
        shown = " and ".join(sorted(kind.__name__ for kind in kinds)[:4])
        return f"it holds values of several types ({shown})", "Give it one type, for example with .astype(str)."
    elif kinds and all(getattr(value, "tzinfo", None) is not None for value in present):
        # Of several zones in one column each moment is the same in UTC.
        clean = [None if value is None else value.astimezone(UTC) for value in clean]
    try:
        read = pl.Series(clean, strict=True)
    except _PLAIN as error:
        return f"its values cannot be read ({_first(error)})", "Make it text or numbers first."
    if read.dtype == pl.Object:
        shown = next(iter(kinds)).__name__ if kinds else "object"
        return f"its values are of type {shown}, which says nothing here", "Make it text or numbers first."
    return read


def _of_one_kind(kinds: set[type]) -> bool:
    """Whether values of several types can stand in one column without being changed."""
    if any(kind is bool or kind.__name__ == "bool" for kind in kinds):
        return False
    names = {kind.__name__ for kind in kinds}
    numbers = {"int", "float", "int64", "int32", "float64", "float32", "int16", "int8"}
    return (
        names <= numbers or names <= {"str", "str_"} or names <= {"list", "tuple"} or names <= {"Timestamp", "datetime"}
    )


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
