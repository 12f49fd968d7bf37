"""Opening interaction logs and catalogues, whatever they are stored in.

CSV, TSV, Parquet, JSON lines, RecBole's `.inter` and `.item`, and S3-Rec's `user item item ...`; plain, gzip or
zstandard; one file or several. The suffix names the format; where it does not, the content does.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.data.ingest.first_lines import is_rows
from llmd4rec.data.ingest.jsonlines import as_lines, scan_json_lines
from llmd4rec.data.ingest.parts import find_parts, name_of, order_of
from llmd4rec.data.ingest.separated import Layout, Source, refuse_other_columns, scan_separated
from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.time_zones import in_utc
from llmd4rec.data.ingest.unpack import refuse_encoding, unpacked
from llmd4rec.errors import DataError
from llmd4rec.io.files import sha256_file
from llmd4rec.log import logger

_BY_SUFFIX = {
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"},
    **{".inter": "recbole", ".item": "recbole", ".user": "recbole", ".s3rec": "s3rec"},
}
_COMPRESSION = (".gz", ".zst", ".zstd")


@contextlib.contextmanager
def open_table(
    given: Path | str | Sequence[Path | str], *, encoding: str = "utf-8", layout: Layout | None = None
) -> Iterator[Table]:
    """Opens files as a :class:`Table`; compressed ones are unpacked to a temporary folder for as long.

    Args:
        given: a file, a folder of parts, a pattern, or several of these: parts of one table, of one format.
        encoding: of text; UTF-8 with or without a byte order mark by default.
        layout: what is known of separated values.

    Raises:
        DataError: one is missing, empty, cut short, in another encoding, or of no known format.
    """
    parts = find_parts(given)
    where = name_of(given, parts)
    layout = layout or Layout()
    for path, _ in parts:
        if not path.stat().st_size:
            raise DataError(f"{path} is empty", "Give a file with a header line and at least a few interactions.")
    with tempfile.TemporaryDirectory(prefix="llmd4rec-") as name:
        folder = Path(name)
        sources, kinds, no_numbers = [], [], 0
        for at, (path, fixed) in enumerate(parts):
            inside = folder / str(at) if len(parts) > 1 else folder
            inside.mkdir(exist_ok=True)
            plain = unpacked(path, inside, encoding)
            if not plain.stat().st_size:
                raise DataError(f"{path} is empty once unpacked", "Give a file with a header line and some rows.")
            kind = _format(path, plain, layout)
            if kind == "jsonl":
                plain, found = as_lines(plain, path, inside)
                no_numbers += found
            sources.append(Source(plain, path, fixed))
            kinds.append(kind)
        if len(set(kinds)) > 1:
            other = next(at for at, kind in enumerate(kinds) if kind != kinds[0])
            raise DataError(
                f"{parts[0][0]} is {kinds[0]}, {parts[other][0]} is {kinds[other]}: they cannot be parts of one table",
                "Give files of one format, for example with a pattern such as 'folder/*.csv'.",
            )
        about = _about(parts, where) | {"format": kinds[0]}
        if no_numbers:
            about["nan_and_infinity_read_as_missing"] = no_numbers
        yield _scan(kinds[0], sources, where, about, layout, folder)


def _about(parts: Sequence[tuple[Path, Any]], where: str) -> dict[str, Any]:
    """Names and checksum for the report."""
    sums = [sha256_file(path) for path, _ in parts]
    if len(parts) == 1:
        return {"file": parts[0][0].name, "sha256": sums[0]}
    logger.info(f"{where}: {len(parts)} files in the order {order_of(parts)}")
    total = hashlib.sha256("".join(sums).encode()).hexdigest()
    return {"file": Path(where).name, "files": len(parts), "order_of_files": order_of(parts), "sha256": total}


def _scan(kind: str, sources: list[Source], where: str, about: dict[str, Any], layout: Layout, folder: Path) -> Table:
    if kind in ("csv", "tsv", "recbole", "blanks"):
        return scan_separated(sources, where, about, layout, folder)
    if layout.columns is not None and kind != "s3rec":
        raise DataError(
            f"{where} is {kind}, which names its columns itself", f"Leave {layout.option}columns out for it."
        )
    if kind == "jsonl":
        return scan_json_lines([(each.plain, each.path, each.fixed) for each in sources], where, about)
    if kind == "parquet":
        return _scan_parquet(sources, where, about)
    return _scan_s3rec(sources, where, about)


def _format(path: Path, plain: Path, layout: Layout) -> str:
    """csv, tsv, parquet, jsonl, recbole, s3rec, or blanks: rows with blanks between their fields."""
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
    text = start.decode("utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines()[: -1 if len(start) == 1 << 16 else None] if line.strip()]
    if by_suffix in ("csv", "tsv") and layout.separator is None and _is_blanks(lines):
        return "blanks"
    if by_suffix is not None:
        return by_suffix
    if layout.separator is not None and layout.separator != " ":
        return "csv"
    return _sniff(lines, path, layout)


def _is_blanks(lines: Sequence[str]) -> bool:
    """Whether nothing but blanks can separate the fields, as in many a file called .csv or .tsv."""
    return bool(lines) and not any(mark in lines[0] for mark in ",\t;|\x01:") and is_rows(lines)


def _sniff(lines: Sequence[str], path: Path, layout: Layout) -> str:
    """The format of text by its first lines."""
    head = lines[0] if lines else ""
    if head.lstrip().startswith(("{", "[")):
        return "jsonl"
    if "\t" in head:
        return "recbole" if ":token" in head else "tsv"
    if any(mark in head for mark in (",", ";", "|", "::", "\x01")):
        return "csv"
    if lines and all(len(line.split()) >= 2 for line in lines[:5]):
        named = layout.columns is not None or layout.separator == " "
        return "blanks" if named or is_rows(lines) else "s3rec"
    raise DataError(
        f"{path}: its format cannot be told from its name or its first line",
        "Name it .csv, .tsv, .parquet, .jsonl, .inter or .txt (S3-Rec), with .gz or .zst behind if compressed.",
    )


def _scan_parquet(sources: list[Source], where: str, about: dict[str, Any]) -> Table:
    scans, names = [], []
    for source in sources:
        lazy = in_utc(pl.scan_parquet(source.plain, glob=False))
        found = Table(lazy, str(source.path)).schema
        scans.append(
            lazy.with_columns(
                *(pl.lit(value, pl.String).alias(name) for name, value in source.fixed.items() if name not in found)
            )
        )
        names.append([*found, *(name for name in source.fixed if name not in found)])
        refuse_other_columns(names[0], names[-1], sources[0], source)
    if len(scans) == 1:
        return Table(scans[0], where, about)
    lazy = pl.concat([scan.select(names[0]) for scan in scans], how="vertical_relaxed")
    return Table(lazy, where, about)


def _scan_s3rec(sources: list[Source], where: str, about: dict[str, Any]) -> Table:
    """`user item item ...`, oldest first; one row per interaction, its position the place in the file."""
    for source in sources:
        refuse_encoding(source.plain, source.path)
    words = pl.concat(
        [
            pl.scan_csv(
                source.plain,
                has_header=False,
                new_columns=["line"],
                separator="\x01",
                quote_char=None,
                infer_schema=False,
                glob=False,
            )
            for source in sources
        ]
    ).select(pl.col("line").str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ").alias("words"))
    rows = words.select(
        pl.col("words").list.first().alias("user_id"), pl.col("words").list.slice(1).alias("item_id")
    ).explode("item_id")
    return Table(rows.with_row_index("position"), where, about)
