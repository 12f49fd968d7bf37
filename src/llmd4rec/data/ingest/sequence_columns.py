"""Which columns of a table hold histories in rows: lists of items, what follows them, their times, the user."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from llmd4rec.data.ingest import columns
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.ingest.table import Table
from llmd4rec.errors import DataError

_ENDINGS = ("list", "seq", "sequence", "history", "hist", "s", "listseq")
#: Names of lists of items, beside those of an item with an ending.
_NAMES = ("previtems", "history", "sequence", "itemhistory", "events", "articleidfixed", "clickedarticles")
_TIMES = ("impressiontimefixed",)
#: Names of the item that follows the list.
_NEXT = ("next_item", "next_item_id", "target_item", "target", "target_id", "label")
_SAMPLE = 1000


@dataclass(frozen=True)
class SequenceColumns:
    """What stands where: the list of items, the item that follows it, their times, and the user."""

    items: str
    target: str | None
    times: str | None
    last_time: str | None
    user: str | None

    @property
    def of_items(self) -> set[str | None]:
        """The columns that say which items there were, and when."""
        return {self.items, self.target, self.times, self.last_time}


def find_columns(table: Table, settings: Prepare) -> SequenceColumns | None:
    """The columns of histories in rows, if the table is of that kind."""
    schema = table.schema
    names = list(schema)
    plain_item = columns.guess(names, columns.ITEM)
    if settings.item_col is not None:
        item = columns.require(names, settings.item_col, "item", table.where, "--item-col")
        if not (_is_list(schema[item]) or (_is_named(item) and _holds_lists(item, table))):
            return None
    elif plain_item is not None and _is_list(schema[plain_item]):
        item = plain_item
    else:
        named = [name for name in names if _is_named(name) and _holds_lists(name, table)]
        if not named:
            if plain_item is None:
                _refuse_unknown_lists(table)
            return None
        item = named[0]
        if len(named) > 1:
            raise DataError(
                f"{table.where}: columns {named[0]!r} and {named[1]!r} both look like lists of items",
                "Name the right one with --item-col.",
            )
    rest = [name for name in names if name != item]
    user = settings.user_col or columns.guess([name for name in rest if not _is_list(schema[name])], columns.USER)
    if settings.user_col is not None:
        user = columns.require(names, settings.user_col, "user", table.where, "--user-col")
    target = plain_item if plain_item not in (item, None) and not _is_list(schema[plain_item or item]) else None
    target = target or columns.guess(rest, _NEXT)
    times = [name for name in rest if _is_time(name) and _holds_lists(name, table)]
    if settings.time_col is not None:
        time = columns.require(names, settings.time_col, "time", table.where, "--time-col")
        times = [time] if _holds_lists(time, table) else []
    scalar = columns.guess([name for name in rest if name not in times and not _is_list(schema[name])], columns.TIME)
    return SequenceColumns(item, target, times[0] if times else None, scalar if times else None, user)


def _is_list(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.List | pl.Array)


def is_events(dtype: pl.DataType) -> bool:
    """Whether each value is a list of objects."""
    return isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct)


def _is_named(name: str) -> bool:
    known = {columns.normal(each) for each in columns.ITEM}
    normal = columns.normal(name)
    return normal in _NAMES or any(normal.removesuffix(end) in known for end in _ENDINGS if normal.endswith(end))


def _is_time(name: str) -> bool:
    known = {columns.normal(each) for each in columns.TIME}
    normal = columns.normal(name)
    return normal in {*known, *_TIMES} or any(
        normal.removesuffix(end) in known for end in _ENDINGS if normal.endswith(end)
    )


def item_name(items: str, target: str | None) -> str:
    """What the column of one item is called."""
    if target is not None and columns.guess([target], columns.ITEM):
        return target.split(":")[0]
    known = {columns.normal(each): each for each in columns.ITEM}
    normal = columns.normal(items)
    return next((known[stem] for end in ("", *_ENDINGS) if (stem := normal.removesuffix(end)) in known), "item_id")


def first_values(name: str, table: Table) -> pl.Series:
    """Some values of a column."""
    return table.sample(name).head(_SAMPLE)


def _holds_lists(name: str, table: Table) -> bool:
    """Whether the values are lists: by type, by RecBole's type, in brackets, or several words."""
    dtype = table.schema[name]
    if _is_list(dtype):
        return True
    if dtype != pl.String:
        return False
    if name.endswith(("_seq", "_seq:token_seq")) or ":token_seq" in name or ":float_seq" in name:
        return True
    values = first_values(name, table).str.strip_chars()
    values = values.filter(values != "")
    if not len(values):
        return False
    if are_bracketed(values):
        return True
    return not _is_time(name) and bool(values.str.contains(r"[\s,;|]").any()) and not _is_moments(values)


def _is_moments(values: pl.Series) -> bool:
    return bool(values.str.contains(r"^\d{4}-\d{2}-\d{2}[ T]").all())


def are_bracketed(values: pl.Series) -> bool:
    """Whether texts are all lists in brackets."""
    return bool(values.str.contains(r"(?s)^(\[.*\]|\(.*\))$").all())


def _refuse_unknown_lists(table: Table) -> None:
    lists = [name for name, dtype in table.schema.items() if _is_list(dtype) and not _is_time(name)]
    if lists:
        raise DataError(
            f"{table.where} has no column that looks like the item, and a list in each row of column {lists[0]!r}",
            f"If these are histories, oldest first, name the column with --item-col {lists[0]}.",
        )
