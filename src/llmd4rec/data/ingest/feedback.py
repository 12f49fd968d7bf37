"""Columns that tell a choice from a dislike or from an impression, while every row counts as a choice."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from llmd4rec.data.ingest.columns import normal, words
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.row_filter import condition_text
from llmd4rec.data.ingest.table import HEAD, Table

_RATINGS = (
    *("rating", "ratings", "userrating", "starrating", "reviewrating", "reviewscore", "overall", "stars", "score"),
    *("rate", "grade", "rank", "reward", "watchedpct", "preference"),
)
_CLICKS = (
    *("click", "clicks", "clicked", "isclick", "isclicked", "clickflag", "label", "like", "liked", "islike", "follow"),
    *("share", "isfollow", "purchase", "purchased", "ispurchase", "bought", "buy", "converted", "conversion"),
    *("feedback", "ispositive", "positive", "accepted", "skipped", "notskipped", "islisten", "longview", "hate"),
)
_EVENTS = (
    *("event", "eventtype", "eventname", "action", "actiontype", "type", "behavior", "behaviortype", "behaviour"),
    *("behaviourtype", "interaction", "interactiontype", "activity", "activitytype", "verb", "transactiontype"),
)
_TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Boolean)
_YES = ("1", "1.0", "true", "yes", "y", "t")
_EVENTS_AT_MOST = 50
_SHOWN = 5


def warn_of_unfiltered(table: Table, columns: Sequence[str], report: Report) -> None:
    """Warns of columns that look like a rating, a click or a kind of event and have several values.

    Args:
        table: to look into.
        columns: those that nothing is read from.
        report: gets the warning.
    """
    named = [name for name in columns if (_is_rating(name) or normal(name) in (*_CLICKS, *_EVENTS))]
    named = [name for name in named if name not in table.unfit]
    named = [name for name in named if table.schema[name] in _TEXTS or table.schema[name].is_numeric()]
    if not named:
        return
    head = table.head(named)
    found = [(name, _all_values(head[name], table)) for name in named]
    told = [(name, values) for name, values in found if len(values) > 1 and _fits(name, values)]
    if not told:
        return
    shown = "; ".join(f"{name!r} ({_listed(values)})" for name, values in told)
    name, values = told[0]
    chosen = next((value for value in values if value.lower() in _YES), values[-1])
    bare = name.split(":")[0]
    example = f"{bare} = {chosen}" if normal(name) in _CLICKS else condition_text(bare, "=", values[0])
    example = f"{bare} >= {values[len(values) // 2]}" if _is_rating(name) else example
    report.warn(
        f"every row counts as a choice of its item, whatever it holds in {shown}; "
        f'to keep some rows only, say so, as in --where "{example}"'
    )


def _all_values(head: pl.Series, table: Table) -> list[str]:
    """The distinct values of a column's first rows; where these are all one, another from further down if there is."""
    values, first = _values(head), head.drop_nulls().head(1)
    if len(values) != 1 or len(head) < HEAD:
        return values
    other = table.first(head.name, pl.col(head.name) != first[0])
    return values if other is None else _values(pl.concat([first, pl.Series(head.name, [other[1]], dtype=head.dtype)]))


def _is_rating(name: str) -> bool:
    """By the whole name, or its last word, as in `Book-Rating`."""
    return normal(name) in _RATINGS or words(name)[-1:] in (["rating"], ["ratings"], ["stars"], ["score"])


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values[:_SHOWN]) + (", …" if len(values) > _SHOWN else "")


def _values(column: pl.Series) -> list[str]:
    """The distinct values, numbers in their order, else the most frequent first."""
    text = column.drop_nulls().cast(pl.String).str.strip_chars()
    text = text.filter(text != "")
    numbers = text.cast(pl.Float64, strict=False)
    if len(text) and not numbers.null_count():
        return text.to_frame("t").group_by(numbers.alias("n")).agg(pl.col("t").first()).sort("n")["t"].to_list()
    return text.value_counts().sort("count", text.name, descending=[True, False])[text.name].to_list()


def _fits(name: str, values: Sequence[str]) -> bool:
    """Whether the values are what the name promises: numbers, two sides, or few kinds."""
    if _is_rating(name):
        return all(value.replace(".", "", 1).lstrip("-").isdigit() for value in values)
    return len(values) <= _EVENTS_AT_MOST
