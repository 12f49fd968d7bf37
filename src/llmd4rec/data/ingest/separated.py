"""Separated values: CSV, TSV, RecBole's files, and text between blanks or between separators of several characters.

All columns come as strings: identifiers keep their zeros, and nothing is guessed from the first rows. The dialect is
found first (:mod:`~llmd4rec.data.ingest.dialect`), and polars must then find as many rows as were counted there.
"""

from __future__ import annotations

import csv
import mmap
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.data.ingest.delimited import NEWLINE, QUOTE, RETURN, Delimiters, blocks
from llmd4rec.data.ingest.dialect import Dialect, Named, check_rewritten, checked_quoting, find_dialect, rewrite
from llmd4rec.data.ingest.first_lines import columns_of_blanks, refuse_data_as_header, refuse_header_as_data
from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.unpack import refuse_encoding
from llmd4rec.errors import ConfigError, DataError

_SEPARATORS = {"csv": ",", "tsv": "\t", "recbole": "\t", "blanks": " "}
#: Looked for in a header that lacks the separator its name promises; those of several characters first.
_LONGER, _OTHERS = ("::", "||"), ",\t;|\x01"
#: Bytes that no text holds, to stand for a separator of several characters.
_UNUSED = b"\x1f\x1e\x1d\x1c\x02"
_TWO_WAYS = "its values can be read in two ways, with and without backslashes or quotation marks as signs"


@dataclass(frozen=True)
class Layout:
    """What a person says about how a table is written; None and `auto`: to be found out.

    Args:
        quoting: `double`: quotation marks inside quoted fields are doubled, as Excel, pandas and polars write;
            `backslash`: a backslash stands before them, as Spark, MySQL and R write; `none`: they are text.
        separator: what stands between fields; may have several characters.
        columns: names of the columns of a file without a header; one without a name is left out.
        option: how the options begin, for messages: `--` or `--item-`.

    Raises:
        ConfigError: a value makes no sense.
    """

    quoting: str = "auto"
    separator: str | None = None
    columns: tuple[str, ...] | None = None
    option: str = "--"

    def __post_init__(self) -> None:
        checked_quoting(self.quoting)
        if self.separator is not None and (not self.separator or set(self.separator) & set('"\r\n\\')):
            raise ConfigError(f"separator {self.separator!r} is none", "Give one or more characters, such as ; or ::.")
        if self.columns is not None:
            filled = [name for name in self.columns if name]
            twice = [name for name, count in Counter(filled).items() if count > 1]
            if not filled or twice:
                what = f"columns name {twice[0]!r} twice" if twice else "columns name nothing"
                raise ConfigError(what, "Give a name for each column that is used, such as user,item,time.")


@dataclass(frozen=True)
class Source:
    """One file of a table.

    Args:
        plain: the unpacked file.
        path: what the user calls it.
        fixed: columns that the names of its folders give.
    """

    plain: Path
    path: Path
    fixed: dict[str, str | None]


def scan_separated(sources: Sequence[Source], where: str, about: dict[str, Any], layout: Layout, folder: Path) -> Table:
    """The rows of all the sources, columns by name.

    Args:
        sources: UTF-8 text, parts of one table.
        where: what messages call it.
        about: facts for the report, the format among them.
        layout: what is known.
        folder: for files that must be written anew.

    Raises:
        DataError: a row does not fit, several dialects do, or the first row is no header.
    """
    kind = about["format"]
    sources = [_without_excels_line(source, folder / f"{at}.lines") for at, source in enumerate(sources)]
    heads = [_head(source) for source in sources]
    eol = RETURN if all("\r" in head.rstrip("\r") or head.endswith("\r\r") for head in heads) else NEWLINE
    heads = [head.split("\r")[0] for head in heads]
    separator = layout.separator or _separator(heads[0], kind)
    files, given = [source.plain for source in sources], layout.columns
    warnings: tuple[str, ...] = ()
    quoted = kind == "blanks" and any(QUOTE in block for file in files for block in blocks(file, eol))
    if kind == "blanks" and separator == " " and not quoted:  # in quotes, several blanks may have a meaning
        files = [_single_blanks(file, folder / f"{at}.blanks", eol) for at, file in enumerate(files)]
        heads = [" ".join(head.split()) for head in heads]
        if given is None:
            given, warnings = columns_of_blanks(files[0], where, layout.option)
    elif len(separator.encode()) > 1:
        files, byte = _one_byte(files, folder, separator, eol)
        heads, separator = [head.replace(separator, byte) for head in heads], byte
    form = Delimiters(ord(separator), eol, None if given is None else len(given))
    without = kind == "recbole" or (kind == "blanks" and not quoted)
    quoting = "none" if without and layout.quoting == "auto" else layout.quoting

    def explain(_: BaseException | None = None) -> None:
        for source in sources:
            refuse_encoding(source.plain, source.path)

    try:
        dialect = find_dialect(files, form, checked_quoting(quoting), Named(where, f"{layout.option}quoting"))
    except DataError:
        explain()
        raise
    if quoting == "auto":
        warnings = (*warnings, *dialect.warnings)
    files = _readable(files, dialect, form, where, folder)
    quote = '"' if dialect.quotes else None
    raw = [_fields(head, separator, quote) for head in heads]
    for source, file, fields in zip(sources, files, raw, strict=True):
        if given is None:
            refuse_data_as_header(fields, str(source.path), layout.option)
            _refuse_header_again(file, source, eol)
        else:
            refuse_header_as_data(fields, str(source.path), layout.option)
    scans = [_scan(file, source, separator, quote, eol, given) for file, source in zip(files, sources, strict=True)]
    names = [_schema(scan, source, explain) for scan, source in zip(scans, sources, strict=True)]
    for source, each in zip(sources, names, strict=True):
        refuse_other_columns(names[0], each, sources[0], source, layout.option)
    unfit = {} if given is not None else _named_twice(raw[0])
    ways = f"Say how the file is written with {layout.option}quoting double, backslash or none."
    unfit |= {each[at]: (_TWO_WAYS, ways) for each in names for at in dialect.unfit if at < len(each)}
    kept = [name for name in names[0] if not name.startswith(_NAMELESS)] if given is not None else names[0]
    lazy = pl.concat([scan.select(kept) for scan in scans]) if len(scans) > 1 else scans[0].select(kept)
    return Table(lazy, where, about, explain, unfit, tuple(warnings), rows=sum(dialect.rows))


#: What columns without a name are called until they are left out.
_NAMELESS = "\x00without a name "


def refuse_other_columns(
    expected: Sequence[str], found: Sequence[str], first: Source, other: Source, option: str = "--"
) -> None:
    """Raises where a part of a table has other columns than the first; their order does not matter."""
    missing = [name for name in expected if name not in found] or [name for name in found if name not in expected]
    if missing:
        lacking, having = (other, first) if missing[0] in expected else (first, other)
        raise DataError(
            f"{lacking.path} has no column {missing[0]!r}, which {having.path} has: parts of one table differ",
            f"Give all parts the same columns; if they have no header, name the columns with {option}columns.",
        )


# ---- the first line -----------------------------------------------------------------------------------------------
def _head(source: Source) -> str:
    """The first line that is not blank."""
    with source.plain.open("rb") as file:
        for line in file:
            try:
                head = line.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError:
                refuse_encoding(source.plain, source.path)
                raise
            if head.strip():
                return head
    return ""


def _without_excels_line(source: Source, target: Path) -> Source:
    """The file without a first line `sep=;`, by which Excel is told the separator; the header shows it too."""
    with source.plain.open("rb") as file:
        first = file.readline(64)
        if not re.fullmatch(rb'(\xef\xbb\xbf)?"?sep=.{1,2}"?\r?\n', first, re.IGNORECASE):
            return source
        with target.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    return replace(source, plain=target)


def _separator(head: str, kind: str) -> str:
    usual = _SEPARATORS[kind]
    if usual in head:
        return usual
    longer = next((each for each in _LONGER if each in head), None)
    if longer is not None:
        return longer
    return max(_OTHERS, key=head.count) if any(mark in head for mark in _OTHERS) else usual


def _fields(head: str, separator: str, quote: str | None) -> list[str]:
    quoting: Any = csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL
    try:
        return next(csv.reader([head], delimiter=separator, quoting=quoting), [])
    except csv.Error:  # a field longer than that module takes
        return []


def _named_twice(fields: list[str]) -> dict[str, tuple[str, str]]:
    """The columns whose name another one has too, of which the reader renames the later."""
    why = ("two columns have this name", "Rename one of them in the header.")
    return {name: why for name, count in Counter(fields).items() if count > 1}


def _refuse_header_again(file: Path, source: Source, eol: int) -> None:
    """Raises where the header stands a second time, as where files were joined."""
    with file.open("rb") as open_file, mmap.mmap(open_file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        end = bytes([eol])
        cut = whole.find(end)
        head = whole[:cut].removeprefix(b"\xef\xbb\xbf")
        if cut <= 0 or not re.search(rb"[A-Za-z]", head):
            return
        at = whole.find(end + head + end, cut)
        if at >= 0:
            row = whole[: at + 1].count(end)
            raise DataError(
                f"{source.path}, row {row}: the header again; were files joined?",
                "Remove that line, or give the files one by one.",
            )


# ---- files that are written anew ----------------------------------------------------------------------------------
def _readable(files: list[Path], dialect: Dialect, form: Delimiters, where: str, folder: Path) -> list[Path]:
    """The files as polars reads them."""
    if dialect.plain:
        return files
    done = []
    for at, (file, rows) in enumerate(zip(files, dialect.rows, strict=True)):
        target = folder / f"{at}.rewritten"
        rewrite(file, target, dialect, form)
        check_rewritten(target, rows, form, where)
        done.append(target)
    return done


def _single_blanks(file: Path, target: Path, eol: int) -> Path:
    """A copy in which one blank stands between words, and none around them."""
    end = bytes([eol])
    with target.open("wb") as out:
        for block in blocks(file, eol):
            block = re.sub(rb"[ \t]+", b" ", block).replace(b" " + end, end).replace(end + b" ", end)
            out.write(block.removeprefix(b" ").replace(b" \r\n", b"\r\n"))
    return target


def _one_byte(files: list[Path], folder: Path, separator: str, eol: int) -> tuple[list[Path], str]:
    """Copies with one byte in place of a separator of several, and that byte."""
    long = separator.encode()
    taken: set[int] = set()
    for file in files:
        for block in blocks(file, eol):
            taken |= {byte for byte in _UNUSED if byte in block}
    free = next((byte for byte in _UNUSED if byte not in taken), None)
    if free is None:
        raise DataError(
            f"{files[0]} holds every character that could stand for {separator!r}", "Use another separator."
        )
    copies = []
    for at, file in enumerate(files):
        target = folder / f"{at}.one-byte"
        with target.open("wb") as out:
            for block in blocks(file, eol):
                out.write(block.replace(long, bytes([free])))
        copies.append(target)
    return copies, chr(free)


# ---- the scan -----------------------------------------------------------------------------------------------------
def _scan(
    file: Path, source: Source, separator: str, quote: str | None, eol: int, given: Sequence[str] | None
) -> pl.LazyFrame:
    names = None if given is None else {name or f"{_NAMELESS}{at}": pl.String() for at, name in enumerate(given)}
    lazy = pl.scan_csv(
        file,
        separator=separator,
        quote_char=quote,
        infer_schema=False,
        glob=False,
        eol_char=chr(eol),
        has_header=names is None,
        schema=names,
    )
    return lazy.with_columns(*(pl.lit(value, pl.String).alias(name) for name, value in source.fixed.items()))


def _schema(scan: pl.LazyFrame, source: Source, explain: Any) -> list[str]:
    return list(Table(scan, str(source.path), {}, explain).schema)
