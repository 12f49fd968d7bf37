"""Tables of awkward texts, written by independent writers in many dialects, come back equal or are refused."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmd4rec.data.ingest.readers import open_table
from llmd4rec.errors import DataError

Rows = list[list[str]]
HEADER = ["id", "first", "second"]
#: Everything that a dialect may trip over, and a few letters.
PIECES = ['"', '""', "\\", "\\\\", ",", ";", "\t", "|", "\n", "\r\n", " ", "a", "b", "n", "'", ', "', '",', '\\"', "é"]
cells = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
plain_cells = st.text("abc", max_size=3)
tables = st.lists(
    st.tuples(st.one_of(plain_cells, cells), st.one_of(plain_cells, plain_cells, cells)), min_size=1, max_size=7
).map(lambda rows: [[f"r{at}", *row] for at, row in enumerate(rows)])


def with_csv(draw: st.DrawFn, rows: Rows, separator: str) -> str:
    doubled = draw(st.booleans())
    escape = draw(st.sampled_from([None, "\\"])) if doubled else "\\"
    kinds: list[Literal[0, 1, 2, 3]] = [csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE]
    quoting = draw(st.sampled_from(kinds))
    if quoting == csv.QUOTE_NONE:
        escape = "\\"
    out = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(
        out, delimiter=separator, doublequote=doubled, escapechar=escape, quoting=quoting, lineterminator=end
    )
    writer.writerows([HEADER, *rows])
    return out.getvalue()


def with_polars(draw: st.DrawFn, rows: Rows, separator: str) -> str:
    styles: list[Literal["necessary", "always", "non_numeric"]] = ["necessary", "always", "non_numeric"]
    style = draw(st.sampled_from(styles))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    frame = pl.DataFrame(rows, schema=HEADER, orient="row")
    return frame.write_csv(separator=separator, quote_style=style, line_terminator=end)


def with_pandas(draw: st.DrawFn, rows: Rows, separator: str) -> str:
    escape = draw(st.sampled_from([None, "\\"]))
    doubled = escape is None or draw(st.booleans())
    frame = pd.DataFrame(rows, columns=HEADER)
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    return str(frame.to_csv(index=False, sep=separator, escapechar=escape, doublequote=doubled, quoting=quoting))


def as_spark(draw: st.DrawFn, rows: Rows, separator: str) -> str:
    """Quotes where needed, marks and backslashes in quotes behind a backslash."""

    def field(text: str) -> str:
        if any(mark in text for mark in (separator, '"', "\n", "\r")):
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return text or draw(st.sampled_from(["", '""']))

    return "".join(separator.join(map(field, row)) + "\n" for row in [HEADER, *rows])


def as_mysql(draw: st.DrawFn, rows: Rows, separator: str) -> str:
    """`INTO OUTFILE` with `ENCLOSED BY '"'`."""

    def field(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return "".join(separator.join(map(field, row)) + "\n" for row in [HEADER, *rows])


def as_r(draw: st.DrawFn, rows: Rows, separator: str) -> str:
    """`write.table` with its own default: marks behind a backslash, backslashes as they are."""
    return "".join(
        separator.join('"' + text.replace('"', '\\"') + '"' for text in row) + "\n" for row in [HEADER, *rows]
    )


def without_escapes(draw: st.DrawFn, rows: Rows, separator: str) -> str:
    """Quotes around what holds a separator or begins with a mark, and nothing else done."""

    def field(text: str) -> str:
        return f'"{text}"' if separator in text or "\n" in text or text.startswith('"') or every else text

    every = draw(st.booleans())
    return "".join(separator.join(map(field, row)) + "\n" for row in [HEADER, *rows])


Writer = Callable[[st.DrawFn, Rows, str], str]
#: With these a text always has one meaning to somebody who knows the writer.
SOUND: list[Writer] = [with_csv, with_polars, with_pandas, as_spark, as_mysql]
BAD: list[Writer] = [as_r, without_escapes]


@st.composite
def written(draw: st.DrawFn, writers: list[Writer]) -> tuple[Rows, str, str]:
    rows = draw(tables)
    if writers is BAD:  # what they write of these is exactly what a sound program writes of another text
        rows = [[re.sub('"+', '"', text.replace("\\", "/")).lstrip('"') for text in row] for row in rows]
    separator = draw(st.sampled_from([",", ",", ";", "\t", "|"]))
    return rows, draw(st.sampled_from(writers))(draw, rows, separator), separator


def read(text: str, name: str = "log.csv") -> tuple[dict[str, list[str]], set[str], tuple[str, ...]]:
    """The columns, those that may not be used, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(text.encode())
        with open_table(path) as table:
            frame = table.collect([pl.col(name).fill_null("") for name in table.schema])
            return frame.to_dict(as_series=False), set(table.unfit), table.warnings


def check(rows: Rows, text: str, *, said: bool = False) -> str:
    """Compares what was read with what was written; says which it was."""
    try:
        columns, unfit, warnings = read(text)
    except DataError:
        return "refused"
    if said and any("fewer than the" in warning or "several lines" in warning for warning in warnings):
        return "said"
    for at, name in enumerate(HEADER):
        expected = [row[at] for row in rows]
        if name in unfit:
            assert len(columns[name]) == len(rows)
            continue
        assert columns[name] == expected, (text, columns, unfit, warnings)
    return "unfit" if unfit else "equal"


SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@SETTINGS
@given(written(SOUND))
def test_what_programs_write_is_read_back_or_refused(case: tuple[Rows, str, str]) -> None:
    rows, text, _ = case
    check(rows, text)


@SETTINGS
@given(written(BAD))
def test_what_is_badly_written_is_read_back_or_refused(case: tuple[Rows, str, str]) -> None:
    rows, text, _ = case
    check(rows, text, said=True)
