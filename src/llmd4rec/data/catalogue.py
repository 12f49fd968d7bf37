"""The catalogue: one row per item, with readable texts, in an order that says nothing."""

from __future__ import annotations

from typing import Any

import polars as pl

from llmd4rec.data import columns, ids
from llmd4rec.data.report import EXAMPLES, Report
from llmd4rec.data.settings import Prepare
from llmd4rec.data.table import Table
from llmd4rec.errors import DataError

#: Types that no text can be made of.
NOT_PLAIN = (pl.Binary, pl.Object, pl.Duration)


def bare_catalogue(used: pl.Series) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """A catalogue of identifiers only."""
    return pl.DataFrame({"item_id": used}), ()


def read_catalogue(
    table: Table, used: pl.Series, item_column: str, settings: Prepare, report: Report
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The catalogue of the items in use, in the order of the hash of their identifiers, and its text columns.

    Args:
        table: the items file.
        used: identifiers that occur in the interactions.
        item_column: the name of the item column there; the same name is taken here if it exists.

    Raises:
        DataError: a column is missing or is no identifier.
    """
    names = list(table.schema)
    by_name = item_column if settings.item_id_col is None and item_column in names else settings.item_id_col
    key = columns.choose(names, by_name, (*columns.ITEM, "id"), "item's identifier", table.where, "--item-id-col")
    texts = _text_columns(names, key, table, settings)
    others = _other_columns(names, key, texts, table)
    table.refuse_unfit((key, *texts))
    for warning in table.warnings:
        report.warn(warning)
    renamed = _names(texts, others, names, key, table, report)

    raw = table.collect(
        [
            ids.id_text(key, table.schema[key], table.where).alias("item_id"),
            *(pl.col(name).alias(renamed[name]) for name in (*texts, *others)),
        ]
    )
    raw = raw.with_columns(ids.tidy(raw["item_id"], table.schema[key], table.where, key).alias("item_id"))
    ids.warn_of_blanks(raw["item_id"].drop_nulls(), f"items of {table.where}", report)
    named = raw.drop_nulls("item_id")
    rows = named.unique("item_id", keep="first", maintain_order=True)
    known = used.is_in(rows["item_id"].implode())
    unseen = rows.filter(~pl.col("item_id").is_in(used.implode()))["item_id"]
    listed = pl.concat([used, unseen]) if settings.keep_unseen_items else used
    listed = listed.gather(ids.hash_rank(listed).argsort())
    catalogue = pl.DataFrame({"item_id": listed}).join(rows, on="item_id", how="left", maintain_order="left")
    catalogue = catalogue.with_columns(readable(pl.col(renamed[name]), table.schema[name]) for name in texts)
    kept = tuple(renamed[name] for name in texts if catalogue[renamed[name]].null_count() < catalogue.height)
    empty = [renamed[name] for name in texts if renamed[name] not in kept]
    catalogue = catalogue.drop(empty)

    missing = used.filter(~known)
    facts: dict[str, Any] = {
        **table.about,
        "identifier": key,
        "text_columns": {name: int(catalogue[name].count()) for name in kept},
        "text_columns_without_text": empty,
        "other_columns": [renamed[name] for name in others],
        "columns_left_out": [name for name in names if name != key and name not in renamed],
        "rows": raw.height,
        "rows_without_identifier": raw.height - named.height,
        "repeated_rows_dropped": named.height - rows.height,
        "items_with_interactions": len(used),
        "of_these_without_a_row_here": len(missing),
        "items_without_interactions": len(unseen),
        "these_were": "kept" if settings.keep_unseen_items else "dropped",
    }
    if len(missing):
        facts["examples_without_a_row"] = missing.head(EXAMPLES).to_list()
    report.facts["catalogue"] = facts
    if len(missing) == len(used):
        example = f"{used[0]!r} there, {rows['item_id'][0]!r} here" if rows.height else "it is empty"
        report.warn(f"no item of the interactions was found in {table.where}: do the identifiers match? ({example})")
    return catalogue, kept


def _text_columns(names: list[str], key: str, table: Table, settings: Prepare) -> list[str]:
    """The columns that hold text for people, the title first; never an identifier."""
    rest = [name for name in names if name != key]
    if settings.text_cols is not None:
        named = [
            columns.require(rest, name, "text", table.where, "--text-cols")
            for name in dict.fromkeys(settings.text_cols)
        ]
        for name in named:
            if not _can_be_text(table.schema[name]):
                raise DataError(
                    f"{table.where}, column {name!r}: {table.schema[name]} is no text",
                    "Leave it out of --text-cols, or make it text first.",
                )
        return list(dict.fromkeys(named))
    rest = [name for name in rest if _can_be_text(table.schema[name])]
    title = columns.guess(rest, columns.TITLE)
    found = [] if title is None else [title]
    wanted = {columns.normal(name): place for place, name in enumerate(columns.TEXT)}
    matching = [name for name in rest if columns.normal(name) in wanted]
    return found + sorted(matching, key=lambda name: wanted[columns.normal(name)])


def _can_be_text(dtype: pl.DataType) -> bool:
    inner: Any = dtype
    while isinstance(inner, pl.List | pl.Array):
        inner = inner.inner
    return not isinstance(inner, pl.Struct) and inner not in NOT_PLAIN


def _other_columns(names: list[str], key: str, texts: list[str], table: Table) -> list[str]:
    """Columns that are carried along: plain values under a name of their own."""
    taken = {"item_id", "title", *(name.split(":")[0] for name in texts)}
    others = []
    for name in names:
        short, dtype = name.split(":")[0], table.schema[name]
        plain = not dtype.is_nested() and dtype not in NOT_PLAIN
        if name != key and name not in texts and short not in taken and plain and name not in table.unfit:
            others.append(name)
            taken.add(short)
    return others


def _names(
    texts: list[str], others: list[str], names: list[str], key: str, table: Table, report: Report
) -> dict[str, str]:
    """What each column is called in the data set: without its RecBole type, and the title `title`.

    Raises:
        DataError: a text would be called like another one, or like the identifier.
    """
    renamed = {name: name.split(":")[0] for name in (*texts, *others)}
    title = columns.guess(texts, columns.TITLE)
    if title is not None:
        renamed[title] = "title"
        if title.split(":")[0] != "title" and (real := columns.guess(names, ("title",))) not in (None, key, title):
            report.warn(f"column {real!r} was left out, since {title!r} is taken as the title; use --text-cols {real}")
    taken = {"item_id": "the identifier"}
    for name in texts:
        if renamed[name] in taken:
            raise DataError(
                f"{table.where}, column {name!r}: it would be called {renamed[name]!r}, as is {taken[renamed[name]]}",
                "Leave it out of --text-cols, or rename it in the file.",
            )
        taken[renamed[name]] = f"column {name!r}"
    return renamed


def readable(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """One line of text: lists joined by `; `, paths in lists of lists by `>`, spaces collapsed, blank as null."""
    if isinstance(dtype, pl.List | pl.Array):
        inner: Any = dtype.inner
        if isinstance(inner, pl.List | pl.Array):
            column = column.list.eval(pl.element().cast(pl.List(pl.String)).list.join(" > ", ignore_nulls=True))
            column = column.list.join("; ", ignore_nulls=True)
        else:
            column = column.cast(pl.List(pl.String)).list.join("; ", ignore_nulls=True)
    elif dtype.is_float():
        column = column.fill_nan(None).cast(pl.String).str.strip_suffix(".0")
    else:
        column = column.cast(pl.String)
    text = column.str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(text != "").then(text)
