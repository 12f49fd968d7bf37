"""Columns that hold times though their name does not say so, and finer ones beside the one that is known.

A column reads as moments where all of its first values are texts or dates between 1990 and 2100, or numbers that are
so in one unit. Numbers may be anything else too, so they count for certain only where the name speaks of time. What is
the same in all rows of an item (a release) or of a user (a birthday) is no time of an interaction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest import times
from llmd4rec.data.ingest.columns import listing, words
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.time_formats import digits
from llmd4rec.data.ingest.times import TimePlan
from llmd4rec.errors import DataError

#: Parts of the names of columns of times, in the languages of most logs; of a whole word, and of a name's words.
_WITHIN = re.compile(
    "time|date|stamp|datum|zeit|fecha|epoch|unix|moment|heure|horodat|quando|orario|tijd|millis|utc|дата|время"
)
_WORDS = {
    *("ts", "dt", "at", "ms", "us", "ns", "day", "when", "start", "begin", "since"),
    *("data", "hora", "ora", "tid"),
}
_STARTS = {"start", "begin", "started"}
#: The last word of the name of numbers that are no times, even if they are as large.
_NO_TIMES = {
    *("id", "ids", "no", "nr", "num", "number", "code", "isbn", "ean", "gtin", "upc", "sku"),
    *("phone", "hash", "key", "ip"),
}
_DATES = (pl.Date, pl.Datetime)
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
#: An item's rows all bear one moment in this share of the items with several rows: it is the item's, not theirs.
_OF_THE_ITEM = 0.9
#: A column of moments may have so large a share of other values.
_STRANGE = 0.01
_LONGEST = 60

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class TimeColumn:
    """A column that reads as moments.

    Args:
        column: its name.
        plans: how it is read; several where the days have readings that its first values leave open.
        sure: it can hardly be anything else.
    """

    column: str
    plans: tuple[TimePlan, ...]
    sure: bool


@dataclass(frozen=True)
class Found:
    """The column of times to take in place of the one that is known, if any, and what to say."""

    column: str | None = None
    notes: tuple[str, ...] = ()


def time_columns_among(table: Table, columns: Sequence[str], formats: Sequence[str] = ()) -> list[TimeColumn]:
    """The columns that read as moments, by their first values; by the given formats where there are any."""
    fit = [name for name in columns if name not in table.unfit and _may_hold(table.schema[name])]
    if not fit:
        return []
    head = table.head(fit)
    return [found for name in fit if (found := _moments(name, head[name], table, formats)) is not None]


def _may_hold(dtype: pl.DataType) -> bool:
    return dtype in _TEXTS or dtype in _DATES or dtype.is_integer() or dtype.is_float()


def _moments(name: str, head: pl.Series, table: Table, formats: Sequence[str]) -> TimeColumn | None:
    dtype, (values, _) = head.dtype, times.told(head)
    # Most columns are out at this: prices, words, counts and identifiers do not look like this.
    if len(values) < 2 or values[0] == "" or (values.str.len_chars() > _LONGEST).any():
        return None
    if dtype not in _DATES and not values.head(20).str.contains(r"\d.*\d.*\d.*\d").all():
        return None
    shown = head.drop_nulls().to_frame()
    plans = []
    for plan in times.plans(name, table, () if dtype in _DATES else formats):
        read = shown.select(plan.value).to_series()
        unit = plan.unit or times.guess_unit(read.drop_nulls())
        low, high = (moment * times.UNITS[unit] for moment in times.PLAUSIBLE)
        told = shown.filter(_given(name, dtype, plan)).select(plan.value).to_series()
        if len(told) and told.is_between(low, high).fill_null(False).mean() >= 1 - _STRANGE:  # type: ignore[operator]
            plans.append(plan)
    if not plans:
        return None
    named = words(name)
    if dtype in _DATES or (plans[0].text is not None and digits(values.str.strip_suffix(".0")) is None):
        return TimeColumn(name, tuple(plans), sure=True)
    if named and named[-1] in _NO_TIMES:
        return None
    telling = bool(_WITHIN.search(" ".join(named))) or bool(_WORDS & set(named))
    counted_in_days = plans[0].unit == "microseconds" and plans[0].text is None
    return TimeColumn(name, tuple(plans), sure=telling) if telling or not counted_in_days else None


def _given(name: str, dtype: pl.DataType, plan: TimePlan) -> pl.Expr:
    """Whether a value is there that does not stand for an unknown time."""
    there = pl.col(name).is_not_null()
    if dtype in _TEXTS:
        text = pl.col(name).cast(pl.String).str.strip_chars()
        there = there & (text != "")
        if plan.missing:
            there = there & ~text.str.to_lowercase().is_in(times.MISSING)
    return there & pl.col(name).is_not_nan() if dtype.is_float() else there


class Rows:
    """The rows of a log, and how columns of numbers go along with their users' order.

    Args:
        frame: `row`, `user`, `item` and what `by` names.
        by: the columns by which each user's rows are ordered, ties as they stand.
    """

    def __init__(self, frame: pl.DataFrame, by: Sequence[str]) -> None:
        self.frame = frame.select("row", *by, pl.col("user", "item").to_physical())
        self.by = tuple(by)

    def falls(self, values: pl.Series, by: Sequence[pl.Series] = ()) -> int:
        """In how many places a column falls from one row of a user to the next."""
        return int(self._steps(values, by)[0].sum())

    def rises(self, values: pl.Series) -> int:
        """In how many places a column rises along with itself: the more, the finer it is."""
        return int(self._steps(values, [values])[1].sum())

    def fineness(self, values: pl.Series) -> tuple[int, int]:
        """The more, the finer: places where it rises, then different values."""
        return self.rises(values), values.n_unique()

    def is_of_the_item(self, values: pl.Series) -> bool:
        """Whether nearly all items bear one value in all their rows, though the column has several."""
        table = pl.DataFrame({"item": self.frame["item"], "v": values}).drop_nulls()
        items = table.group_by("item").agg(pl.len(), (pl.col("v").min() == pl.col("v").max()).alias("one"))
        several = items.filter(pl.col("len") > 1)["one"]
        return values.n_unique() > 1 and len(several) > 0 and float(several.mean()) > _OF_THE_ITEM  # type: ignore[arg-type]

    def _steps(self, values: pl.Series, by: Sequence[pl.Series]) -> tuple[Bool, Bool]:
        columns = {f"by {at}": series for at, series in enumerate(by)}
        frame = self.frame.with_columns(values.alias("value"), **columns).drop_nulls("value")
        keys = [*columns] if by else [*self.by]
        frame = frame.sort("user", *keys, "row").select("user", "value")
        user, value = frame["user"].to_numpy(), frame["value"].to_numpy()
        same = user[1:] == user[:-1]
        return same & (value[1:] < value[:-1]), same & (value[1:] > value[:-1])


def find(
    frame: pl.DataFrame,
    table: Table,
    rest: Sequence[str],
    order: str,
    time: str | None,
    formats: Sequence[str] = (),
    *,
    needed: bool,
) -> Found:
    """The column of times that the names did not tell.

    Args:
        frame: `row`, `user`, `item`, and `time` and `position` where known.
        table: the rows of `frame`, in the same order.
        rest: the columns that nothing is read from.
        order: `time`, `position` or `row`, as it is without such a column.
        time: the column that is taken for the time by its name, if any.
        formats: of times, if the caller names them.
        needed: the order must be that of times, known or not.

    Raises:
        DataError: several columns contradict the order, and one another.
    """
    among = time_columns_among(table, rest, formats)
    if not among:
        return Found()
    by = [name for name in ({"time": "time", "position": "position"}.get(order),) if name in frame.columns]
    rows = Rows(frame, [name for name in by if name is not None])
    read = _whole_columns(among, table, rows)
    if order == "time" and time is not None:
        return _finer(read, rows, frame["time"], time)
    against = [found for found in read if found.falls or needed]
    sure = [found for found in against if found.moments.sure and len(found.values) == 1]
    if order == "position":
        return Found(None, _contradictions(sure, order))
    if not sure:
        open_days = [found for found in against if len(found.values) > 1 and found.moments.sure]
        if open_days:
            times.plan(open_days[0].moments.column, table, formats)  # raises: its days have two readings
        agreeing = [found.moments.column for found in read if not found.falls and found.moments.sure]
        notes = tuple(
            f"column {column!r} reads as times and does not contradict the order of the rows; --time-col takes it"
            for column in agreeing[:1]
        )
        return Found(None, (*_contradictions(against, order), *notes))
    # Of two as fine, what happens in a session rather than its start.
    best = max(sure, key=lambda found: (rows.fineness(found.values[0]), not _STARTS & set(words(found.moments.column))))
    unlike = [found for found in sure if rows.falls(found.values[0], [best.values[0]])]
    if unlike:
        named = listing([found.moments.column for found in (best, *unlike)])
        raise DataError(
            f"{table.where} has no column that is known as the time, and several that read as times and differ in the "
            f"order of a user's rows: {named}",
            "Name the right one with --time-col, or say that the rows stand in order with --order-by row.",
        )
    for found in read:  # numbers that no name tells: finer than what is sure, and nowhere against it
        if found not in sure and len(found.values) == 1 and _refines(rows, found.values[0], best.values[0]):
            best = found
    also = [found.moments.column for found in sure if found is not best]
    beside = f" (the finest of those that agree with it: {listing(also)})" if also else ""
    contradicts = f"; the order of the rows contradicts it in {best.falls:,} places" if best.falls else ""
    taken = f"column {best.moments.column!r} reads as times and was taken for the order{beside}{contradicts}"
    return Found(best.moments.column, (f"{taken}; --order-by row keeps the order of the rows",))


@dataclass(frozen=True, eq=False)
class _Read:
    """A column of moments with its values, by each reading, and in how many places it falls in the order known."""

    moments: TimeColumn
    values: tuple[pl.Series, ...]
    falls: int


def _whole_columns(among: Sequence[TimeColumn], table: Table, rows: Rows) -> list[_Read]:
    """All values of the columns, without those that turn out to hold other things, or to be the item's."""
    wanted = [
        expression
        for at, found in enumerate(among)
        for expression in (
            *(plan.value.alias(f"{at} {n}") for n, plan in enumerate(found.plans)),
            _given(found.column, table.schema[found.column], found.plans[0]).sum().alias(f"{at} given"),
        )
    ]
    frame = table.collect(wanted)
    read = []
    for at, found in enumerate(among):
        values = [frame[f"{at} {n}"] for n in range(len(found.plans))]
        given = int(frame[f"{at} given"][0]) if frame.height else 0
        fewest = min(series.null_count() for series in values)
        if len(values) == 1 and frame.height - fewest < given:
            unread = table.unmatched(found.column, found.plans[0].value)
            wider = times.widened(found.plans[0], found.column, table, unread)
            values = values if wider is None else [table.collect([wider.value.alias("v")])["v"]]
            fewest = values[0].null_count()
        # A reading that leaves out what another takes is refuted.
        kept = [series for series in values if series.null_count() == fewest]
        kept = kept if frame.height - fewest >= given * (1 - _STRANGE) else []
        if not kept or rows.is_of_the_item(kept[0]):
            continue
        read.append(_Read(found, tuple(kept), min(rows.falls(series) for series in kept)))
    return read


def _finer(read: Sequence[_Read], rows: Rows, known: pl.Series, time: str) -> Found:
    """A column that tells apart what the known one leaves together, and nowhere contradicts it."""
    if not _plausible(known):
        sure = [found for found in read if found.moments.sure and found.falls and len(found.values) == 1]
        names = ", ".join(repr(found.moments.column) for found in sure)
        note = (
            f"ordered by column {time!r}, whose values are not of the years 1990 to 2100; {names} read as times and "
            "contradict that order: name the right one with --time-col"
        )
        return Found(None, (note,) if sure else ())
    finer = [found for found in read if len(found.values) == 1 and _refines(rows, found.values[0], known)]
    if not finer:
        return Found()
    best = max(finer, key=lambda found: rows.fineness(found.values[0]))
    note = (
        f"column {best.moments.column!r} was taken for the order, since it is finer than {time!r} and nowhere "
        f"contradicts it; --time-col {time} takes the other"
    )
    return Found(best.moments.column, (note,))


def _refines(rows: Rows, fine: pl.Series, coarse: pl.Series) -> bool:
    missing = fine.null_count() > coarse.null_count()
    return not missing and rows.rises(fine) > rows.rises(coarse) and not rows.falls(coarse, [fine])


def _plausible(values: pl.Series) -> bool:
    """Whether most values are of the years 1990 to 2100, in a unit that their size tells."""
    there = values.drop_nulls()
    low, high = (moment * times.UNITS[times.guess_unit(there)] for moment in times.PLAUSIBLE)
    share: Any = there.is_between(low, high).mean()
    return share is not None and share > 0.5


def _contradictions(found: Sequence[_Read], order: str) -> tuple[str, ...]:
    what = {"row": "the order of the rows", "position": "the order by position"}[order]
    return tuple(
        f"column {each.moments.column!r} could hold times and contradicts {what} in {each.falls:,} places: if it is "
        f"what orders them, name it with --time-col{'' if order == 'row' else ' and say --order-by time'}"
        for each in found
        if each.falls
    )


def with_day(table: Table, time: str, rest: Sequence[str], report: Report) -> tuple[Table, str]:
    """The table, and the column of times: where that holds hours without a day, one of both is made.

    Raises:
        DataError: the hours have no day, or several columns could be it.
    """
    dtype = table.schema[time]
    if dtype != pl.Time and not (dtype in _TEXTS and times.is_time_of_day(times.told(table.sample(time))[0])):
        return table, time
    among = time_columns_among(table, [name for name in rest if name != time])
    days = [found.column for found in among if _is_day(found, table)]
    if len(days) != 1:
        has = f"several columns could hold it: {listing(days)}" if days else "no other column holds it"
        raise DataError(
            f"{table.where}, column {time!r} holds hours without a day, and {has}",
            "Put both into one column and name that with --time-col, or keep the rows' order with --order-by row.",
        )
    both = f"{days[0]} {time}"
    parts = [pl.col(name).cast(pl.String).str.strip_chars() for name in (days[0], time)]
    report.warn(f"column {time!r} holds hours without a day: they were read together with column {days[0]!r}")
    return replace(table, lazy=table.lazy.with_columns(pl.concat_str(parts, separator=" ").alias(both))), both


def hours_beside(table: Table, time: str, plan: TimePlan, rest: Sequence[str]) -> list[str]:
    """What to say where the times are days alone, and a column that nothing is read from holds hours."""
    if not _is_day(TimeColumn(time, (plan,), sure=True), table):
        return []
    texts = [name for name in rest if name != time and table.schema[name] in (*_TEXTS, pl.Time)]
    head = table.head(texts) if texts else pl.DataFrame()
    hours = [name for name in texts if head[name].dtype == pl.Time or times.is_time_of_day(times.told(head[name])[0])]
    return [
        f"column {time!r} holds days alone, and column {name!r} holds hours: if they are the hours of these days, "
        f"--time-col {name} reads both together"
        for name in hours
    ]


def _is_day(found: TimeColumn, table: Table) -> bool:
    dtype, forms = table.schema[found.column], found.plans[0].forms.forms
    return dtype == pl.Date or (bool(forms) and not any(form.hour or "%H" in form.day for form in forms))
