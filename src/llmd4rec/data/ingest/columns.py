"""Which column is the user, the item, the time: guessed from the names in use, or named by the caller."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from llmd4rec.errors import DataError

#: Names in use, most telling first. Compared without case, spaces and punctuation: `userId` is `user_id`.
USER = (
    *("user_id", "user", "uid", "reviewer_id", "customer_id", "customer", "visitor_id", "member_id"),
    *("account_id", "profile_id", "session_id", "session", "sid", "username"),
)
#: `parent_asin` before `asin`: where a review has both, the catalogue is keyed by the former.
ITEM = (
    *("item_id", "item", "iid", "parent_asin", "asin", "movie_id", "movie", "business_id", "product_id"),
    *("product", "article_id", "track_id", "song_id", "book_id", "isbn", "game_id", "app_id", "news_id"),
    *("video_id", "content_id", "sku"),
)
#: In a list of events.
ITEM_OF_EVENT = ("aid", "id")
#: Milliseconds first: where a log has both, they tell interactions of one second apart.
TIME = (
    *("timestamp_ms", "timestamp", "time", "ts", "unix_review_time", "unixtime", "datetime", "date"),
    *("event_time", "created_at", "review_time", "review_date", "rating_timestamp", "t_dat"),
)
POSITION = ("position", "pos")
TITLE = (
    *("title", "name", "item_title", "item_name", "product_title", "product_name", "prod_name"),
    *("movie_title", "book_title", "track_name", "app_name", "business_name"),
)
TEXT = (
    *("category", "categories", "main_category", "main_cat", "genre", "genres", "class", "tags"),
    *("brand", "store", "manufacturer", "author", "authors", "artist", "publisher", "developer"),
    *("description", "product_description", "detail_desc"),
)


def normal(name: str) -> str:
    """A column's name without case, punctuation and a RecBole type (`user_id:token`)."""
    return re.sub(r"[\W_]+", "", name.split(":")[0].lower())


def words(name: str) -> list[str]:
    """The words of a column's name in small letters: `clickTimestamp_ms` has three."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.split(":")[0])
    return re.sub(r"[\W_]+", " ", apart).lower().split()


def guess(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column whose name comes first in `names`, if any."""
    known: dict[str, str] = {}
    for column in columns:
        known.setdefault(normal(column), column)
    return next((known[normal(name)] for name in names if normal(name) in known), None)


def require(columns: Sequence[str], named: str, what: str, where: str, option: str) -> str:
    """The column that the caller named for `what`.

    Raises:
        DataError: there is none; says which there are and which is nearest.
    """
    for column in columns:
        if column == named or column.split(":")[0] == named:
            return column
    nearest = difflib.get_close_matches(named, columns, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    raise DataError(
        f"{where} has no column {named!r} for the {what}; it has: {listing(columns)}",
        f"{hint}Give one of its columns with {option}.",
    )


def choose(columns: Sequence[str], named: str | None, names: Sequence[str], what: str, where: str, option: str) -> str:
    """The column for `what`: the one named by the caller, else the one guessed from `names`.

    Raises:
        DataError: the named column is missing, or none can be guessed.
    """
    if named is not None:
        return require(columns, named, what, where, option)
    found = guess(columns, names)
    if found is not None:
        return found
    wanted = [normal(name) for name in names]
    near = next((c for c in columns if difflib.get_close_matches(normal(c), wanted, n=1, cutoff=0.75)), None)
    hint = f"Nearest is {near!r}. " if near else ""
    if any(re.fullmatch(r"-?\d+(\.\d+)?", column) for column in columns):
        hint = "Its first line looks like data: add a header line, or name its columns with --columns user,item,time. "
    raise DataError(
        f"{where} has no column that looks like the {what}; it has: {listing(columns)}",
        f"{hint}Name the column with {option}.",
    )


def listing(columns: Sequence[str], limit: int = 30) -> str:
    """The names for an error message, cut where there are very many."""
    shown = ", ".join(column if len(column) <= 60 else column[:57] + "..." for column in columns[:limit])
    return (shown or "no columns") + (f", … ({len(columns)} in all)" if len(columns) > limit else "")
