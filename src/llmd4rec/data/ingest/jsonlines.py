"""JSON lines: which fields there are and of which types, learned from every line.

A field may come late, and the first value of one says little: a list may be empty, a text be an object elsewhere. All
lines are therefore looked through once (about two seconds for a million) before polars reads them.
"""

from __future__ import annotations

import glob
import itertools
import json
import mmap
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.data.ingest import columns
from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.unpack import refuse_encoding
from llmd4rec.errors import DataError

_REMEDY = "Give one JSON object per line."
_REMEDY_MIXED = "Make it a text in every row, or a list in every row, or name other columns."
_MARK = b"\xef\xbb\xbf"
#: Lines that are parsed at once: the call costs more than a short line.
_LINES = 1000
#: What a value can be, and what its field is read as; objects, and lists of them, are left out.
_PLAIN, _LIST, _NESTED, _OBJECT = "a plain value", "a list", "a list of lists", "an object"
_OBJECTS = "a list of objects"
_TYPES = {_PLAIN: pl.String(), _LIST: pl.List(pl.String), _NESTED: pl.List(pl.List(pl.String))}
#: A list that holds nothing fits every kind of list.
_EMPTY = "an empty list"
#: Numbers that JSON does not have, and texts, in which they mean nothing.
_NO_NUMBER = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?\bInfinity\b|\bNaN\b')

#: The kinds of values of each field, and the first row of each.
Kinds = dict[str, dict[str, int]]


def scan_json_lines(
    files: Sequence[tuple[Path, Path, dict[str, str | None]]], where: str, about: dict[str, Any]
) -> Table:
    """Plain values as strings, lists as lists of strings, lists of lists as such; objects are left out.

    Lists of objects are read where these hold the items that no field of their own names: they are histories.

    Args:
        files: parts of one table: the unpacked file, made of lines, what the user calls it, and the columns that its
            folders give.
        where: what messages call the table.
        about: facts for the report.

    Raises:
        DataError: a line is no JSON object.
    """
    kinds: Kinds = {}
    inner: dict[str, list[str]] = {}
    for plain, path, _ in files:
        for name, rows in _kinds(plain, path, inner).items():
            known = kinds.setdefault(name, {})
            for kind, row in rows.items():
                known.setdefault(kind, row)
    schema: dict[str, pl.DataType] = {}
    unfit: dict[str, tuple[str, str]] = {}
    objects: list[str] = []
    no_item = columns.guess(kinds, columns.ITEM) is None
    for name, rows in kinds.items():
        lists = {_LIST, _NESTED, _OBJECT, _OBJECTS}
        found = [kind for kind in rows if kind != _EMPTY or not rows.keys() & lists]
        if found == [_OBJECTS] and no_item and columns.guess(inner[name], (*columns.ITEM, *columns.ITEM_OF_EVENT)):
            schema[name] = pl.List(pl.Struct(dict.fromkeys(inner[name], pl.String())))
            continue
        if found and set(found) <= {_OBJECT, _OBJECTS}:
            objects.append(name)
            continue
        if len(found) > 1:
            unfit[name] = (" and ".join(f"{kind} in row {rows[kind]}" for kind in found), _REMEDY_MIXED)
        schema[name] = pl.String() if len(found) != 1 else _TYPES.get(found[0], pl.List(pl.String))
    if objects and not schema:
        raise DataError(
            f"{where}: its objects hold no plain values, but objects and lists of them: {columns.listing(objects, 5)}",
            'Give one object per interaction, as pandas writes with orient="records".',
        )
    if objects:
        about = {**about, "fields_of_objects_left_out": objects}
    scans = [  # it takes patterns, and cannot be told not to
        pl.scan_ndjson(glob.escape(str(plain)), schema=schema).with_columns(
            *(pl.lit(value, pl.String).alias(name) for name, value in fixed.items())
        )
        for plain, _, fixed in files
    ]

    def explain(error: BaseException) -> None:
        for plain, path, _ in files:
            _explain(plain, path, error)

    lazy = pl.concat(scans) if len(scans) > 1 else scans[0]
    return Table(lazy, where, about, explain, unfit)


# ---- making lines of what is not ----------------------------------------------------------------------------------
def as_lines(plain: Path, path: Path, folder: Path) -> tuple[Path, int]:
    """The file itself if it is one object a line, else a copy in `folder` that is; and how many numbers were none.

    A byte order mark is left out; an array, or objects over several lines, become lines; `NaN` and `Infinity`, which
    JSON does not have and Python writes, become null.

    Raises:
        DataError: an array holds something else than objects, or is none.
    """
    plain = _without_mark(plain, folder)
    with plain.open("rb") as file:
        start = file.read(1 << 12).lstrip()
    if start.startswith(b"[") or (start.startswith(b"{") and not start[1:].split(b"\n", 1)[0].strip()):
        plain = _flattened(plain, path, folder)
    return _without_no_numbers(plain, folder)


def _without_mark(plain: Path, folder: Path) -> Path:
    with plain.open("rb") as file:
        if file.read(len(_MARK)) != _MARK:
            return plain
        target = folder / f"{plain.name}.unmarked"
        with target.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    return target


def _flattened(plain: Path, path: Path, folder: Path) -> Path:
    """One object a line, each as it was written but for its line ends."""
    refuse_encoding(plain, path)
    text = plain.read_text(encoding="utf-8")
    target, decoder = folder / f"{plain.name}.lines", json.JSONDecoder()
    gap = re.compile(r"[\s,]*")
    found = gap.match(text)
    at = found.end() if found else 0
    array = text.startswith("[", at)
    at += array
    with target.open("w", encoding="utf-8", newline="") as out:
        for number in itertools.count(1):
            found = gap.match(text, at)
            at = found.end() if found else at
            if at >= len(text) or (array and text[at] == "]"):
                break
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, object {number}: no valid JSON: {error}", _REMEDY) from error
            if not isinstance(value, dict):
                raise DataError(f"{path}, element {number} of the array: not a JSON object", _REMEDY)
            out.write(text[at:end].replace("\r", " ").replace("\n", " ") + "\n")
            at = end
    if array and (at >= len(text) or text[at + 1 :].strip()):
        raise DataError(f"{path}: its JSON array does not end at the end of the file", _REMEDY)
    return target


def _without_no_numbers(plain: Path, folder: Path) -> tuple[Path, int]:
    with plain.open("rb") as file:
        if not plain.stat().st_size:
            return plain, 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            if whole.find(b"NaN") < 0 and whole.find(b"Infinity") < 0:
                return plain, 0
        count = 0

        def null(match: re.Match[bytes]) -> bytes:
            nonlocal count
            if match[0].startswith(b'"'):
                return match[0]
            count += 1
            return b"null"

        target = folder / f"{plain.name}.numbers"
        with target.open("wb") as out:
            for line in file:
                odd = b"NaN" in line or b"Infinity" in line
                out.write(_NO_NUMBER.sub(null, line) if odd else line)
    return target, count


def _kinds(plain: Path, path: Path, inner: dict[str, list[str]]) -> Kinds:
    """The fields of all lines, in order of appearance; `inner` gets those of objects in lists."""
    fields: Kinds = {}
    plain_ones: set[str] = set()
    for start, records in _records(plain, path):
        for row, record in enumerate(records, start=start):
            for name, value in record.items():
                if name in plain_ones and value.__class__ is not list and value.__class__ is not dict:
                    continue  # nearly all values: this loop is what looking through a file costs
                known = fields.setdefault(name, {})
                for kind in _kinds_of(value):
                    known.setdefault(kind, row)
                    if kind is _OBJECTS:
                        _add_fields(inner.setdefault(name, []), value)
                if _PLAIN in known:
                    plain_ones.add(name)
    return fields


def _kinds_of(value: Any) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, dict):
        return {_OBJECT}
    if not isinstance(value, list):
        return {_PLAIN}
    inner = {element.__class__ for element in value} - {type(None)}
    return {_NESTED if kind is list else _OBJECTS if kind is dict else _LIST for kind in inner} or {_EMPTY}


def _add_fields(known: list[str], elements: list[Any]) -> None:
    """Adds the fields of objects that hold plain values."""
    for element in elements:
        if element.__class__ is dict and not element.keys() <= set(known):
            plain = [name for name, value in element.items() if value.__class__ not in (list, dict)]
            known += [name for name in plain if name not in known]


def _records(plain: Path, path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The objects, some at a time, each time with the row of the first; a blank line is an object without fields."""
    with plain.open(encoding="utf-8", errors="replace") as file:
        for start in itertools.count(1, _LINES):
            lines = list(itertools.islice(file, _LINES))
            if not lines:
                return
            try:
                records = json.loads("[" + ",".join(line if not line.isspace() else "{}" for line in lines) + "]")
            except (ValueError, RecursionError):
                records = []
            # Lines that are wrong by themselves may be right together, as `1` and `2], [3` are.
            if len(records) != len(lines) or not all(record.__class__ is dict for record in records):
                records = [_record(line, path, row) for row, line in enumerate(lines, start=start)]
            yield start, records


def _record(line: str, path: Path, row: int) -> dict[str, Any]:
    try:
        record = json.loads(line) if not line.isspace() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, row {row}: no valid JSON: {error}", _REMEDY) from error
    if not isinstance(record, dict):
        raise DataError(f"{path}, row {row}: not a JSON object", _REMEDY)
    return record


def _explain(plain: Path, path: Path, error: BaseException) -> None:
    """Finds the row that broke the reader: wrong encoding, or lines that are JSON only together."""
    refuse_encoding(plain, path)
    with plain.open(encoding="utf-8") as file:
        for row, line in enumerate(file, start=1):
            try:
                _record(line, path, row)
            except DataError as found:
                raise found from error
