"""Times as they come (seconds to nanoseconds, Excel's days, texts, dates) → whole seconds since 1970.

The full precision is kept as long as interactions are being ordered; only the stored time is cut to seconds.
Strings without a time zone are taken as UTC.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.time_formats import (
    TimeFormat,
    TimeFormats,
    digits,
    fit_formats,
    parse_times,
    rivals,
    steps_of,
)
from llmd4rec.errors import ConfigError, DataError

#: How many of the unit make a second, by name.
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
#: What a time format may be instead of one for strptime: numbers in a unit, or days as Excel counts them.
EXCEL = "excel"
NUMBERS = (*UNITS, EXCEL)
#: Written by exports in place of an unknown time; compared in small letters.
MISSING = (
    *("\\n", "null", "(null)", "none", "nan", "nat", "na", "n/a", "#n/a", "<na>", "undefined", "-", "--"),
    *("0000-00-00", "0000-00-00 00:00:00"),
)
#: 1990 and 2100 in seconds. Times of two units within it cannot be told from those of one by the median.
PLAUSIBLE = (631_152_000, 4_102_444_800)
#: Excel counts days, with hours as fractions: 1970 is day 25569. Then the years 1990 to 2050.
_EXCEL_1970 = 25_569
_EXCEL_PLAUSIBLE = (32_874, 54_789)
_WITH_COMMA, _GROUPED = r"^-?\d{4,},\d+$", r"^-?\d{1,3}(,\d{3}){2,}$"
_DOT_NET = r"^/Date\((-?\d+)(?:[+-]\d{4})?\)/$"
_TIME_OF_DAY = r"^\d{1,2}:\d\d(:\d\d([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?$"
_SCIENTIFIC = r"^-?(\d+)(?:[.,](\d+))?[eE]\+?(\d+)$"
_TEXTS = (pl.String, pl.Categorical, pl.Enum)


@dataclass(frozen=True)
class TimePlan:
    """How to read one column of times.

    Args:
        value: the expression that gives a number per row; null where it is blank or unreadable.
        unit: the number's unit, one of `UNITS`; None: to be guessed by size.
        text: the column as text, which `forms` read; None where it holds numbers or moments.
        forms: how texts that are no numbers are read.
        missing: texts in the column that stand for an unknown time.
        notes: what to say of the column.
    """

    value: pl.Expr
    unit: str | None
    text: pl.Expr | None = None
    forms: TimeFormats = field(default_factory=TimeFormats)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def plan(column: str, table: Table, formats: Sequence[str] = ()) -> TimePlan:
    """Chooses how to read a column by its type, its first values, and, for days with two readings, by all of them.

    Args:
        column: one of the table's.
        table: to look into.
        formats: what the column is in, if the caller says so: formats of strptime, or some of `NUMBERS`.

    Raises:
        DataError: the type cannot be a time, or days have two readings and no value rules one of them out.
        ConfigError: a format is none.
    """
    return _settled(column, table, plans(column, table, formats))


def plans(column: str, table: Table, formats: Sequence[str] = ()) -> list[TimePlan]:
    """One plan, or one for each reading that the first values leave open."""
    dtype, raw = table.schema[column], pl.col(column)
    if isinstance(dtype, pl.Datetime):
        unit = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[dtype.time_unit]
        return [TimePlan(_within(raw.to_physical()), unit)]
    if dtype == pl.Date:
        return [TimePlan(raw.cast(pl.Datetime("ms")).to_physical(), "milliseconds")]
    if dtype == pl.Null:
        return [TimePlan(raw.cast(pl.Int64), None)]
    if dtype not in _TEXTS and not dtype.is_numeric():
        raise DataError(
            f"{table.where}, column {column!r}: {dtype} is no time",
            "Name another column with --time-col, or order by something else with --order-by.",
        )
    if formats:
        return [_by_formats(column, table, formats)]
    values, missing = told(table.sample(column))
    number = _number(dtype, values)
    found = fit_formats(values) if number is None else digits(_whole(values))
    if found is not None:
        text = _text(raw, dtype) if number is None else _whole_text(raw, dtype)
        return [TimePlan(each.value(text), "microseconds", text, each, missing) for each in found.readings()]
    assert number is not None
    value = number(raw)
    shown = values.to_frame(column).select(number(pl.col(column))).to_series().drop_nulls()
    notes = _precision_notes(column, dtype, values, shown)
    if len(shown) and shown.is_between(*_EXCEL_PLAUSIBLE).all():
        notes.append(
            f"column {column!r} was read as days as Excel counts them, of which {_EXCEL_1970} is 1970-01-01; "
            "--time-format seconds takes them for seconds"
        )
        return [TimePlan(_excel(value), "microseconds", missing=missing, notes=tuple(notes))]
    return [TimePlan(_within(value), None, missing=missing, notes=tuple(notes))]


def widened(plan: TimePlan, column: str, table: Table, unread: pl.Series) -> TimePlan | None:
    """The plan with what values need that it could not read; None where nothing reads any of them.

    The first values need not show every format: logs are put together from several exports.

    Raises:
        DataError: days have two readings, and no value rules one of them out.
    """
    if unread.dtype not in _TEXTS:
        return None
    values, missing = told(unread)
    more = tuple(text for text in missing if text not in plan.missing)
    forms = fit_formats(values, plan.forms) if plan.text is not None and plan.forms.open else plan.forms
    if forms == plan.forms and not more:
        return None
    plan = replace(plan, missing=(*plan.missing, *more))
    if forms == plan.forms or plan.text is None:
        return plan
    readings = [replace(plan, value=each.value(plan.text), forms=each) for each in forms.readings()]
    return _settled(column, table, readings)


def told(sample: pl.Series) -> tuple[pl.Series, tuple[str, ...]]:
    """Values as texts without blanks around them, those that stand for an unknown time left out; and these."""
    text = sample.drop_nulls().cast(pl.String).str.strip_chars()
    text = text.filter(text != "")
    missing = text.str.to_lowercase().is_in(MISSING)
    return text.filter(~missing), tuple(text.filter(missing).unique().sort())


def is_time_of_day(values: pl.Series) -> bool:
    """Whether texts are all like 12:34:56, which lacks the day."""
    return bool(len(values)) and bool(values.str.contains(_TIME_OF_DAY).all())


def check_format(form: str) -> None:
    """Whether polars takes a format.

    Raises:
        ConfigError: it does not.
    """
    if form in NUMBERS:
        return
    remedy = f"Give a format such as '%d/%m/%Y %H:%M', or one of: {', '.join(NUMBERS)}."
    if "%" not in form:
        raise ConfigError(f"time_format {form!r} is no format", remedy)
    try:
        pl.DataFrame({"t": ["2022-04-16"]}).select(parse_times(pl.col("t"), form))
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"time_format {form!r} cannot be used: {str(error).splitlines()[0]}", remedy) from error


def notes(plan: TimePlan, column: str, table: Table) -> list[str]:
    """What to say of how a column was read."""
    said = list(plan.notes)
    if plan.text is None or not plan.forms.open:
        return said
    for rival in rivals(plan.forms):
        against = plan.value.is_not_null() & rival.value(plan.text).is_null()
        found = table.first(column, against)
        if found is not None:
            row, value = found
            said.append(
                f"column {column!r}: days were read as {plan.forms.reading_beside(rival)}, "
                f"since {value!r} in row {row} is no {rival.reading_beside(plan.forms)}"
            )
    clocks = [form.hour for form in plan.forms.forms if form.hour]
    if any("%#z" in hour for hour in clocks) and any("%#z" not in hour for hour in clocks):
        said.append(f"column {column!r}: some times name a zone and some do not; the latter were taken as UTC")
    return said


def _settled(column: str, table: Table, plans: list[TimePlan]) -> TimePlan:
    """The one reading that all values of the column allow."""
    if len(plans) == 1:
        return plans[0]
    some = pl.any_horizontal(plan.value.is_not_null() for plan in plans)
    counts = table.aggregated([(some & plan.value.is_null()).sum().alias(str(at)) for at, plan in enumerate(plans)])
    left = [plan for plan, count in zip(plans, counts.row(0), strict=True) if not count]
    if not left:
        rows = [table.first(column, some & plan.value.is_null()) for plan in plans]
        shown = ", ".join(f"{row[1]!r} in row {row[0]}" for row in rows if row is not None)
        raise DataError(
            f"{table.where}, column {column!r}: no one reading fits all days ({shown})",
            "Correct these rows, or name the format that is right with --time-format, and leave the others out.",
        )
    differing = None
    if len(left) > 1:
        differing = table.first(column, pl.any_horizontal(left[0].value.ne_missing(plan.value) for plan in left[1:]))
    if differing is None:
        return left[0]
    row, value = differing
    read = [(found, plan) for plan in left if (found := plan.forms.of(str(value))) is not None]
    raise DataError(
        f"{table.where}, row {row}, column {column!r}: {value!r} may be "
        + " or ".join(as_text(found[0] // 10**6) for found, _ in read)
        + ", and no other value says which",
        "Say which with " + " or ".join(f'--time-format "{found[1]}"' for found, _ in read) + ".",
    )


def _by_formats(column: str, table: Table, formats: Sequence[str]) -> TimePlan:
    """By what the caller names, in the texts as they are or in their plain shape; one unit keeps its precision."""
    for form in formats:
        check_format(form)
    raw, dtype = pl.col(column), table.schema[column]
    text = (_whole_text if dtype.is_numeric() else _text)(raw, dtype)
    whole = raw.cast(pl.Int64, strict=False) if dtype.is_numeric() else text.cast(pl.Int64, strict=False)
    number = raw.cast(pl.Float64) if dtype.is_numeric() else text.str.replace(",", ".").cast(pl.Float64, strict=False)
    if len(formats) == 1 and formats[0] in UNITS:
        return TimePlan(_within(whole if dtype.is_integer() else number), formats[0])
    steps = steps_of(told(table.sample(column))[0])
    values = []
    for form in formats:
        if form == EXCEL:
            values.append(_excel(number))
        elif form in UNITS:
            values.append((number * (10**6 / UNITS[form])).round().cast(pl.Int64, strict=False))
        else:
            values += [parse_times(text, form), parse_times(TimeFormats(steps).plain(text), form)]
    named = TimeFormats(steps, tuple(TimeFormat(form) for form in formats), open=False)
    return TimePlan(pl.coalesce(values), "microseconds", text, named)


def _number(dtype: pl.DataType, values: pl.Series) -> Callable[[pl.Expr], pl.Expr] | None:
    """What turns the column into numbers; None where most of the first values are none."""
    if dtype.is_integer():
        return lambda raw: raw.cast(pl.Int64, strict=False)
    if dtype.is_numeric():
        return lambda raw: raw.cast(pl.Float64)
    if not len(values):
        return lambda raw: _text(raw, dtype).cast(pl.Int64, strict=False)
    whole, numbers = (values.cast(kind, strict=False).count() for kind in (pl.Int64, pl.Float64))
    if 2 * numbers >= len(values):
        kind = pl.Int64 if whole == numbers else pl.Float64
        return lambda raw: _text(raw, dtype).cast(kind, strict=False)
    if values.str.contains(_DOT_NET).all():
        return lambda raw: _text(raw, dtype).str.extract(_DOT_NET).cast(pl.Int64, strict=False)
    if values.str.contains(_WITH_COMMA).all():
        return lambda raw: _text(raw, dtype).str.replace(",", ".").cast(pl.Float64, strict=False)
    if values.str.contains(_GROUPED).all():
        return lambda raw: _text(raw, dtype).str.replace_all(",", "").cast(pl.Int64, strict=False)
    return None


def _text(raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return raw.cast(pl.String).str.strip_chars()


def _whole_text(raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Whole numbers as text, also those that passed through a float column."""
    if dtype.is_float() or dtype.is_decimal():
        return raw.cast(pl.Int64, strict=False).cast(pl.String)
    return _text(raw, dtype).str.strip_suffix(".0")


def _whole(values: pl.Series) -> pl.Series:
    return values.str.replace(r"\.0+$", "")


def _within(number: pl.Expr) -> pl.Expr:
    """Null where a number is none, infinite, or beyond what 64 bits hold (whose lowest value stands for `NO_TIME`)."""
    return pl.when(number.cast(pl.Float64).abs() < 2.0**63).then(number)


def _excel(days: pl.Expr) -> pl.Expr:
    """Microseconds since 1970; a day's fraction is right to about a millisecond."""
    return ((days.cast(pl.Float64) - _EXCEL_1970) * 86_400_000).round().cast(pl.Int64, strict=False) * 1000


def _precision_notes(column: str, dtype: pl.DataType, values: pl.Series, numbers: pl.Series) -> list[str]:
    """Numbers that lost their last digits before they came here: order within these is lost with them."""
    said = []
    if dtype.is_float() and dtype != pl.Float64 and len(numbers):
        kind = np.float16 if dtype != pl.Float32 else np.float32
        apart = float(np.spacing(kind(numbers.abs().max())))  # type: ignore[arg-type]
        days = numbers.is_between(*_EXCEL_PLAUSIBLE).all()
        if apart > 1 or days:
            said.append(
                f"column {column!r} is {dtype}, in which numbers as large as these stand {apart:,.4g} apart: order "
                "within that is lost; make it Float64 or whole numbers where it comes from"
            )
    if dtype in _TEXTS:
        parts = values.str.extract_groups(_SCIENTIFIC).struct.unnest().drop_nulls("1")
        if parts.height:
            digits_behind = parts["2"].fill_null("").str.len_chars().cast(pl.Int64)
            lost = (parts["3"].cast(pl.Int64, strict=False) - digits_behind).min()
            if isinstance(lost, int) and lost > 0:
                said.append(
                    f"column {column!r} has rounded numbers, such as "
                    f"{values.filter(values.str.contains(_SCIENTIFIC))[0]!r}: order within 10^{lost} is lost; write "
                    "them with all digits where they come from"
                )
    return said


def guess_unit(values: pl.Series) -> str:
    """The unit of a column of numbers by the size of its median: seconds stay below 10^11 until the year 5138."""
    median = values.abs().median()
    size = float(median) if isinstance(median, int | float) else 0.0
    for unit, limit in (("seconds", 1e11), ("milliseconds", 1e14), ("microseconds", 1e17)):
        if size < limit:
            return unit
    return "nanoseconds"


def mixed_units(values: pl.Series) -> tuple[str, str] | None:
    """Two units of which a column of numbers plausibly holds times at once, the more frequent first; else None.

    They must be times between 1990 and 2100 in either unit, and fewer may lie between the two: a counter that starts
    at zero and runs through both has many there.
    """
    low, high = PLAUSIBLE
    counts = {unit: int(values.is_between(low * scale, high * scale).sum()) for unit, scale in UNITS.items()}
    for smaller, larger in itertools.combinations([unit for unit in UNITS if counts[unit]], 2):
        between = values.is_between(high * UNITS[smaller], low * UNITS[larger], closed="none") & ~_plausible(values)
        if int(between.sum()) < min(counts[smaller], counts[larger]):
            return (smaller, larger) if counts[smaller] >= counts[larger] else (larger, smaller)
    return None


def first_of(frame: pl.DataFrame, unit: str) -> tuple[int, Any]:
    """Row and value of the first time in a frame of `row` and `time` that is plausible in `unit`."""
    low, high = (moment * UNITS[unit] for moment in PLAUSIBLE)
    return frame.filter(pl.col("time").is_between(low, high)).select("row", "time").row(0)


def _plausible(values: pl.Series) -> pl.Series:
    """Which values are times between 1990 and 2100 in some unit."""
    low, high = PLAUSIBLE
    return pl.select(pl.any_horizontal(values.is_between(low * n, high * n) for n in UNITS.values())).to_series()


def to_seconds(values: pl.Series, unit: str) -> pl.Series:
    """Whole seconds since 1970, rounded down, int64 with nulls kept."""
    if values.dtype.is_float():
        return (values / UNITS[unit]).floor().cast(pl.Int64)
    return values if unit == "seconds" else values // UNITS[unit]


def as_text(seconds: Any) -> str:
    """Seconds since 1970 as `2024-01-31 12:34:56`."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")
