"""The catalogue of an engine: identifiers, titles, fields, and which items pass a filter.

A catalogue is never changed: :meth:`Catalogue.with_items` makes another one, which shares what is the same.
"""

from __future__ import annotations

import difflib
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
from llmd4rec.inference.types import FieldKind, Filters, Item, NewItem, Value, identifiers

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
#: Between the parts of a path and between the values of a field that has several, as `prepare` writes them.
PATH, LIST = " > ", "; "
#: In exports that do not say which fields hold several values: those whose values often come joined by commas.
COMMA_LISTS = ("genre", "genres", "tag", "tags", "keyword", "keywords")
#: Text that is written as numbers are, and not as identifiers with leading zeros or lists are: commas part thousands
#: alone. ("9,99" stays text: whether it is a price or two codes cannot be seen.) What is taken out before it is read.
_NUMBER, _MARKS = r"^\s*-?[$€£]?(0|[1-9]\d*|[1-9]\d{0,2}(,\d{3})+)(\.\d+)?\s*$", r"[$€£,\s]"
#: From here on two whole numbers may be the same float64. What is as large is a code, and is compared as text.
_EXACT_BELOW = 2.0**53


@dataclass(frozen=True)
class Field:
    """One column.

    Attributes:
        values: as they came, [I]; text, or float for numbers; None where missing.
        written: how several values of an item were written, which are kept with `; ` between them (see
            :mod:`~llmd4rec.data.ingest.multi_values`); "": an item has one value; None: the export does not say.
    """

    name: str
    kind: FieldKind
    values: list[Any]
    written: str | None = None

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The values as numbers, [I]; NaN where missing."""
        return np.array([np.nan if value is None else value for value in self.values], dtype=np.float64)

    @cached_property
    def rows_by_value(self) -> dict[str, Rows]:
        """Rows of each value without case; each part of a list and each beginning of a path is a value too."""
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

    def _keys(self, value: str) -> tuple[str, ...]:
        keys = {value}
        for part in self.parts(value):
            steps = part.split(PATH)
            keys |= {PATH.join(steps[: end + 1]) for end in range(len(steps))}
        return tuple({key.strip().casefold() for key in keys} - {""})

    def parts(self, value: str) -> list[str]:
        """The values of an item in this field."""
        if self.written == "":
            return [value]
        parts = value.split(LIST)
        if self.written is None and self.name.lower() in COMMA_LISTS:
            parts = [piece for part in parts for piece in part.split(", ")]
        return parts

    def as_kept(self, value: Any) -> Any:
        """A value of an item that is added, several of them as they are kept: `; ` between them.

        Raises:
            DataError: it is a list where an item has one value.
        """
        if isinstance(value, list | tuple):
            if not self.written:
                raise DataError(f"field {self.name!r} holds one value, and was given {value!r}", "Give one value.")
            return LIST.join(_text(each) for each in value) or None
        return rewritten(_text(value), self.written) if self.written and value is not None else value

    def value_of(self, item: NewItem) -> Any:
        """What an item has in this field.

        Raises:
            DataError: it is no number where this field holds numbers.
        """
        value = self.as_kept(item.fields.get(self.name))
        if value is None:
            return None
        if self.kind == "number":
            number = _number(self.name, value)
            if not np.isfinite(number):
                raise DataError(f"field {self.name!r} cannot hold {value!r}", "Give a finite number, or none.")
            return number
        return _text(value).strip() or None

    def mask(self, wanted: str | float | Collection[str | float]) -> Mask:
        """Which items have one of the wanted values, [I].

        Raises:
            DataError: None is wanted, or text of a field that holds numbers.
        """
        values = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
        if None in values:
            raise DataError(f"field {self.name!r} is asked for None", "Give the values that may come, or leave it out.")
        passing = np.zeros(len(self.values), dtype=bool)
        for value in values:
            if self.kind == "number":
                passing |= self.numbers == _number(self.name, value)
            else:
                passing[self.rows_by_value.get(_text(value).strip().casefold(), np.empty(0, np.int64))] = True
        return passing


@dataclass(frozen=True)
class Catalogue:
    """All items, in the order of the item table.

    Attributes:
        ids, titles: [I]; a title is None where there is none.
        counts: int64 [I], occurrences in the training data.
        fields: by name.
        present: bool [I]; false for items that were removed.
        trained: bool [I]; false for items whose row was made from their text.
        index: identifier → row; removed items are still in it, since histories name them.
    """

    ids: list[str]
    titles: list[str | None]
    counts: NDArray[np.int64]
    fields: Mapping[str, Field]
    present: Mask
    trained: Mask
    index: Mapping[str, int]

    @classmethod
    def of(
        cls,
        frame: pl.DataFrame,
        counts: NDArray[np.int64],
        kinds: Mapping[str, FieldKind],
        trained: Mask | None = None,
        multi: Mapping[str, str] | None = None,
    ) -> Catalogue:
        """The catalogue in a frame with `item_id` and perhaps `title`; `kinds` names the columns to keep.

        Args:
            trained: which rows were trained; None: all.
            multi: the fields with several values and how they were written; None: not known.
        """
        ids = frame["item_id"].cast(pl.String).to_list()
        titles = frame["title"].cast(pl.String).to_list() if "title" in frame.columns else [None] * len(ids)
        written = {name: None if multi is None else multi.get(name, "") for name in kinds}
        fields = {
            name: Field(name, kind, column_values(frame[name], kind), written[name]) for name, kind in kinds.items()
        }
        index = {item_id: row for row, item_id in enumerate(ids)}
        every = np.ones(len(ids), dtype=bool)
        return cls(ids, titles, counts, fields, every, every if trained is None else trained, index)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def size(self) -> int:
        """How many items there are, removed ones not counted."""
        return int(self.present.sum())

    @cached_property
    def absent(self) -> Rows:
        """Rows of removed items."""
        return np.flatnonzero(~self.present)

    @cached_property
    def by_count(self) -> Rows:
        """All rows, most frequent in training first."""
        return np.argsort(-self.counts, kind="stable")

    def title(self, row: int) -> str:
        """What to call an item."""
        return self.titles[row] or self.ids[row]

    def values(self, row: int) -> dict[str, Value]:
        """An item's fields."""
        return {name: field.values[row] for name, field in self.fields.items()}

    def item(self, row: int) -> Item:
        """An item."""
        return Item(self.ids[row], self.title(row), self.values(row), int(self.counts[row]))

    def is_trained(self, item_id: str) -> bool:
        """Whether an item is known and its row was trained."""
        row = self.index.get(item_id)
        return row is not None and bool(self.trained[row])

    def rows(self, item_ids: Iterable[str]) -> tuple[list[int], list[str]]:
        """Rows of the known identifiers in the given order, and the unknown identifiers."""
        known: list[int] = []
        unknown: list[str] = []
        for item_id in item_ids:
            row = self.index.get(item_id)
            if row is None:
                unknown.append(item_id)
            else:
                known.append(row)
        return known, unknown

    # ---- filters ------------------------------------------------------------------------------------------------
    def mask(self, filters: Filters) -> Mask:
        """Which items pass, [I]; removed ones never do.

        Raises:
            DataError: a field is not in the catalogue, or is compared as what it is not; or see :func:`check_filters`.
        """
        check_filters(filters)
        passing = self.present.copy()
        for name, wanted in filters.any_of.items():
            passing &= self.field(name).mask(wanted)
        for name, bound in filters.at_least.items():
            passing &= self._number_field(name).numbers >= _number(name, bound)
        for name, bound in filters.at_most.items():
            passing &= self._number_field(name).numbers <= _number(name, bound)
        if filters.allow is not None:
            allowed = np.zeros(len(self), dtype=bool)
            allowed[self.rows(identifiers("list allow of the filters", filters.allow))[0]] = True
            passing &= allowed
        if filters.deny is not None:
            passing[self.rows(identifiers("list deny of the filters", filters.deny))[0]] = False
        return passing

    def field(self, name: str) -> Field:
        """A field by name.

        Raises:
            DataError: there is none; names those there are.
        """
        found = self.fields.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self.fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(f"{field.name} ({field.kind})" for field in self.fields.values()) or "none"
            raise DataError(f"the catalogue has no field {name!r}{hint}", f"It has: {known}.")
        return found

    def _number_field(self, name: str) -> Field:
        field = self.field(name)
        if field.kind != "number":
            raise DataError(f"field {name!r} holds text, which has no range", "Filter it by its values.")
        return field

    # ---- other catalogues ---------------------------------------------------------------------------------------
    def completed(self, item: NewItem) -> NewItem:
        """An item with the title and fields it has here where they are not given anew.

        None is a field that is given, and clears it; an empty title clears the title. A removed item is completed too:
        it may only have been sold out.
        """
        row = self.index.get(item.item_id)
        given = {name: self.field(name).as_kept(value) for name, value in item.fields.items()}
        if row is None:
            return replace(item, title=item.title or None, fields=given)
        title = self.titles[row] if item.title is None else item.title
        return replace(item, title=title or None, fields={**self.values(row), **given})

    def rows_for(self, items: Sequence[NewItem], fixed: int) -> list[int]:
        """Where each item is to be written: over its own row, or behind all rows where it has none that may change.

        Args:
            items: of different identifiers.
            fixed: the vectors of the first so many rows never change (an index knows them): of those only trained items
                are written over, whose vectors stay.
        """
        rows: list[int] = []
        end = len(self)
        for item in items:
            row = self.index.get(item.item_id)
            if row is None or not (self.trained[row] or row >= fixed):
                row, end = end, end + 1
            rows.append(row)
        return rows

    def with_items(self, items: Sequence[NewItem], rows: Sequence[int]) -> Catalogue:
        """This catalogue with items in `rows` (see :meth:`rows_for`), whose identifiers name them from now on.

        A trained item keeps its count.
        """
        more = max([len(self), *(row + 1 for row in rows)]) - len(self)
        present = np.concatenate([self.present, np.ones(more, dtype=bool)])
        for row, item in zip(rows, items, strict=True):
            present[self.index.get(item.item_id, row)] = False
            present[row] = True

        def put(old: list[Any], new: Iterable[Any]) -> list[Any]:
            values = [*old, *([None] * more)]
            for row, value in zip(rows, new, strict=True):
                values[row] = value
            return values

        return Catalogue(
            ids=put(self.ids, [item.item_id for item in items]),
            titles=put(self.titles, [item.title for item in items]),
            counts=np.concatenate([self.counts, np.zeros(more, dtype=np.int64)]),
            fields={
                name: replace(field, values=put(field.values, [field.value_of(item) for item in items]))
                for name, field in self.fields.items()
            },
            present=present,
            trained=np.concatenate([self.trained, np.zeros(more, dtype=bool)]),
            index={**self.index, **{item.item_id: row for row, item in zip(rows, items, strict=True)}},
        )

    def without(self, rows: Sequence[int]) -> Catalogue:
        """This catalogue with some items removed."""
        present = self.present.copy()
        present[list(rows)] = False
        return replace(self, present=present)


def check_filters(filters: Filters) -> None:
    """Refuses filters of which nothing sensible could be made.

    Raises:
        DataError: they are no `Filters`, a condition on fields is no mapping, or a range is empty.
    """
    if not isinstance(filters, Filters):
        raise DataError(
            f"the filters are of type {type(filters).__name__}",
            'Give llmd4rec.Filters, as Filters(any_of={"brand": "Dove"}).',
        )
    for part in ("any_of", "at_least", "at_most"):
        given = getattr(filters, part)
        if not isinstance(given, Mapping):
            raise DataError(f"{part} of the filters is {given!r}", "Give a mapping of fields to values.")
    for name, least in filters.at_least.items():
        most = filters.at_most.get(name)
        if most is not None and _number(name, least) > _number(name, most):
            raise DataError(
                f"field {name!r} is to be at least {least} and at most {most}, which nothing is", "Swap the two bounds."
            )


def kinds_of(frame: pl.DataFrame, multi: Mapping[str, str] | None = None) -> dict[str, FieldKind]:
    """The kinds of a catalogue's columns other than `item_id` and `title`.

    Args:
        multi: the fields with several values of an item; each of these counts, and they are never numbers.
    """
    kinds: dict[str, FieldKind] = {}
    for name in frame.columns:
        if name in (multi or {}):
            each = frame[name].str.split(LIST).explode().drop_nulls()
            kinds[name] = "category" if each.n_unique() <= len(each) / 2 else "text"
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
    """A column as an engine keeps it: numbers as float, all else as text; None where missing."""
    if kind != "number":
        return column.cast(pl.String).to_list()
    if not column.dtype.is_numeric():
        column = column.cast(pl.String).str.replace_all(_MARKS, "")
    column = column.cast(pl.Float64, strict=False).fill_nan(None)
    return column.to_list()


def _number(name: str, value: Any) -> float:
    """A value as a number, read as :func:`column_values` reads it.

    Raises:
        DataError: it is none; names the field.
    """
    if isinstance(value, str) and re.match(_NUMBER, value):
        value = re.sub(_MARKS, "", value)
    try:
        number = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if np.isnan(number):
        raise DataError(f"field {name!r} holds numbers, and {value!r} is none", "Give a number, as 9.5.")
    return number


def _text(value: Any) -> str:
    """A value as text, as :func:`column_values` writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
