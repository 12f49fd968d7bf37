"""Which rows of a log count: conditions such as `rating >= 4`, applied before anything else.

    COLUMN = VALUE      also !=, >=, <=, >, <
    COLUMN in (VALUE, VALUE)      also not in

A column whose name has blanks or signs stands in double quotes or backticks, a value with commas in quotes. Numbers are
compared as numbers also where the column is text (`4.0` equals 4, and 10 is above 9); a value in quotes is compared as
text. `>=` and its like also compare moments (`time >= 2020-01-01`). A row without a value satisfies no condition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from llmd4rec.data.ingest import columns, times
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.time_formats import fit_formats
from llmd4rec.errors import ConfigError, DataError

_CONDITION = re.compile(
    r"""\s*(?:"(?P<double>[^"]+)"|`(?P<tick>[^`]+)`|(?P<bare>[^<>=!"`]+?))\s*
    (?P<op><=|>=|!=|<>|==|=|<|>|(?<=[\s"`])(?i:not\s+in|in)(?=[\s(]))\s*(?P<values>.*?)\s*""",
    re.VERBOSE | re.DOTALL,
)
_VALUE = re.compile(r"""\s*(?:'((?:[^']|'')*)'|"((?:[^"]|"")*)"|([^,'"()]+?))\s*(?:,|$)""")
_JOINED = re.compile(r"(?i)\s(and|or)\s")
_HELP = "Give a column, one of = != >= <= > < in, and a value: rating >= 4, event in (view, purchase), user != 'NA'."
#: What a condition says of a row.
_NO, _YES, _MISSING, _UNLIKE = 0, 1, 2, 3
_EXACT = 2**53


@dataclass(frozen=True)
class Value:
    """What a column is compared with; in quotes it is text whatever it looks like."""

    text: str
    quoted: bool = False

    @property
    def number(self) -> int | float | None:
        """As a number, if it is one."""
        if self.quoted:
            return None
        for kind in (int, float):
            try:
                number = kind(self.text)
            except ValueError:
                continue
            return number if abs(number) < float("inf") and abs(number) < 2**63 else None
        return None

    def __str__(self) -> str:
        return repr(self.text) if self.quoted or self.number is None else self.text


@dataclass(frozen=True)
class Condition:
    """`column op values`, of which `in` and `not in` have several."""

    text: str
    column: str
    op: str
    values: tuple[Value, ...]


def parse(text: str) -> Condition:
    """A condition as it is written.

    Raises:
        ConfigError: it is none.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ConfigError(f"where {text!r} is no condition", _HELP)
    column = found["double"] or found["tick"] or found["bare"].strip()
    op = {"==": "=", "<>": "!="}.get(found["op"], " ".join(found["op"].lower().split()))
    inner = found["values"]
    if op in ("in", "not in"):
        if not (inner.startswith("(") and inner.endswith(")")):
            raise ConfigError(f"where {text!r}: {op} needs its values in brackets", _HELP)
        inner = inner[1:-1]
    values, at = [], 0
    while at < len(inner):
        value = _VALUE.match(inner, at)
        if value is None or value.end() == at:
            raise ConfigError(f"where {text!r}: {inner[at:]!r} is no value", _HELP)
        single, double, bare = value.groups()
        if bare is not None and _JOINED.search(f" {bare} "):
            raise ConfigError(f"where {text!r} joins several conditions", "Give --where once for each; all must hold.")
        quoted = bare is None
        values.append(Value(bare if bare is not None else (single or double or "").replace("''", "'"), quoted))
        at = value.end()
    if not values or (len(values) > 1 and "in" not in op.split()):
        raise ConfigError(f"where {text!r} needs {'a value' if not values else 'one value'}", _HELP)
    return Condition(text.strip(), column, op, tuple(values))


def condition_text(column: str, op: str, value: str) -> str:
    """A condition in text, for a remedy; the value is compared as text."""
    name = f"`{column}`" if re.search(r'[<>=!"]| in ', column) else column
    quoted = value.replace("'", "''")
    return f"{name} {op} '{quoted}'"


def filtered(table: Table, conditions: Sequence[str]) -> tuple[Table, list[tuple[Condition, pl.Expr]]]:
    """The table with only the rows for which all conditions hold, and what each says of a row.

    Raises:
        DataError: a column is not there, or cannot be compared with the value.
        ConfigError: a condition is none.
    """
    found = []
    for text in conditions:
        condition = parse(text)
        column = columns.require(list(table.schema), condition.column, f"condition {text!r}", table.where, "--where")
        table.refuse_unfit([column])
        condition = replace(condition, column=column)
        found.append((condition, _verdict(condition, table)))
    if not found:
        return table, []
    return replace(table, kept=pl.all_horizontal(verdict == _YES for _, verdict in found)), found


def apply(frame: pl.DataFrame, found: list[tuple[Condition, pl.Expr]], table: Table, report: Report) -> pl.DataFrame:
    """The rows for which all conditions hold, without the columns `where 0`, `where 1`, ... that say so.

    Raises:
        DataError: a value cannot be compared, or no row is left.
    """
    for at, (condition, _) in enumerate(found):
        verdict = frame[f"where {at}"]
        unlike = frame.filter(verdict == _UNLIKE)["row"]
        if len(unlike):
            value = table.value(condition.column, int(unlike[0]))
            first = condition_text(condition.column, "!=", str(value))
            raise DataError(
                f"{table.where}, row {unlike[0]}, column {condition.column!r}: {value!r} cannot be compared with "
                f"{condition.values[0]} ({len(unlike):,} such rows)",
                f'Leave such rows out before it: --where "{first}" --where "{condition.text}".',
            )
        before, missing = frame.height, int((verdict == _MISSING).sum())
        gone = frame.filter(verdict != _YES)["row"]
        frame = frame.filter(verdict == _YES)
        if not frame.height:
            raise DataError(
                f"{table.where}: no row is left where {condition.text}",
                f"The column holds, for example: {_shown(table, condition.column)}.",
            )
        note = f"{missing:,} of them have no value in {condition.column!r}" if missing else "it does not hold"
        codes = frame.select(pl.col("user", "item").to_physical())
        report.step(f"where {condition.text}", before, codes, gone, note)
    return frame.drop([f"where {at}" for at in range(len(found))])


def _verdict(condition: Condition, table: Table) -> pl.Expr:
    """`_NO`, `_YES`, `_MISSING` or `_UNLIKE` for each row, uint8."""
    dtype, raw = table.schema[condition.column], pl.col(condition.column)
    missing = raw.is_null()
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        missing = missing | (raw.cast(pl.String).str.strip_chars() == "")
    elif dtype.is_float():
        missing = missing | raw.is_nan()
    elif not (dtype.is_numeric() or dtype == pl.Boolean or dtype in (pl.Date, pl.Datetime)):
        raise DataError(
            f"{table.where}, column {condition.column!r}: {dtype} cannot be compared", "Name another column in --where."
        )
    holds = _holds(condition, table, dtype)
    holds = pl.when(holds.is_null()).then(_UNLIKE).when(holds).then(_YES).otherwise(_NO)
    return pl.when(missing).then(_MISSING).otherwise(holds).cast(pl.UInt8)


def _holds(condition: Condition, table: Table, dtype: pl.DataType) -> pl.Expr:
    """Whether it holds; null where the row's value cannot be compared."""
    if condition.op in ("=", "!=", "in", "not in"):
        any_equal = pl.any_horizontal(_equal(condition, value, table, dtype) for value in condition.values)
        return any_equal if condition.op in ("=", "in") else ~any_equal
    value, raw = condition.values[0], pl.col(condition.column)
    number = value.number
    if number is None or dtype in (pl.Date, pl.Datetime):
        return _compare(condition.op, *_moments(condition, value, table))
    if dtype == pl.Boolean:
        raise _unlike(condition, value, table, dtype)
    if dtype.is_numeric():
        return _compare(condition.op, raw, pl.lit(number))
    text = raw.cast(pl.String).str.strip_chars()
    as_float = _compare(condition.op, text.cast(pl.Float64, strict=False), pl.lit(float(number)))
    if not isinstance(number, int):
        return as_float
    # Whole numbers as such: identifiers and nanoseconds are beyond what floats tell apart.
    return pl.coalesce(_compare(condition.op, text.cast(pl.Int64, strict=False), pl.lit(number)), as_float)


def _equal(condition: Condition, value: Value, table: Table, dtype: pl.DataType) -> pl.Expr:
    raw = pl.col(condition.column)
    if dtype in (pl.Date, pl.Datetime):
        column, moment = _moments(condition, value, table)
        return column == moment
    number = value.number if not dtype.is_numeric() else replace(value, quoted=False).number
    if dtype == pl.Boolean:
        truth = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(value.text.lower())
        if truth is None:
            raise _unlike(condition, value, table, dtype)
        return raw == truth
    if dtype.is_numeric():
        if number is None:
            raise _unlike(condition, value, table, dtype)
        return raw == number
    text = raw.cast(pl.String)
    if not value.quoted and value.text.lower() in ("true", "false"):  # Python writes them otherwise than Java does
        return text.str.strip_chars().str.to_lowercase() == value.text.lower()
    same = (text == value.text) | (text.str.strip_chars() == value.text)
    if number is None:
        return same
    plain = text.str.strip_chars()
    if isinstance(number, int):
        same = same | (plain.cast(pl.Int64, strict=False) == number).fill_null(False)
    if abs(number) < _EXACT:
        same = same | (plain.cast(pl.Float64, strict=False) == float(number)).fill_null(False)
    return same


def _moments(condition: Condition, value: Value, table: Table) -> tuple[pl.Expr, pl.Expr]:
    """The column as moments, and the value in the column's unit."""
    forms = fit_formats(pl.Series([value.text])) if value.text else None
    read = forms.of(value.text) if forms is not None and len(forms.readings()) == 1 else None
    dtype = table.schema[condition.column]
    if read is None or dtype == pl.Boolean:
        raise _unlike(condition, value, table, dtype)
    plan = times.plan(condition.column, table)
    sample = table.sample(condition.column).to_frame(condition.column).select(plan.value).to_series().drop_nulls()
    if plan.text is not None and not len(sample):
        raise _unlike(condition, value, table, dtype)
    unit = times.UNITS[plan.unit or times.guess_unit(sample)]
    moment = read[0] * (unit // 10**6) if unit >= 10**6 else read[0] / (10**6 // unit)
    return plan.value, pl.lit(moment)


def _shown(table: Table, column: str) -> str:
    """Some of a column's values."""
    return ", ".join(map(repr, table.sample(column).unique(maintain_order=True).head(5).to_list())) or "nothing"


def _unlike(condition: Condition, value: Value, table: Table, dtype: pl.DataType) -> ConfigError:
    some = _shown(table, condition.column)
    return ConfigError(
        f"where {condition.text!r}: column {condition.column!r} ({dtype}) cannot be compared with {value}",
        f"The column holds, for example: {some}. Numbers and times have an order; = and != compare texts too.",
    )


def _compare(op: str, left: pl.Expr, right: pl.Expr) -> pl.Expr:
    return {">=": left >= right, "<=": left <= right, ">": left > right, "<": left < right}[op]
