"""The catalogue of a recommender: identifiers, titles, fields, and which items a filter allows.

A catalogue is never changed: :meth:`Catalogue.with_items` makes another one, which shares what is the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.errors import DataError
from llmd4rec.inference.fields import Field, Mask, Rows, column_values, number_of
from llmd4rec.inference.types import FieldKind, Filters, Item, NewItem, Value, identifiers


@dataclass(frozen=True)
class Catalogue:
    """All items, in the order of the item table.

    Attributes:
        ids, titles: [I]; a title is None where there is none.
        counts: int64 [I], occurrences in the training data.
        fields: by name.
        present: bool [I]; false for items that were removed.
        trained: bool [I]; false for items whose embedding was made from their text.
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
            multi: the fields with several values, and the format these were written in; None: not known.
        """
        ids = frame["item_id"].cast(pl.String).to_list()
        titles = frame["title"].cast(pl.String).to_list() if "title" in frame.columns else [None] * len(ids)
        formats = {name: None if multi is None else multi.get(name, "") for name in kinds}
        fields = {
            name: Field(name, kind, column_values(frame[name], kind), formats[name]) for name, kind in kinds.items()
        }
        index = {item_id: row for row, item_id in enumerate(ids)}
        every = np.ones(len(ids), dtype=bool)
        return cls(ids, titles, counts, fields, every, every if trained is None else trained, index)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def size(self) -> int:
        """The number of items, without removed ones."""
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
        """Whether an item is known and its embedding was trained."""
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
        """Which items the filters allow, [I]; removed items are never allowed.

        Raises:
            DataError: a field is not in the catalogue, or has another kind of values; or see :func:`check_filters`.
        """
        check_filters(filters)
        allowed_I = self.present.copy()
        for name, wanted in filters.any_of.items():
            allowed_I &= self.field(name).mask(wanted)
        for name, bound in filters.at_least.items():
            allowed_I &= self._number_field(name).numbers >= number_of(name, bound)
        for name, bound in filters.at_most.items():
            allowed_I &= self._number_field(name).numbers <= number_of(name, bound)
        if filters.allow is not None:
            listed_I = np.zeros(len(self), dtype=bool)
            listed_I[self.rows(identifiers("list allow of the filters", filters.allow))[0]] = True
            allowed_I &= listed_I
        if filters.deny is not None:
            allowed_I[self.rows(identifiers("list deny of the filters", filters.deny))[0]] = False
        return allowed_I

    def field(self, name: str) -> Field:
        """A field by name.

        Raises:
            DataError: there is no such field; names the existing ones.
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
            raise DataError(f"field {name!r} contains text, which has no range", "Filter it by its values.")
        return field

    # ---- other catalogues ---------------------------------------------------------------------------------------
    def completed(self, item: NewItem) -> NewItem:
        """An item with the title and fields it has here where they are not given.

        A field given as None is cleared; an empty title clears the title. A removed item is completed too: it may only
        have been sold out.
        """
        row = self.index.get(item.item_id)
        given = {name: self.field(name).normalised(value) for name, value in item.fields.items()}
        if row is None:
            return replace(item, title=item.title or None, fields=given)
        title = self.titles[row] if item.title is None else item.title
        return replace(item, title=title or None, fields={**self.values(row), **given})

    def rows_for(self, items: Sequence[NewItem], fixed: int) -> list[int]:
        """The row to which each item is written: its own, or a new one behind all others.

        Args:
            items: with different identifiers.
            fixed: the embeddings of the first `fixed` rows never change, since an index may cover them. Of these rows
                only trained items are written over, which keep their embeddings.
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
        """This catalogue with items in `rows` (see :meth:`rows_for`), which these identifiers name from now on.

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
                name: field.with_values(put(field.values, [field.value_of(item) for item in items]), rows)
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

    def subset(self, rows: Rows) -> Catalogue:
        """Some of the rows, in their order; the other items are forgotten."""
        place_I = np.full(len(self), -1)
        place_I[rows] = np.arange(len(rows))
        kept = rows.tolist()
        return Catalogue(
            ids=[self.ids[row] for row in kept],
            titles=[self.titles[row] for row in kept],
            counts=self.counts[rows],
            fields={
                name: replace(field, values=[field.values[row] for row in kept]) for name, field in self.fields.items()
            },
            present=self.present[rows],
            trained=self.trained[rows],
            index={item_id: int(place_I[row]) for item_id, row in self.index.items() if place_I[row] >= 0},
        )


def check_filters(filters: Filters) -> None:
    """Refuses filters that make no sense.

    Raises:
        DataError: they are not `Filters`, a condition on fields is not a mapping, or a range is empty.
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
    for name, low in filters.at_least.items():
        high = filters.at_most.get(name)
        if high is not None and number_of(name, low) > number_of(name, high):
            raise DataError(
                f"field {name!r} cannot be at least {low} and at most {high}: no number is", "Swap the two bounds."
            )
