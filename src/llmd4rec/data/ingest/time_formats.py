"""The forms in which texts write moments: what has one meaning is read, what has two needs the column to settle it.

A text is first brought to a plain shape by those of `STEPS` that change anything in the column (a weekday goes, a
month's name stands between day and year, a fraction stands behind a point), then read by formats. Days such as
`03/04/2012` have two readings: one of them is taken where another value of the column, such as `16/04/2012`, rules
the other out; else none is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import polars as pl

_BLANKS = r"\s+"
#: Regular expression and replacement, in the order in which they are applied.
STEPS: tuple[tuple[str, str], ...] = (
    (_BLANKS, " "),  # also the narrow blanks before AM and PM
    (r"^(?i:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? ", ""),
    (r"(\d)(?:st|nd|rd|th)\b", "$1"),
    (r"^(\d{4})年(\d{1,2})月(\d{1,2})日", "$1-$2-$3"),
    (r"(\d{1,2}) ?h ?(\d\d)$", "$1:$2"),
    (r"(?:,| at|, at| à| um) (\d{1,2}:\d\d)", " $1"),
    (r"^(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}[ T]\d{1,2})$", "$1:00"),  # an hour and no minutes
    # Twitter, Foursquare, C: the year stands last.
    (r"^([A-Za-z]{3,9} \d{1,2}) (\d{1,2}:\d\d:\d\d(?:\.\d+)?)( [+-]\d\d:?\d\d| UTC| GMT)? (\d{4})$", "$1 $4 $2$3"),
    (r"^([A-Za-z]{3,9})[. /-]{1,2}(\d{1,2})[, /-]{1,2}(\d{4})\b", "$2-$1-$3"),
    (r"^(\d{1,2})[. /-]{0,2}([A-Za-z]{3,9})[. ,/-]{0,2}(\d{4}|\d\d)\b", "$1-$2-$3"),
    (r"^(\d{4})[ /-]([A-Za-z]{3,9})[ /-](\d{1,2})\b", "$3-$2-$1"),
    (r"(?i)-sept-", "-Sep-"),
    (r"^(\d{1,2}-[A-Za-z]{3,9}-\d{4}):", "$1 "),  # web servers, SAS
    (r"(\d)[ -](\d{1,2})\.(\d\d)\.(\d\d)(\.\d+)?( ?[AaPp][Mm])?$", "$1 $2:$3:$4$5$6"),  # Oracle, DB2
    (r"(:\d\d),(\d)", "$1.$2"),
    (r"(\d) ?([AaPp])\.?[Mm]\b\.?", "$1 ${2}M"),
    (r"(:\d\d(?:\.\d+)?(?: [AaPp]M)?) ?(?:GMT|UTC)?([+-]\d\d:?\d\d) ?(?:[\[(].*[\])]|[A-Z]{2,5})$", "$1$2"),
    (r"(:\d\d(?:\.\d+)?(?: [AaPp]M)?) ?(?:GMT|UTC|Etc/UTC)([+-]\d\d:?\d\d)?(?: \(.*\))?$", "$1${2}Z"),
    (r"([+-]\d\d:?\d\d)Z$", "$1"),
)

#: Days of one meaning: year first, or the month as a name, or Amazon's `07 9, 2012`.
_PLAIN_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d-%B-%Y", "%d-%B-%y", "%m %d, %Y")
_DAY_FIRST, _MONTH_FIRST, _YEAR_FIRST = "day, month, year", "month, day, year", "year, month, day"
#: Days with several readings: those of the same marks and as long a year are one kind.
_READINGS: tuple[dict[str, str], ...] = (
    *({_DAY_FIRST: f"%d{m}%m{m}%Y", _MONTH_FIRST: f"%m{m}%d{m}%Y"} for m in "/-."),
    *({_DAY_FIRST: f"%d{m}%m{m}%y", _MONTH_FIRST: f"%m{m}%d{m}%y", _YEAR_FIRST: f"%y{m}%m{m}%d"} for m in "/-."),
    {_DAY_FIRST: "%d%m%Y", _MONTH_FIRST: "%m%d%Y"},
    {_DAY_FIRST: "%d%m%y", _MONTH_FIRST: "%m%d%y", _YEAR_FIRST: "%y%m%d"},
)
_KIND_OF = {day: (kind, reading) for kind, days in enumerate(_READINGS) for reading, day in days.items()}
_CLOCKS = (" %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M", " %I:%M:%S%.f %p", " %I:%M %p")
_HOURS = ("", *_CLOCKS, *(f"{clock}%#z" for clock in _CLOCKS), "T%H%M%S%.f", "T%H%M%S%.f%#z", " %H%M%S")
_SIX_DIGITS = r"^\d{6}$"
#: Days and moments written as digits alone: pattern, step, formats. As numbers they would be days in 1970.
_DIGITS: tuple[tuple[str, tuple[str, str] | None, tuple[str, ...]], ...] = (
    (r"^(19|20)\d{6}$", None, ("%Y%m%d",)),
    (r"^(19|20)\d{8}$", (r"$", "00"), ("%Y%m%d%H%M",)),  # Google Analytics' hour; as seconds they begin in 2030
    (r"^(19|20)\d{10}$", None, ("%Y%m%d%H%M",)),
    (r"^(19|20)\d{12}$", None, ("%Y%m%d%H%M%S",)),
    (r"^(19|20)\d{15}$", None, ("%Y%m%d%H%M%S%3f",)),
    (r"^\d{3,4}(19|20)\d\d$", (r"^(\d{7})$", "0$1"), ("%d%m%Y", "%m%d%Y")),
    (_SIX_DIGITS, None, ("%d%m%y", "%m%d%y", "%y%m%d")),
)
#: So many different values of six digits must all be days before they are taken for such.
_LEAST_OF_SIX_DIGITS = 5
#: So many values are tried with every form.
_SAMPLE = 1000
#: `%Y` also takes 22 for the year 22: what lies before the year 1000 is no moment. Microseconds.
_EARLIEST = -30_610_224_000_000_000


@dataclass(frozen=True)
class TimeFormat:
    """A format of strptime: its day, and its hour if any."""

    day: str
    hour: str = ""

    @property
    def format(self) -> str:
        """The two together."""
        return self.day + self.hour

    @property
    def kind(self) -> int | None:
        """Which of the kinds of days with several readings it belongs to."""
        return _KIND_OF[self.day][0] if self.day in _KIND_OF else None

    @property
    def reading(self) -> str:
        """What its day's numbers are taken for, in words."""
        return _KIND_OF[self.day][1] if self.day in _KIND_OF else ""


@dataclass(frozen=True)
class TimeFormats:
    """How a column of texts is read.

    Args:
        steps: those of `STEPS` that change something in it.
        forms: those that fit, all tried.
        open: further ones may be looked for; not so where the caller named them.
    """

    steps: tuple[tuple[str, str], ...] = ()
    forms: tuple[TimeFormat, ...] = ()
    open: bool = True

    def value(self, text: pl.Expr) -> pl.Expr:
        """Microseconds since 1970; null where no form fits."""
        plain = self.plain(text)
        return pl.coalesce([parse_times(plain, form.format) for form in self.forms] or [pl.lit(None, pl.Int64)])

    def plain(self, text: pl.Expr) -> pl.Expr:
        """The text in its plain shape."""
        for pattern, by in self.steps:
            text = text.str.replace_all(pattern, by) if pattern == _BLANKS else text.str.replace(pattern, by)
        return text

    def readings(self) -> list[TimeFormats]:
        """The same with one reading of each kind of days, in each combination; itself alone where there is one."""
        kinds: dict[int, dict[str, None]] = {}
        for form in self.forms:
            if form.kind is not None:
                kinds.setdefault(form.kind, {})[form.reading] = None
        chosen = [dict(zip(kinds, choice, strict=True)) for choice in itertools.product(*kinds.values())]
        return [
            replace(self, forms=tuple(f for f in self.forms if f.kind is None or f.reading == choice[f.kind]))
            for choice in chosen
        ]

    def reading_beside(self, other: TimeFormats) -> str:
        """In words, how this reads days of the kind that `other` reads otherwise."""
        theirs = {(form.kind, form.reading) for form in other.forms}
        return next((form.reading for form in self.forms if (form.kind, form.reading) not in theirs), "")

    def formats(self) -> list[str]:
        """As the report names them."""
        return [form.format for form in self.forms]

    def of(self, text: str) -> tuple[int, str] | None:
        """What one text is read as, in microseconds since 1970, and by which format."""
        one = pl.DataFrame({"t": [text]}).select(self.plain(pl.col("t").str.strip_chars()))
        for form in self.forms:
            moment = one.select(parse_times(pl.col("t"), form.format)).item()
            if moment is not None:
                return moment, form.format
        return None


_ALL_DAYS = (*_PLAIN_DAYS, *(day for days in _READINGS[:-2] for day in days.values()))
_ALL_FORMS = tuple(TimeFormat(day, hour) for day in _ALL_DAYS for hour in _HOURS)


def parse_times(text: pl.Expr, form: str) -> pl.Expr:
    """Microseconds since 1970 by one format; null where it does not fit. Without a zone it is UTC."""
    zoned = any(mark in form for mark in ("%z", "%:z", "%#z"))
    parsed = text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC" if zoned else None)
    # What is negative from there has no unsigned form; a `when` would have every text parsed twice.
    since = (parsed.dt.epoch("us") - _EARLIEST).cast(pl.UInt64, strict=False)
    return since.cast(pl.Int64, strict=False) + _EARLIEST


def steps_of(values: pl.Series, known: tuple[tuple[str, str], ...] = ()) -> tuple[tuple[str, str], ...]:
    """Those of `STEPS` that change some of the texts, and those known already."""
    plain, needed = values, []
    for step in STEPS:
        changed = plain.to_frame("t").select(TimeFormats((step,)).plain(pl.col("t"))).to_series()
        if step in known or (changed != plain).any():
            needed.append(step)
            plain = changed
    return (*needed, *(step for step in known if step not in STEPS))


def fit_formats(values: pl.Series, known: TimeFormats | None = None) -> TimeFormats:
    """The steps and forms that texts need, behind those known; of a kind of days, the readings that fit them all.

    Args:
        values: texts without blanks around them, none empty.
        known: what the column needs already; a reading that was settled stays.
    """
    known = known or TimeFormats()
    values = values.unique(maintain_order=True)
    steps = steps_of(values, known.steps)
    plain = values.to_frame("t").select(TimeFormats(steps).plain(pl.col("t"))).to_series()
    settled: dict[int | None, str] = {form.kind: form.reading for form in known.forms if form.kind is not None}
    tried = [form for form in _ALL_FORMS if form not in known.forms]
    tried = [form for form in tried if settled.get(form.kind, form.reading) == form.reading]
    head = plain.head(_SAMPLE).to_frame("t")
    found: list[TimeFormat] = []
    # Nearly all columns are done after the first part: year first, as ISO has it.
    for part in (tried[: len(_HOURS)], tried[len(_HOURS) :]):
        counts = head.select(
            parse_times(pl.col("t"), form.format).count().alias(str(at)) for at, form in enumerate(part)
        )
        fitting = [form for form, count in zip(part, counts.row(0) if part else (), strict=True) if count]
        found += _without_refuted(fitting, plain)
        forms = TimeFormats((), (*known.forms, *found))
        if _reads_all(forms, plain):
            break
    return TimeFormats(steps, (*known.forms, *found))


def _reads_all(forms: TimeFormats, values: pl.Series) -> bool:
    return not values.to_frame("t").select(forms.value(pl.col("t"))).to_series().null_count()


def _without_refuted(forms: Iterable[TimeFormat], plain: pl.Series) -> list[TimeFormat]:
    """Without the readings of a kind of days that leave out a text which another reading takes; all if each does."""
    kept = list(forms)
    for kind in {form.kind for form in kept} - {None}:
        readings = sorted({form.reading for form in kept if form.kind == kind})
        of_reading = {name: tuple(f for f in kept if f.kind == kind and f.reading == name) for name in readings}
        frame = plain.to_frame("t").select(
            TimeFormats((), own).value(pl.col("t")).alias(name) for name, own in of_reading.items()
        )
        taken = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
        refuted = {reading for reading in readings if (taken & frame[reading].is_null()).any()}
        if refuted != set(readings):
            kept = [form for form in kept if form.kind != kind or form.reading not in refuted]
    return kept


def rivals(forms: TimeFormats) -> list[TimeFormats]:
    """The forms with days of one kind read otherwise, for each kind and each other reading."""
    found = []
    for kind in sorted({form.kind for form in forms.forms if form.kind is not None}):
        own = next(form.reading for form in forms.forms if form.kind == kind)
        for reading, day in _READINGS[kind].items():
            if reading != own:
                other = tuple(replace(form, day=day) if form.kind == kind else form for form in forms.forms)
                found.append(replace(forms, forms=other))
    return found


def digits(values: pl.Series) -> TimeFormats | None:
    """The forms of texts that are all days or moments in digits alone, as 20240131 is; None where they are not.

    Args:
        values: texts without blanks around them, none empty.
    """
    values = values.unique(maintain_order=True)
    for pattern, step, formats in _DIGITS:
        if not len(values) or not values.str.contains(pattern).all():
            continue
        if pattern == _SIX_DIGITS and len(values) < _LEAST_OF_SIX_DIGITS:
            return None
        found = [TimeFormats(() if step is None else (step,), (TimeFormat(day),)) for day in formats]
        read = [forms for forms in found if _reads_all(forms, values)]
        return replace(read[0], forms=tuple(forms.forms[0] for forms in read)) if read else None
    return None
