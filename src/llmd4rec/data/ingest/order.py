"""What a user's interactions are ordered by, and what becomes of rows that lack it."""

from __future__ import annotations

import polars as pl

from llmd4rec.data.ingest.columns import listing
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.ingest.table import Table
from llmd4rec.errors import ConfigError, DataError


def wanted(settings: Prepare, position: str | None, *, has_time: bool) -> str:
    """`position`, `time` or `row`: as the settings say, or by what there is."""
    if settings.split == "temporal":
        return "time"
    if settings.order_by != "auto":
        return settings.order_by
    return "position" if position is not None else "time" if has_time else "row"


def settle(
    frame: pl.DataFrame,
    settings: Prepare,
    position: str | None,
    time: str | None,
    table: Table,
    report: Report,
) -> tuple[pl.DataFrame, str]:
    """The order, and the rows that have what it needs.

    Raises:
        DataError: rows lack it, and the settings do not say to leave them out; or all do.
    """
    has_time = time is not None and frame["time"].null_count() < frame.height
    order = wanted(settings, position, has_time=has_time)
    if order == "row":
        return frame, order
    if settings.split == "temporal":
        purpose = "a temporal split needs the time of every interaction"
        remedy = "Name the column with --time-col, or use --split leave-one-out."
    else:
        purpose = f"ordering by {order} needs it in every row"
        remedy = "Choose another order with --order-by."
    column = position if order == "position" else time
    if column is None or (order == "time" and not has_time):
        error = ConfigError if settings.order_by == order and column is None else DataError
        raise error(f"{table.where} has no {order}s: {purpose}", f"It has: {listing(list(table.schema))}. {remedy}")
    lacking = frame[order].is_null()
    count = int(lacking.sum())
    if not count:
        return frame, order
    rows = frame.filter(lacking)["row"]
    if settings.missing_times == "drop":
        kept = frame.filter(~lacking)
        if not kept.height:
            raise DataError(f"{table.where}, column {column!r}: no row has a {order}", remedy)
        report.step(f"rows without {order}", frame.height, kept, rows, f"column {column!r} is empty there")
        return kept, order
    value = table.value(column, int(rows[0])) if column in table.schema else None
    what = "is empty" if value is None or not str(value).strip() else f"is {value!r}"
    raise DataError(
        f"{table.where}, row {rows[0]}: column {column!r} {what} ({count:,} of {frame.height:,} rows), and {purpose}",
        f"Leave such rows out with --missing-times drop, or fill them. {remedy}",
    )
