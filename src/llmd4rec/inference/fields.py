"""The fields of a catalogue: what kind of values they hold, how these are read, and which items have which."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest.multi_values import rewritten
from llmd4rec.errors import DataError
from llmd4rec.inference.types import FieldKind, NewItem

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
#: Between the parts of a path and between the values of a field that has several, as `prepare` writes them.
PATH, LIST = " > ", "; "
#: A path has at most so many steps; what is behind them is one: each beginning of a path is held.
MOST_STEPS = 64
#: In exports that do not say which fields have several values: those whose values are often joined by commas.
COMMA_LISTS = ("genre", "genres", "tag", "tags", "keyword", "keywords")
#: Text that is a number: no identifiers with leading zeros, no lists; a comma may only separate thousands. ("9,99"
#: stays text: whether it is a price or two codes cannot be known.) The second expression is removed before reading.
_NUMBER, _MARKS = r"^\s*-?[$€£]?(0|[1-9]\d*|[1-9]\d{0,2}(,\d{3})+)(\.\d+)?\s*$", r"[$€£,\s]"
#: From here on two whole numbers may be the same float64, so a field with such numbers holds codes and is text.
_EXACT_BELOW = 2.0**53


@dataclass(frozen=True)
class Field:
    """One column.

    Attributes:
        values: [I]; text, or float for numbers; None where missing. Several values of an item are joined by `; `.
        multi_format: the format in which the catalogue's file has several values of an item (see
            :mod:`~llmd4rec.data.ingest.multi_values`); "": each item has one value; None: the export does not say.
    """

    name: str
    kind: FieldKind
    values: list[Any]
    multi_format: str | None = None

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The values as numbers, [I]; NaN where missing."""
        return np.array([np.nan if value is None else value for value in self.values], dtype=np.float64)

    @cached_property
    def rows_by_value(self) -> dict[str, Rows]:
        """The rows with each value, in lower case; each element of a list and each prefix of a path is a value."""
        rows: dict[str, list[int]] = {}
        known: dict[str, tuple[str, ...]] = {}
        for row, value in enumerate(self.values):
            if value is None:
                continue
            if value not in known:
                known[value] = self._keys(value)
            for key in known[value]:
                rows.setdefault(key, []).append(row)
        return {key: np.array(found, dtype=np.int64) for key, found in rows.items()}

    def with_values(self, values: list[Any], rows: Sequence[int]) -> Field:
        """This field with other values of some rows, of which the last may be new.

        What was made of the values at the first filter is changed with them, so that the next one need not wait.
        """
        field, made = replace(self, values=values), vars(self)
        if "numbers" in made:
            numbers = np.concatenate([self.numbers, np.full(len(values) - len(self.values), np.nan)])
            numbers[list(rows)] = [np.nan if values[row] is None else values[row] for row in rows]
            vars(field)["numbers"] = numbers
        if "rows_by_value" in made:
            before = [self.values[row] if row < len(self.values) else None for row in rows]
            changes = [
                (row, set(self._keys(old)), set(self._keys(values[row]))) for row, old in zip(rows, before, strict=True)
            ]
            vars(field)["rows_by_value"] = reindexed(self.rows_by_value, changes)
        return field

    def _keys(self, value: str | None) -> tuple[str, ...]:
        if value is None:
            return ()
        keys = {value}
        for part in self.parts(value):
            steps = part.split(PATH, MOST_STEPS - 1)
            keys |= {PATH.join(steps[: end + 1]) for end in range(len(steps))}
        return tuple({key.strip().casefold() for key in keys} - {""})

    def parts(self, value: str) -> list[str]:
        """The values of an item in this field."""
        if self.multi_format == "":
            return [value]
        parts = value.split(LIST)
        if self.multi_format is None and self.name.lower() in COMMA_LISTS:
            parts = [piece for part in parts for piece in part.split(", ")]
        return parts

    def normalised(self, value: Any) -> Any:
        """A value of a new item as this field stores it: several values joined by `; `.

        Raises:
            DataError: it is a list, and an item has one value in this field.
        """
        if isinstance(value, list | tuple):
            if not self.multi_format:
                raise DataError(
                    f"field {self.name!r} has one value per item, but was given {value!r}", "Give one value."
                )
            return LIST.join(text_of_value(each) for each in value) or None
        return rewritten(text_of_value(value), self.multi_format) if self.multi_format and value is not None else value

    def value_of(self, item: NewItem) -> Any:
        """The value of a new item in this field.

        Raises:
            DataError: it is not a number, and this field contains numbers.
        """
        value = self.normalised(item.fields.get(self.name))
        if value is None:
            return None
        if self.kind == "number":
            number = number_of(self.name, value)
            if not np.isfinite(number):
                raise DataError(f"field {self.name!r} cannot hold {value!r}", "Give a finite number, or none.")
            return number
        return text_of_value(value).strip() or None

    def mask(self, wanted: str | float | Collection[str | float]) -> Mask:
        """Which items have one of the wanted values, [I].

        Raises:
            DataError: None is wanted, or text in a field that contains numbers.
        """
        values = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
        if None in values:
            raise DataError(
                f"field {self.name!r} is filtered by None", "Give the allowed values, or leave the field out."
            )
        allowed = np.zeros(len(self.values), dtype=bool)
        for value in values:
            if self.kind == "number":
                allowed |= self.numbers == number_of(self.name, value)
            else:
                allowed[self.rows_by_value.get(text_of_value(value).strip().casefold(), np.empty(0, np.int64))] = True
        return allowed


def reindexed(rows_by_key: Mapping[str, Rows], changes: Iterable[tuple[int, set[str], set[str]]]) -> dict[str, Rows]:
    """Which rows have which key, after changes: of each row that changed, its keys before and now."""
    found = dict(rows_by_key)
    for row, before, now in changes:
        for key in before - now:
            left = found[key][found[key] != row]
            if len(left):
                found[key] = left
            else:
                del found[key]
        for key in now - before:
            found[key] = np.append(found.get(key, np.empty(0, np.int64)), row)
    return found


def kinds_of(frame: pl.DataFrame, multi: Mapping[str, str] | None = None) -> dict[str, FieldKind]:
    """The kinds of a catalogue's columns other than `item_id` and `title`.

    Args:
        multi: the fields with several values per item; each value counts, and they are never numbers.
    """
    kinds: dict[str, FieldKind] = {}
    for name in frame.columns:
        if name in (multi or {}):
            values = frame[name].str.split(LIST).explode().drop_nulls()
            kinds[name] = "category" if values.n_unique() <= len(values) / 2 else "text"
        elif name not in ("item_id", "title"):
            kinds[name] = _kind(frame[name])
    return kinds


def _kind(column: pl.Series) -> FieldKind:
    text = column.drop_nulls().cast(pl.String)
    if column.dtype.is_float():
        return "number"
    if column.dtype.is_numeric() or (len(text) and text.str.contains(_NUMBER).all()):
        numbers = np.array([value for value in column_values(column, "number") if value is not None])
        if (np.abs(numbers) < _EXACT_BELOW).all():
            return "number"
    return "category" if text.n_unique() <= len(text) / 2 else "text"


def column_values(column: pl.Series, kind: FieldKind) -> list[Any]:
    """A column as a field stores it: numbers as float, everything else as text; None where missing."""
    if kind != "number":
        return column.cast(pl.String).to_list()
    if not column.dtype.is_numeric():
        column = column.cast(pl.String).str.replace_all(_MARKS, "")
    column = column.cast(pl.Float64, strict=False)
    return column.to_frame().select(pl.when(pl.first().is_finite()).then(pl.first())).to_series().to_list()


def number_of(name: str, value: Any) -> float:
    """A value as a number, read as :func:`column_values` reads it.

    Raises:
        DataError: it is not a number; names the field.
    """
    if isinstance(value, str) and re.match(_NUMBER, value):
        value = re.sub(_MARKS, "", value)
    try:
        number = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if np.isnan(number):
        raise DataError(
            f"field {name!r} contains numbers, but {value!r} is not a number", "Give a number, such as 9.5."
        )
    return number


def text_of_value(value: Any) -> str:
    """A value as text, as :func:`column_values` writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
