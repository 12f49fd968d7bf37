"""What the first lines of a text look like: a header, data, ratings, or sequences.

A file without a header must not lose its first row as one, and `user item rating time` between blanks must not be read
as the sequences of S3-Rec, where a line is a user and all of their items.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llmd4rec.data.ingest import columns
from llmd4rec.errors import DataError

_START = 1 << 16
#: A day, with or without a time of day.
_DAY = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ,].*)?")
#: As `Tue Apr 03 18:00:09 +0000 2012`.
_WEEKDAY = re.compile(r"[A-Z][a-z]{2},? .*\d{2}:\d{2}:\d{2}.*")
_FRACTION = re.compile(r"-\d+|-?\d+\.\d+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)
#: 1990 and 2100 in seconds.
_FIRST, _LAST = 631_152_000, 4_102_444_800
#: Ratings are small numbers of few kinds.
_MOST_RATING, _MOST_RATINGS = 100, 101


def is_moment(text: str) -> bool:
    """Whether a text is a day, or a time of 1990 to 2100 in seconds or a smaller unit."""
    text = text.strip()
    if _DAY.fullmatch(text) or _WEEKDAY.fullmatch(text):
        return True
    return bool(_NUMBER.fullmatch(text)) and any(_FIRST <= float(text) / unit <= _LAST for unit in (1, 1e3, 1e6, 1e9))


def is_header(fields: Sequence[str]) -> bool:
    """Whether the fields are names, a user's and an item's in use among them."""
    return columns.guess(fields, columns.USER) is not None and columns.guess(fields, columns.ITEM) is not None


def suggestion(fields: Sequence[str]) -> str:
    """Names for the columns of a first row of data, as the option takes them."""
    times = [at for at, text in enumerate(fields) if is_moment(text)]
    if times == [len(fields) - 1] and len(fields) in (3, 4):
        return "user,item,time" if len(fields) == 3 else "user,item,rating,time"
    if not times:
        return "user,item,time"
    names = iter(("user", "item"))
    return ",".join("time" if at == times[0] else "" if at in times else next(names, "") for at in range(len(fields)))


def refuse_data_as_header(fields: Sequence[str], where: str, option: str) -> None:
    """Raises where the first line holds a time, a fraction or a negative number, which no column is called."""
    value = next((text for text in fields if is_moment(text)), None)
    kind = "a time" if value is not None else "a number"
    value = value or next((text for text in fields if _FRACTION.fullmatch(text.strip())), None)
    if value is None or is_header(fields):
        return
    raise DataError(
        f"{where}: its first line looks like data, not like names of columns ({value!r} in it is {kind})",
        f"Name its {len(fields)} columns with {option}columns, for example {option}columns {suggestion(fields)} (leave "
        "a name blank where a column is not used), or add a header line.",
    )


def refuse_header_as_data(fields: Sequence[str], where: str, option: str) -> None:
    """Raises where a file of which the columns were named has a header all the same."""
    if is_header(fields) and not any(is_moment(text) or _NUMBER.fullmatch(text) for text in fields):
        raise DataError(
            f"{where}: its first line is a header ({columns.listing(fields, 8)}), and {option}columns is for files "
            "without one",
            f"Leave {option}columns out, and name columns with options such as --user-col; or remove that line.",
        )


# ---- between blanks -----------------------------------------------------------------------------------------------
def is_rows(lines: Sequence[str]) -> bool:
    """Whether lines of words are rows of a table, not a user and all of their items each.

    They are under a header, or where all have the same number of words and the first word comes back or the last is a
    time.
    """
    words = [line.split() for line in lines]
    if words and is_header(words[0]):
        return True
    if len(words) < 3 or len({len(each) for each in words}) != 1 or len(words[0]) < 2:
        return False
    body = words[1:]
    if len({each[0] for each in body}) < len(body):
        return True
    return len(words[0]) > 2 and all(is_moment(each[-1]) for each in body)


def columns_of_blanks(file: Path, where: str, option: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The columns of a text between blanks, None where its first line names them, and what is to be said.

    Raises:
        DataError: they cannot be told.
    """
    with file.open("rb") as start:
        text = start.read(_START).decode("utf-8-sig", errors="replace")
    lines = [line.split() for line in text.splitlines()]
    words = [line for line in (lines[:-1] if len(text) >= _START else lines) if line]
    head, body = words[0], words[1:]
    if is_header(head):
        return None, ()
    named = not any(_NUMBER.fullmatch(each) or is_moment(each) for each in head)
    if named and body and all(_NUMBER.fullmatch(each) for each in body[0]):
        return None, ()
    timed = all(is_moment(line[-1]) for line in words) and not any(is_moment(each) for each in head[:-1])
    if timed and len(head) == 3:
        names: tuple[str, ...] = ("user", "item", "time")
    elif timed and len(head) == 4 and _are_ratings([line[2] for line in words if len(line) > 2]):
        names = ("user", "item", "rating", "time")
    else:
        raise DataError(
            f"{where}: its lines look like rows of {len(head)} columns between blanks, not like the sequences of "
            "S3-Rec (user item item ...), and the columns have no names",
            f"Name them with {option}columns, for example {option}columns user,item,rating,time. If a line is a user "
            "and all of their items, give the file the suffix .s3rec.",
        )
    note = f"{where} has no header: its columns were taken as {' '.join(names)}; if that is wrong, use {option}columns"
    return names, (note,)


def _are_ratings(values: Sequence[str]) -> bool:
    if not all(_NUMBER.fullmatch(value) for value in values):
        return False
    return len(set(values)) <= _MOST_RATINGS and all(-1 <= float(value) <= _MOST_RATING for value in values)
