"""Forty-eight faults seeded into good files, one at a time: each that leaves a trace is refused or said.

`python tests/data/test_seeded_faults.py` prints the table of all of them: what was said, and how many were silent.
"""

from __future__ import annotations

import functools
import gzip
import json
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import LLMD4RecError

USERS, LENGTH, ITEMS = 40, 8, 24
HEAD = "user_id,item_id,timestamp,rating"
START = 1_600_000_000
#: Faults that leave nothing behind by which they could be told from good data, and why.
NO_TRACE = {
    "mixed line ends": "both ends are read alike, so that no row is lost or changed",
    "times of another zone": "all moments are moved alike; their order, which is all that counts, stays",
    "rows in reverse, without times": "the rows are all there is to tell the order; that they tell it is said",
    "titles moved down by one row": "every title is one of the catalogue's own, only of another item",
}


@dataclass
class Files:
    """A good log in the order of its times, and its catalogue, as lines; a fault changes them."""

    log: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    log_name: str = "log.csv"
    #: In place of the lines, if a fault makes bytes.
    log_bytes: bytes | None = None
    items_bytes: bytes | None = None

    def write(self, folder: Path) -> tuple[Path, Path]:
        log, items = folder / self.log_name, folder / "items.csv"
        log.write_bytes("\n".join([*self.log, ""]).encode() if self.log_bytes is None else self.log_bytes)
        items.write_bytes("\n".join([*self.items, ""]).encode() if self.items_bytes is None else self.items_bytes)
        return log, items


def good() -> Files:
    rng = random.Random(1)
    rows = [
        (START + 86_400 * rng.randrange(300) + rng.randrange(86_400), f"u{user:03}", f"{(user + step * 5) % ITEMS:04}")
        for user in range(USERS)
        for step in range(LENGTH)
    ]
    log = [f"{user},{item},{moment},{3 + moment % 3}" for moment, user, item in sorted(rows)]
    words = ("red", "blue", "green", "small", "large", "old")
    items = [
        f'{item:04},"{words[item % 6]} lamp, {words[item // 6]}",{"Lights" if item % 2 else "Home"}'
        for item in range(ITEMS)
    ]
    return Files([HEAD, *log], ["item_id,title,category", *items])


Fault = Callable[[Files], None]
FAULTS: dict[str, tuple[str, Fault]] = {}


def fault(name: str, said: str) -> Callable[[Fault], Fault]:
    """Names a fault and a pattern of what must be said of it."""

    def keep(function: Fault) -> Fault:
        FAULTS[name] = (said, function)
        return function

    return keep


def fields(files: Files, at: int) -> list[str]:
    return files.log[at].split(",")


def change(files: Files, rows: range, make: Callable[[list[str]], list[str]]) -> None:
    for at in rows:
        files.log[at] = ",".join(make(fields(files, at)))


HALF = range(USERS * LENGTH // 2, USERS * LENGTH + 1)


# ---- columns and rows ------------------------------------------------------------------------------------------------
@fault("names of two columns swapped", "no item of the interactions was found")
def _(files: Files) -> None:
    files.log[0] = "item_id,user_id,timestamp,rating"


@fault("two columns swapped in some rows", r"without_a_row|have no row|without a row")
def _(files: Files) -> None:
    change(files, range(100, 120), lambda row: [row[1], row[0], *row[2:]])


@fault("a row that lost its first field", r"row 100")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: row[1:])


@fault("a row with a field too many", r"row 100")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: [*row, "x"])


@fault("a second header in the middle", r"row 100|'user_id'")
def _(files: Files) -> None:
    files.log.insert(100, HEAD)


@fault("a second header in the middle, without times", r"user_id|header again")
def _(files: Files) -> None:
    files.log = [",".join(row.split(",")[:2]) for row in files.log]
    files.log.insert(100, files.log[0])


@fault("no header", r"--columns|no (user|item) column|header")
def _(files: Files) -> None:
    del files.log[0]


@fault("a column named twice", r"two columns|twice")
def _(files: Files) -> None:
    files.log[0] = "user_id,item_id,timestamp,user_id"


@fault("a comment above the header", r"no (user|item) column|fields where|header|row 1")
def _(files: Files) -> None:
    files.log.insert(0, "# exported 2024-01-31")


@fault("a line of totals at the end", r"without user or item|row 321")
def _(files: Files) -> None:
    files.log.append("Total,,320,")


@fault("blank lines in the middle", r"blank")
def _(files: Files) -> None:
    files.log[100:100] = ["", ""]


@fault("the file ends in the middle of a row", r"row 320|last row|without user or item")
def _(files: Files) -> None:
    files.log[-1] = files.log[-1][:6]


@fault("a block of rows twice", r"exact duplicates")
def _(files: Files) -> None:
    files.log[150:150] = files.log[100:150]


@fault("another separator from the middle on", r"row 160|separator|fields")
def _(files: Files) -> None:
    for at in HALF:
        files.log[at] = files.log[at].replace(",", ";")


@fault("thousands separators without quotes", r"fields|row")
def _(files: Files) -> None:
    change(files, range(100, 110), lambda row: [*row[:2], f"{int(row[2]):,}", row[3]])


# ---- marks, signs, encodings ----------------------------------------------------------------------------------------
@fault("a quotation mark that is never closed", r"quot|row 100")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: [row[0], '"' + row[1], *row[2:]])


@fault("a quotation mark that was never opened", r"quot|row 100|without a row|have no row")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: [row[0], row[1] + '"', *row[2:]])


@fault("a row in another encoding", r"encoding|UTF-8|utf-8")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: ["müller", *row[1:]])
    text = "\n".join([*files.log, ""])
    files.log_bytes = text.encode("latin-1")


@fault("a byte order mark in the middle", r"\\ufeff|byte order mark|u?feff|row 100|invisible")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: ["\ufeff" + row[0], *row[1:]])


@fault("zero bytes", r"binary|zero byte|NUL")
def _(files: Files) -> None:
    files.log_bytes = "\n".join([*files.log, ""]).encode().replace(b"u005", b"u\0\x005", 1)


@fault("a compressed file that was cut", r"cut short|damaged|truncated|ends")
def _(files: Files) -> None:
    whole = gzip.compress("\n".join([*files.log, ""]).encode())
    files.log_name, files.log_bytes = "log.csv.gz", whole[: len(whole) // 2]


@fault("line ends that are carriage returns alone", r"line|row|column|header")
def _(files: Files) -> None:
    files.log_bytes = "\r".join([*files.log, ""]).encode()


@fault("mixed line ends", "")
def _(files: Files) -> None:
    files.log_bytes = ("\r\n".join(files.log[:100]) + "\r\n" + "\n".join([*files.log[100:], ""])).encode()


# ---- times ----------------------------------------------------------------------------------------------------------
@fault("another unit of time from the middle on", r"milliseconds")
def _(files: Files) -> None:
    change(files, HALF, lambda row: [*row[:2], row[2] + "000", row[3]])


@fault("a time that is none", r"row 100")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: [*row[:2], "yesterday", row[3]])


@fault("a date of zeros", r"row 100")
def _(files: Files) -> None:
    change(files, range(1, 321), lambda row: [*row[:2], f"2020-01-{1 + int(row[2]) % 28:02} 10:00:00", row[3]])
    change(files, range(100, 101), lambda row: [*row[:2], "0000-00-00 00:00:00", row[3]])


@fault("times of 0 where there was none", r"1970|row 100|time")
def _(files: Files) -> None:
    change(files, range(100, 110), lambda row: [*row[:2], "0", row[3]])


@fault("a time in the far future", r"2286|2099|future|row 100|years")
def _(files: Files) -> None:
    change(files, range(100, 101), lambda row: [*row[:2], "4090000000", row[3]])


@fault("days and months that can be either", r"day|month|--time-format")
def _(files: Files) -> None:
    change(files, range(1, 321), lambda row: [*row[:2], f"0{1 + int(row[2]) % 9}/0{1 + int(row[2]) % 7}/2020", row[3]])


@fault("no times in some rows", r"row 100")
def _(files: Files) -> None:
    change(files, range(100, 110), lambda row: [*row[:2], "", row[3]])


@fault("times of another zone", "")
def _(files: Files) -> None:
    change(files, range(1, 321), lambda row: [*row[:2], str(int(row[2]) + 3600), row[3]])


@fault("rows in reverse, without times", "")
def _(files: Files) -> None:
    files.log = [",".join(row.split(",")[:2]) for row in [files.log[0], *reversed(files.log[1:])]]


@fault("all rows of one moment, in the order of items", r"ties|share their|same moment|tied")
def _(files: Files) -> None:
    rows = sorted(fields(files, at)[:2] for at in range(1, 321))
    files.log = [HEAD, *(f"{user},{item},{START},3" for user, item in rows)]


# ---- identifiers ----------------------------------------------------------------------------------------------------
@fault("numbers as Excel shortens them", r"E\+|scientific|shortened|exponent|1\.23457E")
def _(files: Files) -> None:
    change(files, range(1, 321), lambda row: [f"1.23457E+{10 + int(row[0][1:]) % 3}", *row[1:]])


@fault("leading zeros lost in half of the rows", r"without a row|have no row|without_a_row")
def _(files: Files) -> None:
    change(files, HALF, lambda row: [row[0], row[1].lstrip("0") or "0", *row[2:]])


@fault("capitals in half of the rows", r"capital|case|U0")
def _(files: Files) -> None:
    change(files, HALF, lambda row: [row[0].upper(), *row[1:]])


@fault("blanks behind identifiers", r"blank|space")
def _(files: Files) -> None:
    change(files, HALF, lambda row: [row[0], row[1] + " ", *row[2:]])


@fault("a placeholder for unknown users", r"NULL")
def _(files: Files) -> None:
    change(files, range(100, 140), lambda row: ["NULL", *row[1:]])


@fault("one user with most of the log", r"u000")
def _(files: Files) -> None:
    change(files, range(1, 200), lambda row: ["u000", *row[1:]])


@fault("one item with most of the log", r"'?-1'?")
def _(files: Files) -> None:
    change(files, range(1, 200), lambda row: [row[0], "-1", *row[2:]])


@fault("dislikes among the choices", r"rating")
def _(files: Files) -> None:
    change(files, HALF, lambda row: [*row[:3], "-1"])


@fault("a line of JSON that was cut", r"row 100")
def _(files: Files) -> None:
    as_json(files)
    files.log[99] = files.log[99][:20]


@fault("a field with another name in half of the lines", r"User_ID|rows without user")
def _(files: Files) -> None:
    as_json(files)
    files.log[:120] = [line.replace("user_id", "User_ID") for line in files.log[:120]]


def as_json(files: Files) -> None:
    names = HEAD.split(",")
    files.log = [json.dumps(dict(zip(names, row.split(","), strict=True))) for row in files.log[1:]]
    files.log_name = "log.jsonl"


# ---- the catalogue --------------------------------------------------------------------------------------------------
@fault("a title whose quotation mark is never closed", r"quot|row 5")
def _(files: Files) -> None:
    files.items[5] = files.items[5].replace('",', ",")


@fault("items twice, with other titles", r"repeated|twice|more than one row")
def _(files: Files) -> None:
    files.items += [row.replace("lamp", "candle") for row in files.items[1:6]]


@fault("half of the catalogue lost", r"without a row|have no row|without_a_row")
def _(files: Files) -> None:
    del files.items[12:]


@fault("titles emptied", r"title")
def _(files: Files) -> None:
    files.items = [re.sub(r'".*"', "", row) for row in files.items]


@fault("titles moved down by one row", "")
def _(files: Files) -> None:
    rows = [re.split(r',(?=")|(?<="),', row) for row in files.items[1:]]
    titles = [row[1] for row in rows]
    rows = [[row[0], title, row[2]] for row, title in zip(rows, titles[-1:] + titles[:-1], strict=True)]
    files.items[1:] = [",".join(row) for row in rows]


@fault("a text decoded in the wrong encoding", r"Ã|encoding|mis-?decoded|--encoding")
def _(files: Files) -> None:
    files.items = [row.replace("lamp", "lämpchen".encode().decode("latin-1")) for row in files.items]


@functools.cache
def good_report() -> dict[str, Any]:
    """What is said of the good files."""
    with tempfile.TemporaryDirectory() as folder:
        return prepare_files(*good().write(Path(folder)), Path(folder) / "out").report


def outcome(name: str, folder: Path) -> tuple[str, str]:
    """`refused`, `said` or `silent`; and what was said: the error, or warnings, drops and counts of the report."""
    files = good()
    said, make = FAULTS[name]
    make(files)
    log, items = files.write(folder)
    try:
        report = prepare_files(log, items, folder / "out").report
    except LLMD4RecError as error:
        return "refused", str(error)
    plain = good_report()
    lines = [*report["warnings"]]
    lines += [f"{step['step']}: {step}" for step in report["steps"] if step["rows_in"] > step["rows_out"]]
    for part in ("interactions", "catalogue"):
        lines += [
            f"{key}: {value}"
            for key, value in report[part].items()
            if value != plain[part].get(key) and key not in ("sha256", "file", "format", "columns", "first", "last")
        ]
    heard = [line for line in lines if said and re.search(said, line)]
    return ("said", "; ".join(heard)) if heard else ("silent", "; ".join(lines))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_or_said(name: str, tmp_path: Path) -> None:
    kind, text = outcome(name, tmp_path)
    if name in NO_TRACE:
        assert kind == "silent", text
        return
    assert kind != "silent", text
    assert re.search(FAULTS[name][0], text), text


def main() -> None:
    """Prints what became of each fault."""
    counts = {"refused": 0, "said": 0, "silent": 0}
    for name in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            kind, text = outcome(name, Path(folder))
        counts[kind] += 1
        why = f" (no trace: {NO_TRACE[name]})" if name in NO_TRACE else ""
        print(f"{kind:8} {name}{why}: {' '.join(text.split())[:160]}")
    print(counts, f"of {len(FAULTS)}; {len(NO_TRACE)} leave no trace")


if __name__ == "__main__":
    pl.Config.set_fmt_str_lengths(80)
    main()
