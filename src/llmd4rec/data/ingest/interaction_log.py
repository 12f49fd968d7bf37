"""The interaction log as numbers: identifiers become codes while the file is being read.

A row then takes some thirty bytes instead of two strings, which is what lets tens of millions of rows be cleaned in
memory. Every row carries its number in the file, so whatever is dropped can be named.
"""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from llmd4rec.data.ingest import columns, feedback, ids, order, row_filter, time_columns, times
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.sequences import unrolled
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.ingest.table import ROW, Table
from llmd4rec.errors import DataError

#: Seconds by which a clock of another zone may be ahead.
_TOMORROW = 2 * 86_400
#: So much of a value is shown in an error.
_SHOWN = 80
#: What confines `bad` to values that are no times; worked out behind `time`, which would be worked out twice otherwise.
_BAD = (pl.col("bad") & pl.col("time").is_null(),)


@dataclass(frozen=True)
class Log:
    """Interactions as codes.

    Args:
        frame: `row` (number in the file, from 1), `user` and `item` (codes, uint32), and where known `position`
            and `time` (null where unknown).
        user_ids: identifier of each user code, in order of first appearance in the file.
        item_ids: identifier of each item code, in order of their hash.
        unit: the unit of `time`.
        order: `position`, `time` or `row`.
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
    table, conditions = row_filter.filtered(table, settings.where)
    table, time, plan = _time_plan(table, time, rest, settings, report)

    category = {name: pl.Categorical(pl.Categories.random("llmd4rec", pl.UInt32)) for name in ("user", "item")}
    wanted = [
        pl.col(ROW).alias("row"),
        ids.id_text(user, table.schema[user], table.where).cast(category["user"]).alias("user"),
        ids.id_text(item, table.schema[item], table.where).cast(category["item"]).alias("item"),
        *(verdict.alias(f"where {at}") for at, (_, verdict) in enumerate(conditions)),
    ]
    if position is not None:
        wanted.append(_number(position, table).alias("position"))
    if time is not None and plan is not None:
        wanted += _times(time, plan, table)
    everything = replace(table, kept=None)
    frame = everything.collect(wanted, _BAD if time is not None else ())
    if not frame.height:
        raise DataError(f"{table.where} has no rows", "Give a file with at least a few interactions.")
    if conditions:
        report.step("read", frame.height, frame.select(pl.col("user", "item").to_physical()))
        frame = row_filter.apply(frame, conditions, everything, report)
    if time is not None and plan is not None:
        frame, plan = _read_other_forms(frame, time, plan, table)
    unused = [name for name in rest if name not in (position, time)]
    found = _better_time(frame, table, settings, unused, position, time)
    for note in found.notes:
        report.warn(note)
    if found.column is not None:
        time = found.column
        plan = times.plan(time, table, settings.time_format)
        frame = frame.drop("time", "bad", strict=False).hstack(table.collect(_times(time, plan, table), _BAD))
        frame, plan = _read_other_forms(frame, time, plan, table)

    codes, user_ids = _code(frame["user"], table, user, by_hash=False)
    frame = frame.with_columns(codes.alias("user"))
    codes, item_ids = _code(frame["item"], table, item, by_hash=True)
    frame = frame.with_columns(codes.alias("item"))
    if not conditions:
        report.step("read", frame.height, frame)
        feedback.warn_of_unfiltered(table, unused, report)
    for what, column, known in (("user", user, user_ids), ("item", item, item_ids)):
        ids.warn_of_placeholders(known, frame[what], what, column, report)
        ids.warn_of_spellings(known, f"{what}s of {table.where}", report)
    frame = _drop_without_id(frame, table, user, item, report)

    frame, time, plan, unit = _checked_times(frame, time, plan, table, settings, report)
    for note in time_columns.hours_beside(table, time, plan, unused) if time is not None and plan is not None else ():
        report.warn(note)
    frame, ordered_by = order.settle(frame, settings, position, time, table, report)
    if ordered_by == "row" and settings.order_by == "auto":
        _warn_of_rows_alone(time, table, report)
    if ordered_by == "row" and "order_of_files" in table.about:
        report.warn(f"histories follow the order of the files: {table.about['order_of_files']}")
    report.facts["interactions"] = {
        **table.about,
        **({"where": list(settings.where)} if settings.where else {}),
        "columns": {"user": user, "item": item, "time": time, "position": position},
        "time_unit": unit,
        **({"time_formats": formats} if plan is not None and (formats := plan.forms.formats()) else {}),
        "ordered_by": ordered_by,
    }
    return Log(frame, user_ids, item_ids, unit, ordered_by, item)


def _needless(settings: Prepare) -> bool:
    """Whether nothing is ordered by times, and a column of them is at most guessed: then it need not be readable."""
    return settings.time_col is None and settings.order_by in ("row", "position")


def _time_plan(
    table: Table, time: str | None, rest: list[str], settings: Prepare, report: Report
) -> tuple[Table, str | None, times.TimePlan | None]:
    """How to read the column of times; the table, with the column that is made where hours stand beside their days."""
    if time is None:
        return table, None, None
    try:
        table, time = time_columns.with_day(table, time, rest, report)
        return table, time, times.plan(time, table, settings.time_format)
    except DataError as error:
        if not _needless(settings):
            raise
        report.warn(f"{error.what}; its times were left out")
        return table, None, None


def _checked_times(
    frame: pl.DataFrame,
    time: str | None,
    plan: times.TimePlan | None,
    table: Table,
    settings: Prepare,
    report: Report,
) -> tuple[pl.DataFrame, str | None, times.TimePlan | None, str | None]:
    """The frame without `bad`, and the unit of its times, after what is wrong or odd with them was refused or said."""
    if time is None or plan is None:
        return frame, None, None, None
    bad = int(frame["bad"].sum())
    if bad and _needless(settings):
        report.warn(f"column {time!r} holds {bad:,} values that are no times; its times were left out")
        return frame.drop("time", "bad"), None, None, None
    _refuse_bad_times(frame, time, table)
    if plan.unit is None:
        _refuse_mixed_units(frame, time, table)
    unit = plan.unit or times.guess_unit(frame["time"].drop_nulls())
    frame = frame.drop("bad")
    for note in times.notes(plan, time, table):
        report.warn(note)
    _warn_of_far_times(frame, unit, time, table, report)
    return frame, time, plan, unit


def _better_time(
    frame: pl.DataFrame, table: Table, settings: Prepare, rest: list[str], position: str | None, time: str | None
) -> time_columns.Found:
    """A column of times that the names did not tell, where nothing that the caller says makes it needless."""
    if settings.time_col is not None or (settings.order_by in ("row", "position") and settings.split != "temporal"):
        return time_columns.Found()
    has_time = time is not None and frame["time"].null_count() < frame.height
    now = order.wanted(settings, position, has_time=has_time)
    if now == "position" and time is not None:
        return time_columns.Found()
    needed = now == "time" and not has_time
    known = time if has_time else None
    return time_columns.find(frame, table, rest, "row" if needed else now, known, settings.time_format, needed=needed)


def _warn_of_rows_alone(time: str | None, table: Table, report: Report) -> None:
    lacks = f"{table.where} has no column that is known as the time or the position"
    if time is not None:
        lacks = f"{table.where} has no position, and no row has a time in column {time!r}"
    report.warn(
        f"{lacks}: each user's rows were taken in the order in which they stand; name the column with --time-col, or "
        "say --order-by row if that order is right"
    )


def _warn_of_far_times(frame: pl.DataFrame, unit: str, column: str, table: Table, report: Report) -> None:
    """Points out zeros, years 1900 and 9999, and the like, which stand for something else among times of today."""
    low = times.PLAUSIBLE[0] * times.UNITS[unit]
    high = (int(clock.time()) + _TOMORROW) * times.UNITS[unit]
    inside = frame["time"].is_between(low, high)
    outside = frame.filter(~inside)
    if outside.height and 2 * int(inside.sum()) > frame.height:
        row = outside["row"][0]
        report.warn(
            f"column {column!r}: {outside.height:,} times are before 1990 or in the future, unlike the others, the "
            f"first in row {row} ({table.value(column, row)!r}); if they stand for something else, leave them out with "
            "--where"
        )


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
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return pl.col(column).cast(pl.String).str.strip_chars().fill_null("") != ""
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
    """`time`, and `bad` where there is a value, which `_BAD` then confines to those that are no times."""
    given = _given(column, table)
    if plan.missing:
        given = given & ~pl.col(column).cast(pl.String).str.strip_chars().str.to_lowercase().is_in(times.MISSING)
    return [plan.value.alias("time"), given.alias("bad")]


def _read_other_forms(
    frame: pl.DataFrame, column: str, plan: times.TimePlan, table: Table
) -> tuple[pl.DataFrame, times.TimePlan]:
    """The frame with its times read again as long as formats turn up that the first values did not show."""
    while frame["bad"].any():
        wider = times.widened(plan, column, table, table.unmatched(column, plan.value))
        if wider is None:
            break
        plan = wider
        frame = frame.drop("time", "bad").hstack(table.collect(_times(column, plan, table), _BAD))
    return frame, plan


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
        shown = str(value) if len(str(value)) <= _SHOWN else str(value)[:_SHOWN] + "…"
        more = f" (and {len(bad) - 1:,} more rows)" if len(bad) > 1 else ""
        raise DataError(
            f"{table.where}, row {bad[0]}, column {column!r}: {shown!r} is no time I can read{more}",
            "Times may be seconds to nanoseconds since 1970, or like 2024-01-31 12:34:56. Name another form with "
            "--time-format (as strptime takes it), or leave such rows out with --where "
            f'"{row_filter.condition_text(column, "!=", shown)}".',
        )


def about_times(log: Log) -> dict[str, Any]:
    """First and last moment as text, for the report."""
    if log.unit is None or "time" not in log.frame.columns:
        return {}
    seconds = times.to_seconds(log.frame["time"], log.unit)
    first, last = seconds.min(), seconds.max()
    return {"first": times.as_text(first), "last": times.as_text(last)} if isinstance(first, int) else {}
