"""JSON lines: which fields there are and of which types, learned from every line.

A field may come late, and the first value of one says little: a list may be empty, a text be an object elsewhere. All
lines are therefore looked through once (about two seconds for a million) before polars reads them.
"""

from __future__ import annotations

import glob
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.data.table import Table
from llmd4rec.data.unpack import refuse_encoding
from llmd4rec.errors import DataError

_REMEDY = "Give one JSON object per line."
_REMEDY_MIXED = "Make it a text in every row, or a list in every row, or name other columns."
_MARK = b"\xef\xbb\xbf"
#: Lines that are parsed at once: the call costs more than a short line.
_LINES = 1000
#: What a value can be, and what its field is read as; objects, and lists of them, are left out.
_PLAIN, _LIST, _NESTED, _OBJECT = "a plain value", "a list", "a list of lists", "an object"
_TYPES = {_PLAIN: pl.String(), _LIST: pl.List(pl.String), _NESTED: pl.List(pl.List(pl.String))}
#: A list that holds nothing fits every kind of list.
_EMPTY = "an empty list"

#: The kinds of values of each field, and the first row of each.
Kinds = dict[str, dict[str, int]]


def scan_json_lines(plain: Path, path: Path, about: dict[str, Any]) -> Table:
    """Plain values as strings, lists as lists of strings, lists of lists as such; objects are left out.

    Args:
        plain: the unpacked file, without a byte order mark.
        path: the file as the user calls it.
        about: facts for the report.

    Raises:
        DataError: a line is no JSON object.
    """
    with plain.open("rb") as file:
        if file.read(64).lstrip().startswith(b"["):
            raise DataError(f"{path} is one JSON array", _REMEDY)
    kinds = _kinds(plain, path)
    schema: dict[str, pl.DataType] = {}
    unfit: dict[str, tuple[str, str]] = {}
    objects: list[str] = []
    for name, rows in kinds.items():
        found = [kind for kind in rows if kind != _EMPTY or not rows.keys() & {_LIST, _NESTED, _OBJECT}]
        if found == [_OBJECT]:
            objects.append(name)
            continue
        if len(found) > 1:
            unfit[name] = (" and ".join(f"{kind} in row {rows[kind]}" for kind in found), _REMEDY_MIXED)
        schema[name] = pl.String() if len(found) != 1 else _TYPES.get(found[0], pl.List(pl.String))
    if objects:
        about = {**about, "fields_of_objects_left_out": objects}
    lazy = pl.scan_ndjson(glob.escape(str(plain)), schema=schema)  # it takes patterns, and cannot be told not to
    return Table(lazy, str(path), about, lambda error: _explain(plain, path, error), unfit)


def without_mark(plain: Path, folder: Path) -> Path:
    """The file itself, or a copy in `folder` without the byte order mark that it begins with."""
    with plain.open("rb") as file:
        if file.read(len(_MARK)) != _MARK:
            return plain
        target = folder / f"{plain.name}.unmarked"
        with target.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    return target


def _kinds(plain: Path, path: Path) -> Kinds:
    """The fields of all lines, in order of appearance."""
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
    return {_NESTED if kind is list else _OBJECT if kind is dict else _LIST for kind in inner} or {_EMPTY}


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
