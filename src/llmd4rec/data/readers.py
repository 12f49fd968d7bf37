"""Opening interaction logs and catalogues, whatever they are stored in.

CSV, TSV, Parquet, JSON lines, RecBole's `.inter` and `.item`, and S3-Rec's `user item item ...`; plain, gzip or
zstandard. The suffix names the format; where it does not, the content does.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import mmap
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.data.jsonlines import scan_json_lines, without_mark
from llmd4rec.data.table import Table
from llmd4rec.data.unpack import refuse_encoding, unpacked
from llmd4rec.data.zones import in_utc
from llmd4rec.errors import DataError
from llmd4rec.files import sha256_file

_BY_SUFFIX = {
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"},
    **{".inter": "recbole", ".item": "recbole", ".user": "recbole"},
}
_COMPRESSION = (".gz", ".zst", ".zstd")
_SEPARATORS = {"csv": ",", "tsv": "\t", "recbole": "\t"}


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
        if kind == "jsonl":
            plain = without_mark(plain, Path(folder))
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
    return _sniff(start.decode("utf-8-sig", errors="replace"), path)


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
        refuse_encoding(plain, path)
        raise
    separator = _SEPARATORS[kind]
    if separator not in head:
        separator = max(",\t;|", key=head.count) if any(mark in head for mark in ",\t;|") else separator
    quote = None if kind == "recbole" else '"'
    warnings: tuple[str, ...] = ()
    if quote is not None and separator == "\t" and (row := _stray_quote(plain)) is not None:
        # Between tabs a mark such as that of 5" needs no quotes around it, and most that write such files know none.
        quote = None
        warnings = (f"{path}: quotation marks were read as part of the text, since row {row} has one inside a field",)
    lazy = pl.scan_csv(plain, separator=separator, quote_char=quote, infer_schema=False, glob=False)
    explain = functools.partial(_explain_separated, plain, path, separator, quote)
    return Table(lazy, str(path), about, explain, _named_twice(head, separator, quote), warnings)


def _named_twice(head: str, separator: str, quote: str | None) -> dict[str, tuple[str, str]]:
    """The columns whose name another one has too, of which the reader renames the later."""
    try:
        named = next(csv.reader([head], delimiter=separator, quoting=_quoting(quote)), [])
    except csv.Error:  # such as a whole file that is one line for having no line ends but carriage returns
        return {}
    why = ("two columns have this name", "Rename one of them in the header.")
    return {name: why for name, count in Counter(named).items() if count > 1}


def _quoting(quote: str | None) -> Any:
    return csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL


def _stray_quote(plain: Path, separator: str = "\t") -> int | None:
    """The line, counted as a row, of a quotation mark that quotes nothing, if there is one.

    It stands within a field, where quoting would have doubled it, or in a file of which no field begins with one.
    """
    around = b'[^"\r\n' + separator.encode() + b"]"
    within = re.compile(b'"(?<=' + around + b'")(?=' + around + b")")
    opening = re.compile(b'"(?<=[\n' + separator.encode() + b']")')
    with plain.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        at = whole.find(b'"')
        # A first field that is quoted may stand behind a byte order mark.
        if at in (-1, 0, 3) or opening.search(whole):
            at = -1
        found = within.search(whole, 4)
        at = found.start() if found else at
        return None if at < 0 else whole[:at].count(b"\n")


def _explain_separated(plain: Path, path: Path, separator: str, quote: str | None, error: BaseException) -> None:
    """Finds the row that broke the reader: wrong encoding, too many fields, or a quote that never ends."""
    refuse_encoding(plain, path)
    with plain.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator, quoting=_quoting(quote))
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
    if quote is None:
        return
    if (line := _stray_quote(plain, separator)) is not None:
        raise DataError(
            f"{path}, row {line}: a quotation mark inside a field",
            'Double it and quote the field ("5"" disk"), or remove it.',
        ) from error
    if plain.read_bytes().count(b'"') % 2:
        raise DataError(
            f"{path} has a quotation mark that is never closed", 'Close it, or double it inside a field ("").'
        ) from error


# ---- the other formats -------------------------------------------------------------------------------------
def _scan_parquet(plain: Path, path: Path, about: dict[str, Any]) -> Table:
    return Table(in_utc(pl.scan_parquet(plain, glob=False)), str(path), about)


def _scan_s3rec(plain: Path, path: Path, about: dict[str, Any]) -> Table:
    """`user item item ...`, oldest first; one row per interaction, its position the place in the file."""
    refuse_encoding(plain, path)
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
    "jsonl": scan_json_lines,
    "s3rec": _scan_s3rec,
}
