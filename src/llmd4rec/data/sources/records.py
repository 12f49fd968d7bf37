"""Files of one record per line, as JSON or as Python literals, for fields that no table reader can type."""

from __future__ import annotations

import ast
import glob
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.errors import DataError
from llmd4rec.log import bar

_BATCH = 100_000
Record = Mapping[str, Any]


def read_records(
    path: Path,
    columns: Mapping[str, Callable[[Record], Any]],
    types: Mapping[str, Any],
    scratch: Path,
    *,
    literal: bool = False,
) -> pl.LazyFrame:
    """Reads a file line by line into parts that are scanned together; memory stays that of one part.

    Args:
        path: the file, unpacked.
        columns: how to get each column of a record.
        types: the columns' types.
        scratch: a folder for the parts.
        literal: lines are Python literals (`{'asin': ...}`), which are parsed and never executed.

    Raises:
        DataError: a line cannot be parsed; says which.
    """
    parse: Callable[[str], Any] = ast.literal_eval if literal else json.loads
    folder = Path(tempfile.mkdtemp(dir=scratch))
    parts: list[Path] = []
    rows: list[list[Any]] = []

    def flush() -> None:
        part = folder / f"{len(parts)}.parquet"
        pl.DataFrame(rows, schema=dict(types), orient="row").write_parquet(part)
        parts.append(part)
        rows.clear()

    with path.open("rb") as file, bar(f"Reading {path.name}", path.stat().st_size, "B") as progress:
        for number, line in enumerate(file, start=1):
            progress.advance(len(line))
            if not line.strip():
                continue
            try:
                record = parse(line.decode("utf-8").strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise DataError(f"{path.name}, line {number}: cannot be parsed: {error}", "Get it again.") from error
            if not isinstance(record, dict):
                raise DataError(f"{path.name}, line {number}: not a record", "Get the file again.")
            rows.append([get(record) for get in columns.values()])
            if len(rows) == _BATCH:
                flush()
    if rows or not parts:
        flush()
    return pl.scan_parquet(parts, glob=False)


def scan_json(path: Path, fields: tuple[str, ...]) -> pl.LazyFrame:
    """Plain fields of JSON lines as strings; fields that a record lacks are null."""
    return pl.scan_ndjson(glob.escape(str(path)), schema={name: pl.String for name in fields})


def text(value: Any) -> str | None:
    """A plain value as text; None for anything else or blank. Halves of characters, which JSON can name, become `?`."""
    if not isinstance(value, str | int | float):
        return None
    return str(value).encode("utf-8", "replace").decode().strip() or None


def number(value: Any) -> float | None:
    """A number that is one and finite; None for anything else."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


def joined(value: Any, separator: str = ", ") -> str | None:
    """A list of texts as one; paths (lists of lists) as `a > b; a > c`."""
    if not isinstance(value, list):
        return text(value)
    if any(isinstance(element, list) for element in value):
        paths = [joined(element, " > ") for element in value]
        return "; ".join(dict.fromkeys(path for path in paths if path)) or None
    return separator.join(part for element in value if (part := text(element))) or None
