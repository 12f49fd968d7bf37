"""Histories in a row: a list of items or of events beside the user, as in RecBole, OTTO, Amazon-M2 and NVTabular.

They become one row per interaction, oldest first. Where times stand beside the items, these say which end is the older.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from llmd4rec.data.ingest import columns
from llmd4rec.data.ingest.sequence_columns import (
    SequenceColumns,
    are_bracketed,
    find_columns,
    first_values,
    is_events,
    item_name,
)
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.ingest.table import UNREADABLE, Table
from llmd4rec.errors import DataError

_SEPARATORS = (",", ";", "|")
_TOKEN = r"""'[^']*'|"[^"]*"|[^\s,'"\[\]()]+"""
_LINE, _LENGTH = "\x00line", "\x00length"
#: Rows are taken to continue one another where more than this share of neighbours do.
_CONTINUING = 0.5


def unrolled(table: Table, settings: Prepare) -> tuple[Table, Prepare]:
    """The table with a row per interaction, and the settings that name its columns; both as they are if it has these.

    Raises:
        DataError: lists cannot be taken apart, do not match their times, or overlap from row to row.
    """
    found = find_columns(table, settings)
    if found is None:
        return table, settings
    table.refuse_unfit((found.items, found.target, found.times, found.user))
    schema = table.schema
    lazy = table.lazy.with_row_index(_LINE, offset=1)
    warnings = list(table.warnings)
    item = item_name(found.items, found.target)
    events, inner_time = is_events(schema[found.items]), None
    if events:
        item, inner_time = _events(schema[found.items], found.items, table)
        time = inner_time or columns.guess([n for n in schema if n != found.items], columns.TIME)
    else:
        lazy = lazy.with_columns(_as_list(found.items, table).alias(found.items))
        time = found.times or columns.guess([n for n in schema if n != found.items], columns.TIME)
        if settings.time_col is not None and found.times is None:
            time = columns.require(list(schema), settings.time_col, "time", table.where, "--time-col")
        if found.times is not None:
            lazy = lazy.with_columns(_as_list(found.times, table).alias(found.times))
    if found.target is not None:
        lazy = _with_target(lazy, found, table)
    frame = _looked_at(lazy, found, table)
    if table.rows is not None and frame.height != table.rows:
        raise DataError(f"{table.where}: {frame.height:,} rows were read where {table.rows:,} were counted", "")
    user = found.user or "user_id"
    if found.user is None:
        identifier = next((n for n in schema if n not in found.of_items and columns.normal(n).endswith("id")), None)
        if identifier is not None:
            raise DataError(
                f"{table.where} has no column that looks like the user, but {identifier!r} may be one",
                f"Name it with --user-col {identifier}.",
            )
        lazy = lazy.with_columns(pl.format("row {}", _LINE).alias(user))
        warnings.append(f"{table.where} names no user: each row is the history of a user of its own")
    keep, said = _once(frame, found, table)
    warnings += said
    if keep is not None:
        lazy = lazy.filter(pl.col(_LINE).is_in(keep.implode()))
        frame = frame.filter(pl.col(_LINE).is_in(keep.implode()))
    lists = [found.items] + ([found.times] if found.times is not None else [])
    timed = found.times is not None or (events and inner_time is not None)
    if timed and _newest_first(frame):
        lazy = lazy.with_columns(pl.col(name).list.reverse() for name in lists)
        warnings.append(f"{table.where}: the lists of column {found.items!r} begin with the newest; they were turned")
    elif not timed:
        warnings.append(f"{table.where}: the lists of column {found.items!r} were taken as histories, oldest first")
    repeated = frame["user"].n_unique() < frame.height
    taken = {*lists, found.target, found.last_time, user, _LINE}
    plain = [name for name, dtype in schema.items() if not dtype.is_nested() and name not in {*taken, item, "position"}]
    lazy = lazy.with_columns(pl.int_ranges(pl.col(found.items).list.len()).alias("position"))
    rows = lazy.select(user, *lists, "position", *plain).explode([*lists, "position"])
    if events:
        rows = _unnested(rows, found.items, plain)
    else:
        rows = rows.rename({found.items: item} if item not in {user, *plain} else {})
    order = settings.order_by
    if timed or time is None:
        rows = rows.drop("position", strict=False)
    elif order == "auto":
        order = "time" if repeated else "position"
    named = replace(
        settings,
        user_col=user,
        item_col=item,
        time_col=time,
        position_col=None,
        order_by=order if settings.split != "temporal" else settings.order_by,
    )
    about = {**table.about, "histories_in_rows": frame.height, "lists_of_items": found.items}
    whole = replace(
        table, lazy=rows, where=f"{table.where} (lists as rows)", about=about, warnings=tuple(warnings), rows=None
    )
    return whole, named


def _as_list(name: str, table: Table) -> pl.Expr:
    """The column as lists of strings.

    Raises:
        DataError: it cannot be taken apart in one way.
    """
    dtype = table.schema[name]
    column = pl.col(name)
    if isinstance(dtype, pl.Array):
        column, dtype = column.arr.to_list(), pl.List(dtype.inner)
    if isinstance(dtype, pl.List):
        inner = dtype.inner
        if isinstance(inner, pl.DataType) and (inner.is_nested() or inner in (pl.Binary, pl.Object)):
            what = f"{table.where}, column {name!r}: lists of {inner} are no histories"
            raise DataError(what, "Name another column.")
        return column
    values = first_values(name, table).str.strip_chars()
    values = values.filter(values != "")
    if not len(values) or not are_bracketed(values):
        return _cut(name, values, table)
    # Whatever is between the items must be commas and blanks, in every row.
    rest = column.str.replace_all(_TOKEN, "").str.replace_all(r"[\[\](),\s]", "")
    several = column.str.contains(r"""[^\s,'"\[(]\s+[^\s,'"\])]""") & column.str.contains(",")
    cut_short = column.str.contains(r"(^|[\s,\[])\.\.\.([\s,\]]|$)")
    wrong = (rest != "") | several | cut_short | column.str.contains(r"\\")
    _refuse_first(name, wrong, table, "a list that cannot be taken apart")
    return column.str.extract_all(_TOKEN).list.eval(pl.element().str.strip_chars("\"'"))


def _cut(name: str, values: pl.Series, table: Table) -> pl.Expr:
    """Text with separators: one kind of them, blanks where there is no other."""
    if name.split(":")[-1] in ("token_seq", "float_seq"):
        separator = " "
    else:
        used = [mark for mark in _SEPARATORS if values.str.contains(mark, literal=True).any()]
        if len(used) > 1:
            raise DataError(
                f"{table.where}, column {name!r}: items are separated by {used[0]!r} and by {used[1]!r}",
                "Use one separator, or write lists such as ['a', 'b'].",
            )
        separator = used[0] if used else " "
    text = pl.col(name).str.strip_chars()
    if separator == " ":
        text = text.str.replace_all(r"\s+", " ")
    parts = text.str.split(separator).list.eval(pl.element().str.strip_chars())
    return pl.when(text != "").then(parts)


def _refuse_first(name: str, wrong: pl.Expr, table: Table, what: str) -> None:
    lazy = table.lazy.with_row_index(_LINE, offset=1).filter(wrong.fill_null(False))
    first = _collected(lazy.select(_LINE, name).head(1), table)
    if first.height:
        value = str(first[name][0])
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise DataError(
            f"{table.where}, row {first[_LINE][0]}, column {name!r}: {what} ({shown})",
            "Write lists such as ['a', 'b'], or one interaction a row; name another column with --item-col.",
        )


def _events(dtype: pl.DataType, name: str, table: Table) -> tuple[str, str | None]:
    """A list of objects: the names of the item and the time in them."""
    fields = [each.name for each in dtype.inner.fields]  # type: ignore[attr-defined]
    item = columns.guess(fields, (*columns.ITEM, *columns.ITEM_OF_EVENT))
    if item is None:
        raise DataError(
            f"{table.where}, column {name!r}: its objects have no field that looks like the item; they have: "
            f"{columns.listing(fields)}",
            "Write one interaction a row.",
        )
    return item, columns.guess([each for each in fields if each != item], columns.TIME)


def _unnested(rows: pl.LazyFrame, name: str, plain: list[str]) -> pl.LazyFrame:
    """The fields of the objects as columns, in place of columns of these names."""
    schema = rows.collect_schema()
    fields = [each.name for each in schema[name].fields]  # type: ignore[attr-defined]
    return rows.drop([each for each in (*plain, "position") if each in fields]).unnest(name)


def _with_target(lazy: pl.LazyFrame, found: SequenceColumns, table: Table) -> pl.LazyFrame:
    """The item that follows at the end of each list, and its time at the end of the times."""
    kind = table.schema[found.items]
    text = pl.String if kind == pl.String else kind.inner  # type: ignore[attr-defined]
    lists = pl.col(found.items).fill_null(pl.lit([], dtype=pl.List(text)))
    lazy = lazy.with_columns(lists.list.concat(pl.col(found.target or "").cast(text)).alias(found.items))
    if found.times is None:
        return lazy
    if found.last_time is None:
        raise DataError(
            f"{table.where}: column {found.times!r} has the times of {found.items!r}, and none says when "
            f"{found.target!r} was",
            "Give its time in a column such as timestamp, or append it to the lists.",
        )
    inner = table.schema[found.times]
    text = pl.String if inner == pl.String else inner.inner  # type: ignore[attr-defined]
    return lazy.with_columns(pl.col(found.times).list.concat(pl.col(found.last_time).cast(text)).alias(found.times))


def _looked_at(lazy: pl.LazyFrame, found: SequenceColumns, table: Table) -> pl.DataFrame:
    """Line, user, the items as one text, and whether the times rise and fall; lists and times are as long.

    Raises:
        DataError: they are not.
    """
    items = pl.col(found.items)
    length = items.list.len()
    user = pl.lit(None, pl.String) if found.user is None else pl.col(found.user).cast(pl.String)
    times: list[pl.Expr] = []
    if is_events(table.schema[found.items]):
        fields = [each.name for each in table.schema[found.items].inner.fields]  # type: ignore[attr-defined]
        item = columns.guess(fields, (*columns.ITEM, *columns.ITEM_OF_EVENT))
        time = columns.guess([each for each in fields if each != item], columns.TIME)
        joined = items.list.eval(pl.element().struct.field(item or "").cast(pl.String))
        moments = items.list.eval(pl.element().struct.field(time)) if time is not None else None
    else:
        joined = items.cast(pl.List(pl.String))
        moments = None if found.times is None else pl.col(found.times)
        if moments is not None:
            times.append((moments.list.len() != length).alias("uneven"))
    if moments is not None:
        steps = moments.list.eval(pl.element().cast(pl.Float64, strict=False).diff().drop_nulls())
        times += [(steps.list.min() < 0).alias("falls"), (steps.list.max() > 0).alias("rises")]
    text = pl.when(length > 0).then(joined.list.join("\x1f", ignore_nulls=True) + "\x1f").alias("items")
    frame = _collected(lazy.select(_LINE, user.alias("user"), text, length.alias(_LENGTH), *times), table)
    if "uneven" in frame.columns and frame["uneven"].any():
        row = frame.filter("uneven")[_LINE][0]
        raise DataError(
            f"{table.where}, row {row}: column {found.items!r} and column {found.times!r} have lists of two lengths",
            "Give each item a time.",
        )
    return frame if found.user is not None else frame.with_columns(user=pl.col(_LINE).cast(pl.String))


def _newest_first(frame: pl.DataFrame) -> bool:
    """Whether times fall from item to item, in every row in which they change."""
    if "falls" not in frame.columns:
        return False
    return bool(frame["falls"].any()) and not frame["rises"].any()


def _once(frame: pl.DataFrame, found: SequenceColumns, table: Table) -> tuple[pl.Series | None, list[str]]:
    """Which lines to keep so that no interaction comes twice; None: all.

    Files made for training hold a row for each beginning of a history. Of a user's rows that are all beginnings of the
    longest, that one says everything.

    Raises:
        DataError: rows overlap in another way.
    """
    filled = frame.drop_nulls(["items", "user"])
    remedy = "Give one row per user with the whole history, for example the longest of the rows that belong together."
    if filled["user"].n_unique() == filled.height:
        before, after = filled["items"].shift(1), filled["items"]
        pairs = pl.DataFrame({"before": before, "after": after}).drop_nulls()
        on = pairs.select(
            (
                pl.col("after").str.starts_with(pl.col("before")) | pl.col("before").str.starts_with(pl.col("after"))
            ).sum()
        ).item()
        if pairs.height > 1 and on > _CONTINUING * pairs.height:
            raise DataError(
                f"{table.where}: {on:,} of {pairs.height:,} rows of column {found.items!r} continue the row before or "
                "are its beginning, under another user: interactions would be counted again and again",
                remedy,
            )
        return None, []
    longest = filled.sort(pl.col("items").str.len_bytes(), descending=True, maintain_order=True).unique(
        "user", keep="first", maintain_order=True
    )
    both = filled.join(longest.select("user", pl.col("items").alias("longest")), on="user")
    beginnings = both.filter(pl.col("longest").str.starts_with(pl.col("items"))).height
    if beginnings == both.height:
        gone = filled.height - longest.height
        note = f"{table.where}: {gone:,} rows that are the beginning of another row of the same user were left out"
        return longest[_LINE].sort(), [note]
    own = filled.with_columns(
        before=pl.col("items").shift(1).over("user"),
    ).drop_nulls("before")
    slides = own.select(
        (
            pl.col("items").str.starts_with(pl.col("before"))
            | pl.col("before").str.starts_with(pl.col("items"))
            | pl.col("items").str.starts_with(pl.col("before").str.replace("^[^\x1f]*\x1f", "")) & (pl.col(_LENGTH) > 1)
        ).sum()
    ).item()
    if slides > _CONTINUING * own.height:
        raise DataError(
            f"{table.where}: a user has several rows in column {found.items!r} that overlap ({slides:,} rows continue "
            "the one before): interactions would be counted again and again",
            remedy,
        )
    note = f"{table.where}: users have several rows in column {found.items!r}; they were joined in their order"
    return None, [note]


def _collected(lazy: pl.LazyFrame, table: Table) -> pl.DataFrame:
    try:
        return lazy.collect(engine="streaming")
    except UNREADABLE as error:
        raise table.unreadable(error) from error
