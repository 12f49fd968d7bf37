"""CSV dialects: each way to write quotation marks gives the rows that were meant, or an error that names the row."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from llmd4rec.data.ingest.readers import open_table
from llmd4rec.data.ingest.separated import Layout
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import DataError


def rows_of(folder: Path, text: str, name: str = "log.csv", **layout: object) -> list[tuple[str | None, ...]]:
    path = folder / name
    path.write_bytes(text.encode())
    with open_table(path, layout=Layout(**layout)) as table:  # type: ignore[arg-type]
        table.refuse_unfit(table.schema)
        return table.collect([pl.col(name) for name in table.schema]).rows()


def said(folder: Path, text: str, name: str = "log.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    with open_table(path) as table:
        return " ".join(table.warnings)


@pytest.mark.parametrize(
    ("name", "text", "last"),
    [
        pytest.param("a.csv", 'a,b,c\n1,"a 5\\" disk",3\n', 'a 5" disk', id="spark"),
        pytest.param("a.csv", 'a,b,c\n1,"say \\"hi\\", he said",3\n', 'say "hi", he said', id="spark with separator"),
        pytest.param("a.csv", 'a,b,c\n1,"\\"\\"",3\n2,x,4\n', '""', id="spark, marks alone"),
        pytest.param("a.csv", 'a,b,c\n1,"C:\\dir\\",3\n', "C:\\dir\\", id="field ends in a backslash"),
        pytest.param("a.csv", 'a,b,c\n1,C:\\dir\\,3\n', "C:\\dir\\", id="bare field ends in a backslash"),
        pytest.param("a.csv", 'a,b,c\n1,"x\\"y\\\\",3\n', 'x"y\\', id="mysql: mark and backslash"),
        pytest.param("a.csv", 'a,b,c\n1,x\\,y,3\n', "x,y", id="python without quotes"),
        pytest.param("a.csv", 'a,b,c\n1,x\\\ny,3\n', "x\ny", id="mysql: line end"),
        pytest.param("a.csv", 'a,b,c\n1,"a 5" disk",3\n', 'a 5" disk', id="no escapes"),
        pytest.param("a.csv", 'a,b,c\n1,"Disk 5"",3\n', 'Disk 5"', id="no escapes, at the end"),
        pytest.param("a.csv", 'a,b,c\n1,Disk 5",3\n', 'Disk 5"', id="no quotes"),
        pytest.param("a.csv", 'a,b,c\r\n1,"x ""y"", z",3\r\n', 'x "y", z', id="excel"),
        pytest.param("a.csv", 'a;b;c\n1;"x;y";3\n', "x;y", id="semicolons"),
        pytest.param("a.csv", 'a,b,c\n1,"{""k"": ""v\\""w""}",3\n', '{"k": "v\\"w"}', id="JSON in a field"),
        pytest.param("a.csv", 'a,b,c\n1,"line\nline, two",3\n', "line\nline, two", id="two lines"),
        pytest.param("a.tsv", 'a\tb\tc\n1\t"a \\"b\\"\tc"\t3\n', 'a "b"\tc', id="tabs, spark"),
        pytest.param("a.tsv", 'a\tb\tc\n1\t"Heroes" (live)\t3\n', '"Heroes" (live)', id="tabs, marks are text"),
        pytest.param("a.dat", 'a::b::c\n1::"Heroes" (1977)::3\n', '"Heroes" (1977)', id="two colons, marks are text"),
        pytest.param("a.csv", "a,b,c\r1,x,3\r2,y,4\r", "x", id="line ends of old Macs"),
        pytest.param("a.txt", "a\x01b\x01c\n1\x01x,y\x013\n", "x,y", id="hive"),
        pytest.param("a.txt", "a||b||c\n1||x|y||3\n", "x|y", id="two bars"),
    ],
)  # fmt: skip
def test_each_dialect_is_read(tmp_path: Path, name: str, text: str, last: str) -> None:
    rows = rows_of(tmp_path, text, name)
    assert rows[0] == ("1", last, "3")
    assert len(rows) == (2 if "y,4" in text or "x,4" in text else 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param('a,b,c\n1,"x,3\n2,y,4\n', ["row 1: a quotation mark that is never", "--quoting"], id="open"),
        pytest.param('a,b,c\n0,"k",0\n1,"x,3\n2,"y",4\n', ["row 2: a quotation mark"], id="open before a quoted field"),
        pytest.param('a,b,c\n1,2,3,4\n', ["row 1: 4 fields where the header names 3"], id="a field too many"),
        pytest.param('a,b,c\n1,2\n2,3\n', ["rows 1 to 2", "as many as one row"], id="a row cut in two"),
        pytest.param('a,b,c\n1,2,3\na,b,c\n4,5,6\n', ["row 2: the header again"], id="two headers"),
        pytest.param('a,b\n1,"x\n2,y"\n', ["two ways", "--quoting none"], id="rows that may be one or two"),
        pytest.param('a,b,c\n1,C:\\\\x,3\n', ["column 'b'", "two ways", "--quoting double, backslash"], id="two"),
    ],
)  # fmt: skip
def test_what_has_no_one_meaning_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path, text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_option_decides(tmp_path: Path) -> None:
    text = "a,b,c\n1,C:\\\\x,3\n"
    assert rows_of(tmp_path, text, quoting="double") == [("1", "C:\\\\x", "3")]
    assert rows_of(tmp_path, text, quoting="backslash") == [("1", "C:\\x", "3")]
    text = 'a,b\n1,"x\n2,y"\n'
    assert rows_of(tmp_path, text, quoting="double") == [("1", "x\n2,y")]
    assert rows_of(tmp_path, text, quoting="none") == [("1", '"x'), ("2", 'y"')]
    assert rows_of(tmp_path, 'a\tb\n1\t"Heroes"\n2\tx\n', "a.tsv", quoting="none") == [("1", '"Heroes"'), ("2", "x")]


def test_short_rows_are_said(tmp_path: Path) -> None:
    text = "a,b,c,d\n1,2,3,4\n1,2,3\n1,2,3,4\n1,2,3\n"
    assert "2 rows have fewer than the 4 fields of the header (row 2 has 3)" in said(tmp_path, text)
    assert rows_of(tmp_path, text)[1] == ("1", "2", "3", None)


def test_a_row_too_long_far_from_the_columns_in_use_is_refused(tmp_path: Path) -> None:
    """polars does not look at fields behind the last column in use."""
    (tmp_path / "log.csv").write_text("user,item,time,note\nu,a,1,x\nu,b,2,x,y\nu,c,3\nv,a,4,x\n")
    with pytest.raises(DataError, match="row 2: 5 fields where the header names 4"):
        prepare_files(tmp_path / "log.csv", None, tmp_path / "out")


def test_spark_logs_and_catalogues_keep_their_rows(tmp_path: Path) -> None:
    log = ["user_id,item_id,review,timestamp"]
    for user in range(6):
        for at in range(4):
            review = '"a 5\\" disk, ok"' if at == 2 else "fine"
            log.append(f"u{user},i{(user + at) % 5},{review},{1600000000 + 10 * user + at}")
    items = ["item_id,title", 'i0,"Disk 5\\""', 'i1,"A \\"b\\", c"', "i2,C", "i3,D", 'i4,"E"']
    (tmp_path / "log.csv").write_text("\n".join(log) + "\n")
    (tmp_path / "items.csv").write_text("\n".join(items) + "\n")
    data = prepare_files(tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "out")
    assert data.num_interactions == 24
    titles = dict(zip(data.item_ids, data.catalogue["title"], strict=True))
    assert titles == {"i0": 'Disk 5"', "i1": 'A "b", c', "i2": "C", "i3": "D", "i4": "E"}
    assert data.report["catalogue"]["of_these_without_a_row_here"] == 0


def test_one_dialect_for_all_parts(tmp_path: Path) -> None:
    """The second part alone could be read in two ways; the first says which."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "part-1.csv").write_text('a,b,c\n1,"x\\"y",3\n')
    (parts / "part-2.csv").write_text('c,b,a\n6,"C:\\\\z",4\n')
    with open_table(parts) as table:
        assert table.collect([pl.all().exclude("__row__")]).rows() == [("1", 'x"y', "3"), ("4", "C:\\z", "6")]
        assert table.unfit == {}


@pytest.mark.parametrize("times", [1, 9_000])
def test_rows_are_counted_over_blocks(tmp_path: Path, times: int) -> None:
    block = 'u,"two\nlines, ""x""",1\nv,plain,2\nw,"a, b",3\n'
    rows = rows_of(tmp_path, "a,b,c\n" + times * block)
    assert rows == times * [("u", 'two\nlines, "x"', "1"), ("v", "plain", "2"), ("w", "a, b", "3")]
    escaped = block.replace('""x""', '\\"x\\"')
    assert rows_of(tmp_path, "a,b,c\n" + times * escaped) == rows
    with pytest.raises(DataError, match=f"row {3 * times + 1}: a quotation mark that is never closed"):
        rows_of(tmp_path, "a,b,c\n" + times * block + 'x,"y,1\n')
