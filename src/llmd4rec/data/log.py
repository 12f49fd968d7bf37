"""The interaction log as numbers: identifiers become codes while the file is being read.

A row then takes some thirty bytes instead of two strings, which is what lets tens of millions of rows be cleaned in
memory. Every row carries its number in the file, so whatever is dropped can be named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from llmd4rec.data import columns, ids, times
from llmd4rec.data.report import Report
from llmd4rec.data.sequences import unrolled
from llmd4rec.data.settings import Prepare
from llmd4rec.data.table import ROW, Table
from llmd4rec.errors import ConfigError, DataError


@dataclass(frozen=True)
class Log:
    """Interactions as codes.

    Args:
        frame: `row` (number in the file, from 1), `user` and `item` (codes, uint32), and where known `position`
            and `time` (null where unknown).
        user_ids: identifier of each user code, in order of first appearance in the file.
        item_ids: identifier of each item code, in order of their hash.
        unit: the unit of `time`.
        order: `position`, `timestamp` or `row`.
        item_column: the name of the item column, to be looked for in the catalogue.
    """

    frame: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    unit: str | None
    order: str
    item_column: str


def read_log(table: Table, settings: Prepare, report: Report) -> Log:
    """Reads the columns that matter, drops rows without user or item, and settles the order.

    Raises:
        DataError: a column is missing, a time or position cannot be read, nothing is there, or most rows have no id.
    """
    table, settings = unrolled(table, settings)
    names = list(table.schema)
    find = {"where": table.where}
    user = columns.choose(names, settings.user_col, columns.USER, "user", option="--user-col", **find)
    rest = [name for name in names if name != user]
    item = columns.choose(rest, settings.item_col, columns.ITEM, "item", option="--item-col", **find)
    rest.remove(item)
    position = _optional(rest, settings.position_col, columns.POSITION, "position", "--position-col", table)
    time = _optional(rest, settings.time_col, columns.TIME, "time", "--time-col", table)

    table.refuse_unfit((user, item, position, time))
    for warning in table.warnings:
        report.warn(warning)

    category = {name: pl.Categorical(pl.Categories.random("llmd4rec", pl.UInt32)) for name in ("user", "item")}
    wanted = [
        pl.col(ROW).alias("row"),
        ids.id_text(user, table.schema[user], table.where).cast(category["user"]).alias("user"),
        ids.id_text(item, table.schema[item], table.where).cast(category["item"]).alias("item"),
    ]
    if position is not None:
        wanted.append(_number(position, table).alias("position"))
    plan = None
    if time is not None:
        plan = times.plan(time, table.schema[time], table.sample(time), table.where)
        wanted += _times(time, plan, table)
    frame = table.collect(wanted)
    if not frame.height:
        raise DataError(f"{table.where} has no rows", "Give a file with at least a few interactions.")
    if time is not None and plan is not None:
        frame = _read_other_forms(frame, time, plan, table)

    codes, user_ids = _code(frame["user"], table, user, by_hash=False)
    frame = frame.with_columns(codes.alias("user"))
    codes, item_ids = _code(frame["item"], table, item, by_hash=True)
    frame = frame.with_columns(codes.alias("item"))
    report.step("read", frame.height, frame)
    _warn_of_suspicious(user_ids, item_ids, report)
    for what, found in (("user", user_ids), ("item", item_ids)):
        ids.warn_of_blanks(found, f"{what}s of {table.where}", report)
    frame = _drop_without_id(frame, table, user, item, report)

    unit = None
    if time is not None and plan is not None:
        _refuse_bad_times(frame, time, table)
        if plan.unit is None:
            _refuse_mixed_units(frame, time, table)
        unit = plan.unit or times.guess_unit(frame["time"].drop_nulls())
        frame = frame.drop("bad")
    order = _settle_order(frame, settings, position, time, table)
    if order == "row" and "order_of_files" in table.about:
        report.warn(f"histories follow the order of the files: {table.about['order_of_files']}")
    report.facts["interactions"] = {
        **table.about,
        "columns": {"user": user, "item": item, "time": time, "position": position},
        "time_unit": unit,
        "ordered_by": order,
    }
    return Log(frame, user_ids, item_ids, unit, order, item)


def _optional(
    names: list[str], named: str | None, known: tuple[str, ...], what: str, option: str, table: Table
) -> str | None:
    if named is not None:
        return columns.require(list(table.schema), named, what, table.where, option)
    return columns.guess(names, known)


def _number(column: str, table: Table) -> pl.Expr:
    """A position: a number, or text that holds one."""
    dtype = table.schema[column]
    if dtype.is_integer():
        return pl.col(column).cast(pl.Int64)
    if dtype.is_float() or dtype == pl.String:
        return pl.col(column).cast(pl.Float64, strict=False).fill_nan(None)
    raise DataError(
        f"{table.where}, column {column!r}: {dtype} is no position",
        "Name another column with --position-col, or order by something else with --order-by.",
    )


def _given(column: str, table: Table) -> pl.Expr:
    """Whether a value is there at all."""
    dtype = table.schema[column]
    if dtype == pl.String:
        return pl.col(column).str.strip_chars().fill_null("") != ""
    there = pl.col(column).is_not_null()
    return there & pl.col(column).is_not_nan() if dtype.is_float() else there


def _code(raw: pl.Series, table: Table, column: str, *, by_hash: bool) -> tuple[pl.Series, pl.Series]:
    """Codes as uint32 (null where there is no identifier) and the identifier of each code."""
    distinct = raw.drop_nulls().unique(maintain_order=True)
    names = ids.tidy(distinct.cast(pl.String), table.schema[column], table.where, column)
    kept = names.is_not_null().to_numpy()
    names = names.drop_nulls()
    rank = ids.hash_rank(names) if by_hash else np.arange(len(names))
    physical = distinct.to_physical().to_numpy()
    absent = np.iinfo(np.uint32).max
    lookup = np.full(int(physical.max(initial=0)) + 1, absent, dtype=np.uint32)
    lookup[physical[kept]] = rank
    given = raw.to_physical()
    codes = pl.Series(lookup[given.fill_null(0).to_numpy()])
    missing = given.is_null() | (codes == absent)
    codes = pl.select(pl.when(~missing).then(codes)).to_series()
    ordered = names if not by_hash else names.gather(np.argsort(rank))
    return codes, ordered


def _warn_of_suspicious(user_ids: pl.Series, item_ids: pl.Series, report: Report) -> None:
    for what, series in (("user", user_ids), ("item", item_ids)):
        for text in series.filter(series.is_in(ids.SUSPICIOUS)).sort():
            report.warn(f"one {what} is called {text!r}, which often stands for a missing identifier; it was kept")


def _drop_without_id(frame: pl.DataFrame, table: Table, user: str, item: str, report: Report) -> pl.DataFrame:
    missing = frame["user"].is_null() | frame["item"].is_null()
    count = int(missing.sum())
    if not count:
        return frame
    rows = frame.filter(missing)["row"]
    if 2 * count > frame.height:
        raise DataError(
            f"{table.where}: {count:,} of {frame.height:,} rows have no user or no item (columns {user!r}, {item!r}; "
            f"the first is row {rows[0]})",
            "Are these the right columns? Name others with --user-col and --item-col.",
        )
    kept = frame.filter(~missing)
    report.step("rows without user or item", frame.height, kept, rows, "an empty field or a blank line")
    return kept


def _times(column: str, plan: times.TimePlan, table: Table) -> list[pl.Expr]:
    """`time`, and `bad` where there is a value that is none."""
    return [plan.value.alias("time"), (_given(column, table) & plan.value.is_null()).alias("bad")]


def _read_other_forms(frame: pl.DataFrame, column: str, plan: times.TimePlan, table: Table) -> pl.DataFrame:
    """The frame with its times read again as long as formats turn up that the first values did not show."""
    while frame["bad"].any():
        wider = times.widened(plan, column, table.unmatched(column, plan.value))
        if wider is None:
            break
        plan = wider
        frame = frame.drop("time", "bad").hstack(table.collect(_times(column, plan, table)))
    return frame


def _refuse_mixed_units(frame: pl.DataFrame, column: str, table: Table) -> None:
    """Seconds beside milliseconds would be ordered as if the latter were thousands of years later."""
    found = times.mixed_units(frame["time"].drop_nulls())
    if found is None:
        return
    shown = [f"row {row}: {value} ({unit})" for unit in found for row, value in [times.first_of(frame, unit)]]
    raise DataError(
        f"{table.where}, column {column!r}: times in {found[0]} and in {found[1]} side by side ({', '.join(shown)})",
        "Bring all of them to one unit.",
    )


def _refuse_bad_times(frame: pl.DataFrame, column: str, table: Table) -> None:
    bad = frame.filter("bad")["row"]
    if len(bad):
        value = table.value(column, int(bad[0]))
        more = f" (and {len(bad) - 1:,} more rows)" if len(bad) > 1 else ""
        raise DataError(
            f"{table.where}, row {bad[0]}, column {column!r}: {value!r} is no time I can read{more}",
            "Times may be seconds, milliseconds, microseconds or nanoseconds since 1970, or like 2024-01-31 12:34:56.",
        )


def _settle_order(frame: pl.DataFrame, settings: Prepare, position: str | None, time: str | None, table: Table) -> str:
    """`position`, `timestamp` or `row`; the column it needs is complete."""
    has_time = time is not None and frame["time"].null_count() < frame.height
    order: str = settings.order_by
    if settings.split == "temporal":
        order = "timestamp"
        purpose = "a temporal split needs the time of every interaction"
        remedy = "Name the column with --time-col, or use --split leave-one-out."
    else:
        if order == "auto":
            order = "position" if position is not None else "timestamp" if has_time else "row"
        purpose = f"ordering by {order} needs it in every row"
        remedy = "Fill or remove these rows, or choose another order with --order-by."
    if order == "row":
        return order
    column = position if order == "position" else time
    if column is None or (order == "timestamp" and not has_time):
        found = f"{table.where} has no {order}s"
        error = ConfigError if settings.order_by == order and column is None else DataError
        raise error(f"{found}: {purpose}", f"It has: {columns.listing(list(table.schema))}. {remedy}")
    missing = frame.filter(pl.col("position" if order == "position" else "time").is_null())["row"]
    if len(missing):
        value = table.value(column, int(missing[0]))
        what = "is empty" if value is None or not str(value).strip() else f"is {value!r}"
        raise DataError(
            f"{table.where}, row {missing[0]}: column {column!r} {what} ({len(missing):,} such rows), and {purpose}",
            remedy,
        )
    return order


def about_times(log: Log) -> dict[str, Any]:
    """First and last moment as text, for the report."""
    if log.unit is None or "time" not in log.frame.columns:
        return {}
    seconds = times.to_seconds(log.frame["time"], log.unit)
    first, last = seconds.min(), seconds.max()
    return {"first": times.as_text(first), "last": times.as_text(last)} if isinstance(first, int) else {}
