"""The catalogue: one row per item, with readable texts, in an order that says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llmd4rec.data.ingest import columns, ids, multi_values
from llmd4rec.data.ingest.columns import normal
from llmd4rec.data.ingest.report import EXAMPLES, Report
from llmd4rec.data.ingest.settings import BLANK, LIST, Prepare, asked
from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.text_columns import not_text
from llmd4rec.errors import DataError

#: Types that no text can be made of.
NOT_PLAIN = (pl.Binary, pl.Object, pl.Duration)
#: Of such columns nobody wonders whether their signs separate values.
_SAYS_NOTHING = ("addresses", "times", "numbers", "identifiers")
#: Why a column is no text though its name says so.
_NEVER = ("addresses", "times", "structures")


@dataclass(frozen=True)
class CatalogueTable:
    """A catalogue that was read.

    Attributes:
        frame: `item_id`, then the texts and other columns, one row per item.
        text_fields: the columns that hold text, the most telling first.
        multi_fields: the columns that hold several values of an item, and how they were written (see
            :mod:`~llmd4rec.data.ingest.multi_values`); None: nothing was found out.
    """

    frame: pl.DataFrame
    text_fields: tuple[str, ...] = ()
    multi_fields: dict[str, str] | None = None


def bare_catalogue(used: pl.Series) -> CatalogueTable:
    """A catalogue of identifiers only."""
    return CatalogueTable(pl.DataFrame({"item_id": used}))


def read_catalogue(
    table: Table, used: pl.Series, item_column: str, settings: Prepare, report: Report
) -> CatalogueTable:
    """The catalogue of the items in use, in the order of the hash of their identifiers, and what its columns hold.

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
    named = _named_texts(names, key, table, settings)
    # Of the usual names of titles the first is meant; another one that cannot be read stops nothing.
    title = columns.guess(named, columns.TITLE)
    table.refuse_unfit((key, *(name for name in named if name == title or normal(name) not in _TITLES)))
    for warning in table.warnings:
        report.warn(warning)

    usable = [name for name in names if name != key and name not in table.unfit and _usable(table.schema[name])]
    raw = table.collect([ids.id_text(key, table.schema[key], table.where).alias(_KEY), *map(pl.col, usable)])
    raw = raw.with_columns(ids.tidy(raw[_KEY], table.schema[key], table.where, key).alias(_KEY))
    ids.warn_of_spellings(raw[_KEY].drop_nulls().unique(maintain_order=True), f"items of {table.where}", report)
    identified = raw.drop_nulls(_KEY)
    rows = identified.unique(_KEY, keep="first", maintain_order=True)
    known = used.is_in(rows[_KEY].implode())
    unseen = rows.filter(~pl.col(_KEY).is_in(used.implode()))[_KEY]
    listed = pl.concat([used, unseen]) if settings.keep_unseen_items else used
    listed = listed.gather(ids.hash_rank(listed).argsort())
    rows = pl.DataFrame({_KEY: listed}).join(rows, on=_KEY, how="left", maintain_order="left")

    chosen = _choose(rows, [name for name in named if name in usable], table, settings)
    renamed = _names(list(chosen.texts), chosen.others, names, key, table, report)
    catalogue = chosen.frame.select(
        pl.col(_KEY).alias("item_id"), *(pl.col(name).alias(renamed[name]) for name in (*chosen.texts, *chosen.others))
    )
    kept = tuple(renamed[name] for name in chosen.texts)
    with_text = int(catalogue.select(pl.any_horizontal(pl.col(kept).is_not_null())).to_series().sum()) if kept else 0
    multi = {renamed[name]: how for name, how in chosen.multi.items() if name in renamed}

    missing = used.filter(~known)
    facts: dict[str, Any] = {
        **table.about,
        "identifier": key,
        "text_columns": {name: int(catalogue[name].count()) for name in kept},
        "text_columns_without_text": chosen.empty,
        "items_with_a_text": f"{with_text:,} of {catalogue.height:,}",
        "filled_columns_not_taken_as_text": chosen.not_texts,
        "fields_with_several_values": {name: _explained(catalogue[name], how) for name, how in multi.items()},
        "left_whole": chosen.doubts,
        "other_columns": [renamed[name] for name in chosen.others],
        "columns_left_out": [name for name in names if name != key and name not in renamed],
        "rows": raw.height,
        "rows_without_identifier": raw.height - identified.height,
        "repeated_rows_dropped": identified.height - identified[_KEY].n_unique(),
        "items_with_interactions": len(used),
        "of_these_without_a_row_here": len(missing),
        "items_without_interactions": len(unseen),
        "these_were": "kept" if settings.keep_unseen_items else "dropped",
    }
    if len(missing):
        facts["examples_without_a_row"] = missing.head(EXAMPLES).to_list()
    report.facts["catalogue"] = facts
    if len(missing) == len(used):
        example = f"{used[0]!r} there, {identified[_KEY][0]!r} here" if identified.height else "it is empty"
        report.warn(f"no item of the interactions was found in {table.where}: do the identifiers match? ({example})")
    elif len(missing) > _MANY_MISSING * len(used):
        report.warn(
            f"{len(missing):,} of {len(used):,} items of the interactions have no row in {table.where}, such as "
            f"{missing[0]!r}: they have no texts"
        )
    _warn_of_encoding(catalogue, kept, table, report)
    if len(missing) < len(used) and chosen.not_texts and not with_text:
        report.warn(
            f"no item has a text: none of the columns of {table.where} was taken as text; name some: --text-cols"
        )
    return CatalogueTable(catalogue, kept, multi)


def _warn_of_encoding(catalogue: pl.DataFrame, fields: tuple[str, ...], table: Table, report: Report) -> None:
    """Points out texts that were UTF-8 and were read as Windows or Latin-1 before they came here (`Ã¤` for `ä`)."""
    for name in fields:
        broken = catalogue[name].filter(catalogue[name].str.contains(_BROKEN))
        if len(broken) >= max(3, _BROKEN_SHARE * catalogue.height):
            report.warn(
                f"{len(broken):,} values of column {name!r} of {table.where} look like text that was decoded in the "
                f"wrong encoding before it was written, such as {str(broken[0])[:60]!r}; export it anew, as UTF-8"
            )


#: What two or three bytes of UTF-8 become when each is read as a letter; hardly anybody writes that.
_BROKEN = r"Ã[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|Â[\xa0-\xbf]"
_BROKEN_SHARE = 0.001
#: Said where more of the items than this have no row in the catalogue.
_MANY_MISSING = 0.05
#: The identifier's column while the others still have the names of the file.
_KEY = "__item_id__"


@dataclass
class _Chosen:
    """What the columns of a catalogue hold, by their names in the file.

    Attributes:
        frame: with the texts as one line each, and fields of several values as they are kept.
        texts, others: the columns that are kept.
        empty: text columns without a text.
        split: how each field that is more than one text was written.
        multi: those of them that hold several values, not sentences.
        not_texts: filled columns that are not taken as text, and why.
        doubts: what might separate values and was left whole.
    """

    frame: pl.DataFrame
    split: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    multi: dict[str, str] = field(default_factory=dict)
    not_texts: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)


def _choose(rows: pl.DataFrame, named: list[str], table: Table, settings: Prepare) -> _Chosen:
    """Parts fields with several values, and tells texts from other columns.

    Args:
        rows: the columns as they came, and the identifier.
        named: the texts that the caller named, or else those whose name says so.
    """
    chosen = _Chosen(rows)
    told, given = (
        _told(settings, [name for name in rows.columns if name != _KEY], table),
        settings.text_cols is not None,
    )
    some = {name: _some(rows[name]) for name in rows.columns if name != _KEY and _can_be_text(table.schema[name])}
    # The title is the first of the usual names under which there is anything.
    filled = [name for name in named if len(some[name])]
    title = columns.guess(filled, columns.TITLE)
    if title in told and told[title] is not None:
        raise DataError(
            f"{table.where}, column {title!r}: a title is one value, and was to be split",
            "Leave it out of --multi-cols.",
        )
    texts = [name for name in filled if name == title or given or normal(name) not in _TITLES]
    for name, lines in some.items():
        found = multi_values.FieldFormat(told.get(name))
        if name not in told and settings.split_fields and name != title and normal(name) not in _TITLES:
            found = _how(name, lines, rows[name])
        if found.how is not None:
            chosen.split[name] = found.how
            if found.values:
                chosen.multi[name] = found.how
        kind = _not_text(name, lines, rows, title, found)
        if found.doubt and kind not in _SAYS_NOTHING:
            chosen.doubts[name] = f"{found.doubt}; if these are several values: --multi-cols '{name}=SIGN'"
        if name in texts and given:
            continue
        reason = "not named in --text-cols" if given and len(lines) else kind
        if name in texts and (reason in _NEVER or (reason == "identifiers" and name != title)):
            texts.remove(name)
        elif name not in texts and not reason:
            texts.append(name)
        if name not in texts and reason != "empty":
            chosen.not_texts[name] = reason
    chosen.empty = [name.split(":")[0] for name in named if name not in filled]
    chosen.texts = texts
    taken = {"item_id", "title", *(name.split(":")[0] for name in texts), *chosen.empty}
    for name in (name for name in rows.columns if name != _KEY):
        short, dtype = name.split(":")[0], table.schema[name]
        if name not in texts and short not in taken and (not dtype.is_nested() or name in chosen.multi):
            chosen.others.append(name)
            taken.add(short)
    read = [name for name in some if name in texts or name in chosen.multi]
    chosen.frame = rows.with_columns(_whole(rows[name], chosen.split.get(name), name in chosen.multi) for name in read)
    return chosen


def _some(values: pl.Series) -> pl.Series:
    """Filled values of a column as text, from the whole of it; those of a text column as they are."""
    if values.dtype == pl.String:
        return multi_values.spread(values.filter(values.str.contains(r"\S")))
    return _lines(multi_values.spread(values.drop_nulls())).drop_nulls()


def _lines(values: pl.Series) -> pl.Series:
    return values.to_frame().select(readable(pl.col(values.name), values.dtype)).to_series()


def _whole(values: pl.Series, how: str | None, multi: bool) -> pl.Series:
    """A column as it is kept: one line an item, `; ` between the values of one that has several."""
    if values.dtype.is_nested():
        inner: Any = values.dtype.inner  # type: ignore[attr-defined]
        if multi and not inner.is_nested():
            values = values.cast(pl.List(pl.String)).list.eval(pl.element().str.replace_all("; ", ", "))
        return _lines(values)
    return _lines(values) if how is None else multi_values.joined(values.cast(pl.String), how)


def _not_text(
    name: str, lines: pl.Series, rows: pl.DataFrame, title: str | None, found: multi_values.FieldFormat
) -> str:
    """Why a column is no text; empty if it is."""
    if title is not None and name != title and normal(name) in _TITLES and rows[name].dtype == rows[title].dtype:
        same = (rows[name] == rows[title]).mean()
        if isinstance(same, float) and same > 0.9:
            return "as the title"
    multi = found.how is not None and found.values
    nested = rows[name].dtype.is_nested()
    if multi and found.how is not None:
        lines = (multi_values.stored_values(lines) if nested else multi_values.parts(lines, found.how)).explode()
    return not_text(name, lines, several=multi or normal(name) in multi_values.LIST_NAMES)


_TITLES = {columns.normal(name) for name in columns.TITLE}


def _told(settings: Prepare, names: list[str], table: Table) -> dict[str, str | None]:
    """How columns are written, as the caller said, by their names in the file."""
    return {
        columns.require(names, name, "values", table.where, "--multi-cols"): how
        for name, how in asked(settings.multi_cols or {}).items()
    }


def _how(name: str, line: pl.Series, values: pl.Series) -> multi_values.FieldFormat:
    """How a column holds several values; a real list does, unless it is one of numbers or sentences."""
    if not values.dtype.is_nested():
        text = values.dtype in (pl.String, pl.Categorical, pl.Enum)
        return multi_values.how_written(name, line) if text else multi_values.FieldFormat(None)
    return multi_values.FieldFormat(LIST, values=multi_values.are_values(name, multi_values.stored_values(line)))


def _explained(values: pl.Series, how: str) -> str:
    """How a field was split, for the report."""
    way = {LIST: "read as lists", BLANK: "split at blanks"}.get(how, f"split at {how!r}")
    split = multi_values.stored_values(values)
    many, different = int((split.list.len() > 1).sum()), split.explode().drop_nulls().n_unique()
    return f"{way}: {many:,} items have several, {different:,} different values"


def _named_texts(names: list[str], key: str, table: Table, settings: Prepare) -> list[str]:
    """The columns that hold text by what the caller said, or by their names; the title first, never an identifier."""
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
    wanted = {columns.normal(name): place for place, name in enumerate((*columns.TITLE, *columns.TEXT))}
    matching = [name for name in rest if columns.normal(name) in wanted]
    return sorted(matching, key=lambda name: wanted[columns.normal(name)])


def _can_be_text(dtype: pl.DataType) -> bool:
    inner: Any = dtype
    while isinstance(inner, pl.List | pl.Array):
        inner = inner.inner
    return not isinstance(inner, pl.Struct) and inner not in NOT_PLAIN


def _usable(dtype: pl.DataType) -> bool:
    return _can_be_text(dtype) if dtype.is_nested() else dtype not in NOT_PLAIN


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
