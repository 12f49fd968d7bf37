"""A table to read from: a file or a frame, with the name by which errors call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llmd4rec.data.ingest.frames import polars_of
from llmd4rec.data.ingest.time_zones import in_utc
from llmd4rec.errors import DataError

#: The number of each data row, from 1, uint32.
ROW = "__row__"
#: So many rows are looked at first.
HEAD = 10_000
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
        kept: which rows there are for everything but `value`; all where it is None. Their numbers stay.
        rows: how many rows there are, where they were counted before: reading fewer or more is an error.
    """

    lazy: pl.LazyFrame
    where: str
    about: dict[str, Any] = field(default_factory=dict)
    explain: Callable[[BaseException], None] = lambda _: None
    unfit: dict[str, tuple[str, str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    kept: pl.Expr | None = None
    rows: int | None = None

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The columns and their types."""
        try:
            return dict(self.lazy.collect_schema())
        except UNREADABLE as error:
            raise self.unreadable(error) from error

    def refuse_unfit(self, used: Iterable[str | None]) -> None:
        """Raises where one of the columns to be used is one of `unfit`."""
        for column in used:
            if column in self.unfit:
                why, remedy = self.unfit[column]
                raise DataError(f"{self.where}, column {column!r}: {why}", remedy)

    def collect(self, expressions: Sequence[pl.Expr], then: Sequence[pl.Expr] = ()) -> pl.DataFrame:
        """The given expressions over all rows; `ROW` is there to be selected.

        Args:
            expressions: what to select.
            then: what to make of these; an expression used in two others is worked out twice.

        Raises:
            DataError: the content cannot be read.
        """
        frame = self._collected(self._rows().select(expressions).with_columns(then))
        if self.kept is None and self.rows is not None and frame.height != self.rows:
            raise DataError(
                f"{self.where}: {frame.height:,} rows were read where {self.rows:,} were counted",
                "Its quotation marks or line ends are out of order: save it again as CSV with quoted fields.",
            )
        return frame

    def aggregated(self, expressions: Sequence[pl.Expr]) -> pl.DataFrame:
        """One row of sums, counts and the like."""
        return self._collected(self._rows().select(expressions))

    def sample(self, column: str) -> pl.Series:
        """The first values of a column that are there."""
        return self._collected(self._rows().select(column).drop_nulls().head(HEAD)).to_series()

    def head(self, columns: Sequence[str]) -> pl.DataFrame:
        """The first rows of some columns."""
        return self._collected(self._rows().select(columns).head(HEAD))

    def unmatched(self, column: str, expression: pl.Expr) -> pl.Series:
        """Some of the distinct values of a column for which an expression gives nothing."""
        rows = self._rows().select(column).filter(pl.col(column).is_not_null() & expression.is_null())
        return self._collected(rows.unique().head(HEAD)).to_series()

    def first(self, column: str, condition: pl.Expr) -> tuple[int, Any] | None:
        """Row and value of the first row for which a condition holds, if there is one."""
        rows = self._collected(self._rows().filter(condition).select(ROW, column).head(1))
        return rows.row(0) if rows.height else None

    def _rows(self) -> pl.LazyFrame:
        numbered = self.lazy.with_row_index(ROW, offset=1)
        return numbered if self.kept is None else numbered.filter(self.kept)

    def _collected(self, rows: pl.LazyFrame) -> pl.DataFrame:
        try:
            return rows.collect(engine="streaming")
        except UNREADABLE as error:
            raise self.unreadable(error) from error

    def value(self, column: str, row: int) -> Any:
        """One value, for an error message."""
        try:
            return self.lazy.select(column).slice(row - 1, 1).collect(engine="streaming").item()
        except UNREADABLE as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: BaseException) -> DataError:
        """The error to raise for one that was met while reading."""
        self.explain(error)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return DataError(f"{self.where} cannot be read: {first}", "The file may be damaged or cut short; get it again.")


def table_of(frame: Any, where: str) -> Table:
    """A table over a frame; see :func:`~llmd4rec.data.ingest.frames.polars_of` for which.

    Raises:
        DataError: it is none.
    """
    lazy, unfit = polars_of(frame, where)
    return Table(in_utc(lazy), where, unfit=unfit)
