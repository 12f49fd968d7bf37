"""A table to read from: a file or a frame, with the name by which errors call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llmd4rec.data.frames import polars_of
from llmd4rec.errors import DataError

#: The number of each data row, from 1, uint32.
ROW = "__row__"
_SAMPLE = 10_000
#: What polars raises for a file that it cannot read; it panics where it believes a damaged Parquet file too much.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


@dataclass(frozen=True)
class Table:
    """Rows to be read, at most a few times.

    Args:
        lazy: the rows, in file order, without row numbers.
        where: what to call it in messages.
        about: file name, format and checksum for the report.
        explain: turns an error met while reading into one that names the row; returns if it cannot.
        unfit: columns whose values cannot be told what they mean: why, and what to do; to use one is an error.
        warnings: for the report.
    """

    lazy: pl.LazyFrame
    where: str
    about: dict[str, Any] = field(default_factory=dict)
    explain: Callable[[BaseException], None] = lambda _: None
    unfit: dict[str, tuple[str, str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The columns and their types."""
        try:
            return dict(self.lazy.collect_schema())
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def refuse_unfit(self, used: Iterable[str | None]) -> None:
        """Raises where one of the columns to be used is one of `unfit`."""
        for column in used:
            if column in self.unfit:
                why, remedy = self.unfit[column]
                raise DataError(f"{self.where}, column {column!r}: {why}", remedy)

    def collect(self, expressions: Sequence[pl.Expr]) -> pl.DataFrame:
        """The given expressions over all rows; `ROW` is there to be selected.

        Raises:
            DataError: the content cannot be read.
        """
        numbered = self.lazy.with_row_index(ROW, offset=1)
        try:
            return numbered.select(expressions).collect(engine="streaming")
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def sample(self, column: str) -> pl.Series:
        """The first values of a column that are there."""
        try:
            return self.lazy.select(column).drop_nulls().head(_SAMPLE).collect(engine="streaming").to_series()
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def unmatched(self, column: str, expression: pl.Expr) -> pl.Series:
        """Some of the distinct values of a column for which an expression gives nothing."""
        rows = self.lazy.select(column).filter(pl.col(column).is_not_null() & expression.is_null())
        try:
            return rows.unique().head(_SAMPLE).collect(engine="streaming").to_series()
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def value(self, column: str, row: int) -> Any:
        """One value, for an error message."""
        try:
            return self.lazy.select(column).slice(row - 1, 1).collect(engine="streaming").item()
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException) -> DataError:
        self.explain(error)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return DataError(f"{self.where} cannot be read: {first}", "The file may be damaged or cut short; get it again.")


def table_of(frame: Any, where: str) -> Table:
    """A table over a frame; see :func:`~llmd4rec.data.frames.polars_of` for which.

    Raises:
        DataError: it is none.
    """
    lazy, unfit = polars_of(frame, where)
    return Table(lazy, where, unfit=unfit)
