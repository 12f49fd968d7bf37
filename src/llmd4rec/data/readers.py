"""Opening interaction logs and catalogues, whatever they are stored in.

CSV, TSV, Parquet, JSON lines, RecBole's `.inter` and `.item`, and S3-Rec's `user item item ...`; plain, gzip or
zstandard. The suffix names the format; where it does not, the content does.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.data.table import Table
from llmd4rec.data.unpack import unpacked
from llmd4rec.errors import DataError
from llmd4rec.files import sha256_file

_BY_SUFFIX = {
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"},
    **{".inter": "recbole", ".item": "recbole", ".user": "recbole"},
}
_COMPRESSION = (".gz", ".zst", ".zstd")
_SEPARATORS = {"csv": ",", "tsv": "\t", "recbole": "\t"}
#: How many lines of JSON are looked at to learn the columns.
_JSON_LINES = 2000


@contextlib.contextmanager
def open_table(path: Path | str, *, encoding: str = "utf-8") -> Iterator[Table]:
    """Opens a file as a :class:`Table`; a compressed one is unpacked to a temporary file for as long.

    Args:
        path: the file.
        encoding: of text; UTF-8 with or without a byte order mark by default.

    Raises:
        DataError: it is missing, empty, cut short, in another encoding, or of no known format.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder", "Name a file in it.")
    if not path.is_file():
        raise DataError(f"{path} does not exist", "Check the path.")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty", "Give a file with a header line and at least a few interactions.")
    about = {"file": path.name, "sha256": sha256_file(path)}
    with tempfile.TemporaryDirectory(prefix="llmd4rec-") as folder:
        plain = unpacked(path, Path(folder), encoding)
        if not plain.stat().st_size:
            raise DataError(f"{path} is empty once unpacked", "Give a file with a header line and some rows.")
        kind = _format(path, plain)
        yield _SCANNERS[kind](plain, path, {**about, "format": kind})


def _format(path: Path, plain: Path) -> str:
    """csv, tsv, parquet, jsonl, recbole or s3rec."""
    with plain.open("rb") as file:
        start = file.read(1 << 16)
    if start[:4] == b"PAR1":
        return "parquet"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    named = [suffix for suffix in suffixes if suffix not in _COMPRESSION][-1:]
    by_suffix = _BY_SUFFIX.get(named[0]) if named else None
    if by_suffix == "parquet" or b"\0" in start:
        what = "named like Parquet but does not begin like it" if by_suffix == "parquet" else "binary"
        raise DataError(
            f"{path} is {what}",
            "Give CSV, TSV, Parquet, JSON lines, RecBole or S3-Rec text; plain, .gz or .zst.",
        )
    if by_suffix is not None:
        return by_suffix
    return _sniff(start.decode("utf-8", errors="replace"), path)


def _sniff(start: str, path: Path) -> str:
    """The format of text by its first lines."""
    lines = [line for line in start.splitlines() if line.strip()]
    head = lines[0] if lines else ""
    if head.lstrip().startswith("{"):
        return "jsonl"
    if "\t" in head:
        return "recbole" if ":token" in head else "tsv"
    if "," in head or ";" in head or "|" in head:
        return "csv"
    if all(len(line.split()) >= 2 for line in lines[:5]) and lines:
        return "s3rec"
    raise DataError(
        f"{path}: its format cannot be told from its name or its first line",
        "Name it .csv, .tsv, .parquet, .jsonl, .inter or .txt (S3-Rec), with .gz or .zst behind if compressed.",
    )


# ---- separated values --------------------------------------------------------------------------------------
def _scan_separated(plain: Path, path: Path, about: dict[str, Any]) -> Table:
    """All columns as strings: identifiers keep their zeros, and nothing is guessed from the first rows."""
    kind = about["format"]
    with plain.open("rb") as file:
        first = file.readline()
    try:
        head = first.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        _refuse_encoding(plain, path)
        raise
    separator = _SEPARATORS[kind]
    if separator not in head:
        separator = max(",\t;|", key=head.count) if any(mark in head for mark in ",\t;|") else separator
    quote = None if kind == "recbole" else '"'
    lazy = pl.scan_csv(plain, separator=separator, quote_char=quote, infer_schema=False, glob=False)
    return Table(lazy, str(path), about, lambda error: _explain_separated(plain, path, separator, quote, error))


def _explain_separated(plain: Path, path: Path, separator: str, quote: str | None, error: BaseException) -> None:
    """Finds the row that broke the reader: wrong encoding, too many fields, or a quote that never ends."""
    _refuse_encoding(plain, path)
    with plain.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL)
        try:
            width = len(next(rows))
            for number, row in enumerate(rows, start=1):
                if len(row) > width:
                    raise DataError(
                        f"{path}, row {number}: {len(row)} fields where the header names {width}",
                        "Quote fields that hold the separator, or remove the row.",
                    ) from error
        except (csv.Error, StopIteration) as broken:
            raise DataError(f"{path} cannot be read as {separator!r}-separated text: {broken}") from error
    if quote is not None and plain.read_bytes().count(b'"') % 2:
        raise DataError(
            f"{path} has a quotation mark that is never closed", 'Close it, or double it inside a field ("").'
        ) from error


def _refuse_encoding(plain: Path, path: Path) -> None:
    """Raises where the file stops being UTF-8."""
    with plain.open("rb") as file:
        for number, line in enumerate(file):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = "the header" if number == 0 else f"row {number}"
                raise DataError(
                    f"{path}, {where}: byte {line[error.start]:#04x} is not UTF-8",
                    "Say which encoding it is, for example --encoding latin-1.",
                ) from error


# ---- the other formats -------------------------------------------------------------------------------------
def _scan_parquet(plain: Path, path: Path, about: dict[str, Any]) -> Table:
    return Table(pl.scan_parquet(plain, glob=False), str(path), about)


def _scan_jsonl(plain: Path, path: Path, about: dict[str, Any]) -> Table:
    """Plain values as strings, lists as lists of strings; objects are left out."""
    _refuse_encoding_at_start(plain, path)
    schema: dict[str, Any] = {}
    with plain.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in zip(range(1, _JSON_LINES + 1), file, strict=False):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, row {number}: no valid JSON: {error}", _JSON_REMEDY) from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, row {number}: not a JSON object", _JSON_REMEDY)
            for name, value in record.items():
                if not isinstance(value, dict) and (value is not None or name not in schema):
                    schema.setdefault(name, _json_type(value))
                    if schema[name] is None and value is not None:
                        schema[name] = _json_type(value)
    known = {name: kind or pl.String for name, kind in schema.items()}
    lazy = pl.scan_ndjson(glob.escape(str(plain)), schema=known)  # it takes patterns, and cannot be told not to
    return Table(lazy, str(path), about, lambda error: _explain_json(plain, path, known, error))


_JSON_REMEDY = "Give one JSON object per line."


def _json_type(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list):
        return pl.String
    inner = next((element for element in value if element is not None), None)
    if isinstance(inner, dict):
        return pl.String
    return pl.List(pl.List(pl.String)) if isinstance(inner, list) else pl.List(pl.String)


def _refuse_encoding_at_start(plain: Path, path: Path) -> None:
    with plain.open("rb") as file:
        if file.read(64).lstrip().startswith(b"["):
            raise DataError(f"{path} is one JSON array", _JSON_REMEDY)


def _explain_json(plain: Path, path: Path, known: dict[str, Any], error: BaseException) -> None:
    """Finds the row that broke the reader: wrong encoding, no JSON, or a text where other rows hold a list."""
    _refuse_encoding(plain, path)
    with plain.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as broken:
                raise DataError(f"{path}, row {number}: no valid JSON: {broken}", _JSON_REMEDY) from error
            for name, value in record.items() if isinstance(record, dict) else ():
                if isinstance(known.get(name), pl.List) and value is not None and not isinstance(value, list):
                    raise DataError(
                        f"{path}, row {number}, field {name!r}: {value!r} where earlier rows hold a list",
                        "Make it a list in every row, or a text in every row.",
                    ) from error


def _scan_s3rec(plain: Path, path: Path, about: dict[str, Any]) -> Table:
    """`user item item ...`, oldest first; one row per interaction, its position the place in the file."""
    _refuse_encoding(plain, path)
    words = pl.scan_csv(
        plain, has_header=False, new_columns=["line"], separator="\x01", quote_char=None, infer_schema=False, glob=False
    ).select(pl.col("line").str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ").alias("words"))
    rows = words.select(
        pl.col("words").list.first().alias("user_id"), pl.col("words").list.slice(1).alias("item_id")
    ).explode("item_id")
    return Table(rows.with_row_index("position"), str(path), about)


_SCANNERS = {
    "csv": _scan_separated,
    "tsv": _scan_separated,
    "recbole": _scan_separated,
    "parquet": _scan_parquet,
    "jsonl": _scan_jsonl,
    "s3rec": _scan_s3rec,
}
