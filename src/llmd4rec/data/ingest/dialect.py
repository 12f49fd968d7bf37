"""Which dialect of separated values a text is written in: how quotation marks are quoted.

Excel, pandas and polars double a mark inside a quoted field; Spark, MySQL and R put a backslash before it; some
programs do neither, and some know no quotes. A reader that takes one for another swallows rows up to the next mark. So
each way is tried on the whole text, and one is taken if under it every row has as many fields as the header. Where
several do and do not say the same, it takes a person to tell which is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from llmd4rec.data.ingest.choices import Quoting
from llmd4rec.data.ingest.delimited import QUOTE, Delimiters, Reading, blocks, rewritten, same_fields
from llmd4rec.data.ingest.dialect_fit import QUOTES_ARE_QUOTES, DialectFit
from llmd4rec.errors import ConfigError, DataError

_DOUBLE = Reading("double")
_QUOTED = Reading("backslash", doubled=False, escapes="quoted")
_ANYWHERE = Reading("backslash", doubled=False, escapes="anywhere")
_RAW = Reading("double", doubled=False, lenient=True)
_DOUBLE_LENIENT = Reading("double", lenient=True)
_BACKSLASH_LENIENT = Reading("backslash", doubled=False, escapes="quoted", lenient=True)
_NONE = Reading("none", marks=False)
_STRICT, _LENIENT = (_DOUBLE, _QUOTED, _ANYWHERE), (_RAW, _DOUBLE_LENIENT, _BACKSLASH_LENIENT, _NONE)


@dataclass(frozen=True)
class Dialect:
    """How to read a text.

    Args:
        reading: the way that fits.
        pairs: whether two backslashes, where they may escape, are one.
        plain: whether polars reads it as it is, with or without quotes.
        quotes: whether it is to look for quotes.
        rows: how many data rows each file has.
        unfit: columns, by number, that two ways read differently.
        warnings: what was done that a person should know.
    """

    reading: Reading
    pairs: bool
    plain: bool
    quotes: bool
    rows: tuple[int, ...]
    unfit: frozenset[int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """What messages call things: the text, and the option that settles its quoting."""

    where: str
    option: str


def checked_quoting(quoting: str) -> Quoting:
    """The name of a way to quote.

    Raises:
        ConfigError: there is none of this name.
    """
    for known in get_args(Quoting):
        if quoting == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"quoting cannot be {quoting!r}", f"Choose one of: {', '.join(get_args(Quoting))}.")


def find_dialect(files: Sequence[Path], form: Delimiters, quoting: Quoting, named: Named) -> Dialect:
    """The dialect under which every row of all the files has as many fields as the header.

    Args:
        files: parts of one table, UTF-8; without `form.columns`, each begins with a header.
        form: separator, line end and, where there is no header, the number of columns.
        quoting: `auto`, or the way to take.
        named: for messages.

    Raises:
        DataError: no way fits (names the row), or several do and disagree (names the option).
    """
    tried: dict[Reading, list[DialectFit]] = {}

    def fit(reading: Reading) -> list[DialectFit]:
        if reading not in tried:
            tried[reading] = [_fit(file, reading, form) for file in files]
        return tried[reading]

    strict, lenient = (
        [reading for reading in group if quoting in ("auto", reading.name)] for group in (_STRICT, _LENIENT)
    )
    if quoting == "none":
        strict, lenient = lenient, []
    elif quoting != "auto":
        strict.reverse()  # where several forms fit, a backslash escapes everywhere, and two marks are one
        lenient.reverse()
    escaping = any(one.escaping or one.pairs_in or one.pairs_out for one in fit(_DOUBLE))
    if not escaping and quoting == "auto":
        strict, lenient = [_DOUBLE], [reading for reading in lenient if reading.escapes == "no"]
    for group in (strict, lenient):
        fitting = [reading for reading in group if _acceptable(reading, fit(reading), form, quoting)]
        if fitting == [_DOUBLE] and quoting == "auto" and any(one.doubled_in_lines for one in fit(_DOUBLE)):
            # A row may have swallowed others up to a mark that happens to stand right.
            fitting += [_RAW] if all(one.fits for one in fit(_RAW)) else []
        if fitting:
            return _settled(files, fitting, {reading: fit(reading) for reading in fitting}, form, quoting, named)
    for reading in strict:
        if all(one.sound for one in fit(reading)):
            return _with_short_rows(reading, fit(reading), form, quoting, named)
    raise _refusal(fit(strict[0]), files, named, quoting)


def _fit(file: Path, reading: Reading, form: Delimiters) -> DialectFit:
    found = DialectFit(reading, form, first_row=0 if form.columns is None else 1)
    for block in blocks(file, form.eol):
        found.feed(block)
        if reading.lenient and not found.sound:
            break
    found.end()
    return found


def _acceptable(reading: Reading, fits: list[DialectFit], form: Delimiters, quoting: Quoting) -> bool:
    if not all(one.fits for one in fits):
        return False
    if reading.marks or quoting == "none":
        return True
    return form.separator not in QUOTES_ARE_QUOTES and all(one.unbalanced is None for one in fits)


def _settled(
    files: Sequence[Path],
    fitting: list[Reading],
    fits: dict[Reading, list[DialectFit]],
    form: Delimiters,
    quoting: Quoting,
    named: Named,
) -> Dialect:
    """The first of the readings that fit, with the columns that another one reads differently."""
    chosen = fitting[0]
    others = fitting[1:] if quoting == "auto" else []
    other = next(
        (each for each in others if not all(same_fields(file, chosen, each, form) for file in files)),
        None,
    )
    if other is not None:
        rows = [sum(one.rows for one in fits[reading]) for reading in (chosen, other)]
        names = [chosen.name, "none" if other.name == chosen.name else other.name]
        raise DataError(
            f"{named.where} can be read in two ways, in which its quotation marks end at different places: as "
            f"{rows[0]:,} or as {rows[1]:,} rows with the header",
            f"Say which is right with {named.option} {names[0]} or {named.option} {names[1]}.",
        )
    mine = fits[chosen]
    lines_fit = all(one.lines_fit and not one.doubled for one in mine)
    if quoting == "auto" and any(one.several_lines for one in mine) and lines_fit:
        raise DataError(
            f"{named.where} can be read in two ways: some quoted fields hold line ends, but every line would be a row "
            "by itself if a quotation mark was lost there",
            f"Say which is right with {named.option} {chosen.name} or {named.option} none.",
        )
    pairs, unfit = _backslashes(chosen, fitting, mine, quoting)
    if quoting == "auto":
        unfit |= _differing(chosen, fitting, fits, form)
    return _dialect(chosen, pairs, unfit, mine, named)


def _backslashes(
    chosen: Reading, fitting: list[Reading], fits: list[DialectFit], quoting: Quoting
) -> tuple[bool, set[int]]:
    """Whether two backslashes are one, and the columns where that cannot be told.

    Programs that escape backslashes escape all of them. So a single one that escapes nothing shows that two are two.
    """
    inside: set[int] = set().union(*(one.pairs_in for one in fits))
    outside: set[int] = set().union(*(one.pairs_out for one in fits))
    single_in = any(one.single_in for one in fits)
    single = single_in or any(one.single_out for one in fits)
    if chosen.escapes == "no":
        if quoting != "auto" or chosen.lenient:
            return False, set()
        return False, (set() if single_in else inside) | (set() if single else outside)
    pairs = not (single_in if chosen.escapes == "quoted" else single)
    if quoting != "auto" or single or (chosen.escapes == "anywhere" and _QUOTED not in fitting):
        return pairs, set()
    return pairs, outside if _ANYWHERE in fitting else set()


def _differing(
    chosen: Reading, fitting: list[Reading], fits: dict[Reading, list[DialectFit]], form: Delimiters
) -> set[int]:
    """The columns in which readings with the same fields disagree on what these say."""
    mine = fits[chosen]
    columns: set[int] = set()
    if chosen.lenient:
        doubles: set[int] = set().union(*(one.doubles for one in mine))
        if _DOUBLE_LENIENT in fitting and _RAW in fitting:
            columns |= doubles
        if chosen.escapes == "no":
            columns |= set().union(*(one.before_marks for one in mine))
        if _BACKSLASH_LENIENT in fitting and len(fitting) > 1:
            other = fits[_BACKSLASH_LENIENT]
            columns |= set().union(*(one.escaped_columns | one.pairs_in | one.pairs_out for one in other))
        if _NONE in fitting and chosen is not _NONE:
            columns |= set().union(*(one.quoted_columns for one in mine))
    elif chosen is _DOUBLE and form.separator not in QUOTES_ARE_QUOTES and not any(one.needed for one in mine):
        # Few know quotes between tabs. Those that do quote whole columns, or the fields that need it.
        rows = sum(one.rows for one in mine)
        wrapped = [sum(int(one.wrapped[at]) for one in mine) for at in range(min(len(one.wrapped) for one in mine))]
        data = rows - (len(mine) if form.columns is None else 0)
        columns |= {at for at, count in enumerate(wrapped) if 0 < count < data}
    return columns


def _dialect(reading: Reading, pairs: bool, unfit: set[int], fits: list[DialectFit], named: Named) -> Dialect:
    headers = int(fits[0].form.columns is None)
    warnings = []
    strays = [one.stray for one in fits if one.stray is not None]
    if reading.lenient and strays:
        warnings.append(
            f"{named.where}: quotation marks that open or close no field were read as part of the text, "
            f"since row {strays[0]} has one inside a field"
        )
    if not reading.marks:
        warnings.append(f"{named.where}: quotation marks were read as part of the text")
    if reading.name == "backslash":
        warnings.append(f'{named.where}: it was read with marks escaped by a backslash (\\") in quoted fields')
    spread = next((one.spread for one in fits if one.spread is not None), None)
    if spread is not None:
        warnings.append(
            f"{named.where}: row {spread[0]} has several lines of which each could be a row by itself, for "
            f"{spread[1]:,} rows; was a quotation mark lost there?"
        )
    bare = reading.lenient and reading.marks and not any(one.quoted for one in fits)
    strict = not reading.lenient and reading.escapes == "no"
    plain = strict or not reading.marks or (bare and reading.escapes == "no")
    if strict and not any(one.quoted for one in fits):
        warnings = [one for one in warnings if "part of the text" not in one]
    rows = tuple(max(0, one.rows - headers) for one in fits)
    return Dialect(reading, pairs, plain, reading.marks and not bare, rows, frozenset(unfit), tuple(warnings))


def _with_short_rows(
    reading: Reading, fits: list[DialectFit], form: Delimiters, quoting: Quoting, named: Named
) -> Dialect:
    """Rows that end before their last fields are read, and said, unless a line end seems to have cut one in two."""
    for one in fits:
        if (broken := one.broken()) is not None:
            raise DataError(
                f"{named.where}, rows {broken[0]} to {broken[1]}: each has too few of the {one.width} fields, and "
                "together they have as many as one row",
                "Quote fields that hold a line end, or remove it.",
            )
    pairs, unfit = _backslashes(reading, [reading], fits, quoting)
    dialect = _dialect(reading, pairs, unfit, fits, named)
    row, fields = next(each for one in fits for each in one.short if each[1])
    width, count = fits[0].width, sum(one.num_short for one in fits)
    note = (
        f"{named.where}: {count:,} rows have fewer than the {width} fields of the header (row {row} has {fields}); "
        "the last ones were read as empty"
    )
    return replace(dialect, warnings=(*dialect.warnings, note))


def _refusal(fits: list[DialectFit], files: Sequence[Path], named: Named, quoting: Quoting) -> DataError:
    """What is wrong with the first row that fits nothing."""
    others = [name for name in get_args(Quoting)[1:] if name != quoting]
    also = f"If it is written in another way, say so with {named.option} {' or '.join(others)}."
    at, one = next(((at, each) for at, each in enumerate(fits) if not each.sound), (0, fits[0]))
    where = named.where if len(fits) == 1 else f"{named.where}, {files[at].name}"
    problems = [(row, kind) for row, kind in ((one.stray, "stray"), (one.open, "open")) if row is not None]
    if one.long is not None:
        problems.append((one.long[0], "long"))
    row, kind = min(problems, default=(0, "long"))
    if kind == "long" and one.long is not None:
        header = "the header" if one.form.columns is None else named.option.replace("quoting", "columns")
        return DataError(
            f"{where}, row {row}: {one.long[1]} fields where {header} names {one.width}",
            f"Quote fields that hold the separator, or remove the row. {also if one.quoted else ''}".strip(),
        )
    if kind == "open":
        return DataError(
            f"{where}, row {row}: a quotation mark that is never closed",
            f'Close it, or double it inside a field (""). {also}',
        )
    return DataError(
        f"{where}, row {row}: a quotation mark inside a field, or one that is never closed",
        f'Double it and quote the field ("5"" disk"), or remove it. {also}',
    )


def rewrite(source: Path, target: Path, dialect: Dialect, form: Delimiters) -> None:
    """Writes a text anew with its marks doubled, as polars reads them."""
    inside = False
    with target.open("wb") as out:
        for block in blocks(source, form.eol):
            if not inside and QUOTE not in block and b"\\" not in block:
                out.write(block)
                continue
            done, inside = rewritten(block, dialect.reading, form, inside, dialect.pairs)
            out.write(done)


def check_rewritten(file: Path, rows: int, form: Delimiters, where: str) -> None:
    """Raises where a text that was written anew has other rows than before."""
    found = _fit(file, _DOUBLE, form)
    if not found.sound or found.rows - int(form.columns is None) != rows:
        raise DataError(
            f"{where}: its quotation marks cannot be read without losing rows",
            'Write the file with marks doubled inside quoted fields ("").',
        )
