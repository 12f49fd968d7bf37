"""Times as they come (seconds to nanoseconds, ISO strings, dates) → whole seconds since 1970.

The full precision is kept as long as interactions are being ordered; only the stored time is cut to seconds.
Strings without a time zone are taken as UTC.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from llmd4rec.errors import DataError

#: How many of the unit make a second, by name.
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
#: Year first, or a month by name or Amazon's `07 9, 2012`. `03/04/2012` means two days, so it is refused.
_FORMATS = tuple(
    f"{date}{time}"
    for date in ("%Y-%m-%d", "%Y/%m/%d", "%m %d, %Y", "%b %d, %Y", "%B %d, %Y")
    for time in ("", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M:%S%.f%#z", "T%H:%M:%S%.f%#z", " %H:%M", "T%H:%M")
)
_SAMPLE = 1000
#: Days and moments written as digits alone. As numbers the former would all be in 1970, the latter in the year 2600.
_DIGITS = {r"^(19|20)\d{6}$": "%Y%m%d", r"^(19|20)\d{12}$": "%Y%m%d%H%M%S"}
#: 1990 and 2100 in seconds. Times of two units within it cannot be told from those of one by the median.
_PLAUSIBLE = (631_152_000, 4_102_444_800)


@dataclass(frozen=True)
class TimePlan:
    """How to read one column of times.

    Args:
        value: the expression that gives a number per row; null where it is blank or unreadable.
        unit: the number's unit, one of `UNITS`; None: to be guessed by size.
        forms: the formats that are tried, of texts that are no numbers.
    """

    value: pl.Expr
    unit: str | None
    forms: tuple[str, ...] = ()


def plan(column: str, dtype: pl.DataType, sample: pl.Series, where: str) -> TimePlan:
    """Chooses how to read `column` from its type and, for strings, from its first values.

    Raises:
        DataError: the type cannot be a time.
    """
    raw = pl.col(column)
    digits = _digits(sample) if dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum) else None
    if digits is not None:
        return _plan_forms(column, (digits,))
    if dtype.is_integer() or dtype == pl.Null:
        return TimePlan(_within(raw.cast(pl.Int64, strict=False)), None)
    if dtype.is_float() or dtype.is_decimal():
        return TimePlan(_within(raw.cast(pl.Float64)), None)
    if isinstance(dtype, pl.Datetime):
        unit = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[dtype.time_unit]
        return TimePlan(_within(raw.to_physical()), unit)
    if dtype == pl.Date:
        return TimePlan(raw.cast(pl.Datetime("ms")).to_physical(), "milliseconds")
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return _plan_strings(column, sample.cast(pl.String))
    raise DataError(
        f"{where}, column {column!r}: {dtype} is no time",
        "Name another column with --time-col, or order by something else with --order-by.",
    )


def _plan_strings(column: str, sample: pl.Series) -> TimePlan:
    """Numbers if most of the first values are, else the date formats that fit any of them."""
    text = pl.col(column).cast(pl.String).str.strip_chars()
    values = sample.str.strip_chars()
    values = values.filter(values != "").head(_SAMPLE)
    whole, numbers = (values.cast(kind, strict=False).count() for kind in (pl.Int64, pl.Float64))
    if 2 * numbers >= len(values):
        return TimePlan(_within(text.cast(pl.Int64 if whole == numbers else pl.Float64, strict=False)), None)
    fitting = [form for form in _FORMATS if values.to_frame("t").select(_parse(pl.col("t"), form)).item(0, 0)]
    return _plan_forms(column, tuple(fitting) or _FORMATS[:1])


def _plan_forms(column: str, forms: tuple[str, ...]) -> TimePlan:
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return TimePlan(pl.coalesce([_moments(text, form) for form in forms]), "microseconds", forms)


def widened(plan: TimePlan, column: str, unread: pl.Series) -> TimePlan | None:
    """The plan with the formats that values need which it could not read; None where no format reads any of them.

    The first values need not show every format: logs are put together from several exports.
    """
    if not plan.forms or unread.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return None
    values = unread.cast(pl.String).str.strip_chars().to_frame("t")
    more = [form for form in _FORMATS if form not in plan.forms and values.select(_parse(pl.col("t"), form)).item(0, 0)]
    return _plan_forms(column, (*plan.forms, *more)) if more else None


def _digits(sample: pl.Series) -> str | None:
    """The format if all of the first values are days written as 20240131, or moments as 20240131123456."""
    text = sample.cast(pl.String).str.strip_chars()
    text = text.filter(text != "").drop_nulls().head(_SAMPLE)
    for pattern, form in _DIGITS.items():
        if len(text) and text.str.contains(pattern).all():
            read = text.to_frame("t").select(_moments(pl.col("t"), form)).to_series()
            return form if read.null_count() == 0 else None
    return None


def _within(number: pl.Expr) -> pl.Expr:
    """Null where a number is none, infinite, or beyond what 64 bits hold (whose lowest value stands for `NO_TIME`)."""
    return pl.when(number.cast(pl.Float64).abs() < 2.0**63).then(number)


def _moments(text: pl.Expr, form: str) -> pl.Expr:
    zoned = form.endswith("%#z")
    if zoned:
        text = text.str.replace(r"\s*(Z|UTC)$", "+0000")
    parsed = text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC" if zoned else None)
    return parsed.dt.epoch("us")


def _parse(text: pl.Expr, form: str) -> pl.Expr:
    return _moments(text, form).is_not_null().any()


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
    low, high = _PLAUSIBLE
    counts = {unit: int(values.is_between(low * scale, high * scale).sum()) for unit, scale in UNITS.items()}
    for smaller, larger in itertools.combinations([unit for unit in UNITS if counts[unit]], 2):
        between = values.is_between(high * UNITS[smaller], low * UNITS[larger], closed="none") & ~_plausible(values)
        if int(between.sum()) < min(counts[smaller], counts[larger]):
            return (smaller, larger) if counts[smaller] >= counts[larger] else (larger, smaller)
    return None


def first_of(frame: pl.DataFrame, unit: str) -> tuple[int, Any]:
    """Row and value of the first time in a frame of `row` and `time` that is plausible in `unit`."""
    low, high = (moment * UNITS[unit] for moment in _PLAUSIBLE)
    return frame.filter(pl.col("time").is_between(low, high)).select("row", "time").row(0)


def _plausible(values: pl.Series) -> pl.Series:
    """Which values are times between 1990 and 2100 in some unit."""
    low, high = _PLAUSIBLE
    return pl.select(pl.any_horizontal(values.is_between(low * n, high * n) for n in UNITS.values())).to_series()


def to_seconds(values: pl.Series, unit: str) -> pl.Series:
    """Whole seconds since 1970, rounded down, int64 with nulls kept."""
    if values.dtype.is_float():
        return (values / UNITS[unit]).floor().cast(pl.Int64)
    return values if unit == "seconds" else values // UNITS[unit]


def as_text(seconds: Any) -> str:
    """Seconds since 1970 as `2024-01-31 12:34:56`."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")
