"""Small files in the layouts of public data sets and of what databases and programs export, with their right values."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from llmd4rec.data.ingest.readers import open_table
from llmd4rec.data.ingest.separated import Layout
from llmd4rec.errors import DataError

Row = tuple[str | None, ...]


def read(tmp_path: Path, name: str, text: str | bytes, layout: Layout | None = None) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with open_table(path, layout=layout) as table:
        table.refuse_unfit(table.schema)
        return table.collect([pl.col(name) for name in table.schema]).rows()


BOOKS = (
    '"ISBN";"Book-Title";"Publisher"\r\n'
    '"0195153448";"Classical Mythology";"Oxford"\r\n'
    '"078946697X";"DK Readers: Say \\"Hi\\"; Level 4\\"";"DK"\r\n'
    '"0345402871";"Air\\\\";"Ball"\r\n'
)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        pytest.param(
            "BX.csv", BOOKS,
            [("0195153448", "Classical Mythology", "Oxford"), ("078946697X", 'DK Readers: Say "Hi"; Level 4"', "DK"),
             ("0345402871", "Air\\", "Ball")], id="Book-Crossing",
        ),
        pytest.param(
            "excel.csv", "sep=;\r\nuser;item;rating\r\n1;a;4,5\r\n2;b;3\r\n", [("1", "a", "4,5"), ("2", "b", "3")],
            id="Excel with its separator line",
        ),
        pytest.param(
            "excel.txt", "user\titem\r\n1\t\"a, \"\"b\"\"\"\r\n".encode("utf-16"), [("1", 'a, "b"')],
            id="Excel, Unicode text",
        ),
        pytest.param(
            "snowflake.csv", "USER,ITEM,NOTE\n1,a,red\\, green\n2,b,C:\\\\x\n",
            [("1", "a", "red, green"), ("2", "b", "C:\\x")], id="Snowflake without quotes",
        ),
        pytest.param(
            "snowflake.csv", '"USER","ITEM","NOTE"\n"1","a","say ""x"""\n"2","b",""\n',
            [("1", "a", 'say "x"'), ("2", "b", "")], id="Snowflake with quotes",
        ),
        pytest.param(
            "bigquery.csv", 'user,item,title\n1,a,"He said ""no""\nand left"\n2,b,\n',
            [("1", "a", 'He said "no"\nand left'), ("2", "b", None)], id="BigQuery with a line end in a field",
        ),
        pytest.param(
            "mysql.txt", "1\ta\tx\\\ty\n2\tb\tz\n", [("1", "a", "x\ty"), ("2", "b", "z")], id="mysqldump --tab",
        ),
        pytest.param(
            "mysql.csv", '"user","item","note"\n"1","a","5\\" \\\\ x"\n"2","b",\\N\n',
            [("1", "a", '5" \\ x'), ("2", "b", "\\N")], id="MySQL, enclosed",
        ),
        pytest.param(
            "duckdb.csv", 'user|item|note\n1|a|"x|y ""z"""\n2|b|\n', [("1", "a", 'x|y "z"'), ("2", "b", None)],
            id="DuckDB with bars",
        ),
        pytest.param(
            "pandas.csv", ',user,item\n0,1,"a, b"\n1,2,c\n', [("0", "1", "a, b"), ("1", "2", "c")],
            id="pandas with its index",
        ),
        pytest.param(
            "lastfm360.tsv", 'user\tartist\tplays\nx\tThe "5" Royales\t3\ny\t"Weird Al" Yankovic\t4\nz\t12" Mix\t1\n',
            [("x", 'The "5" Royales', "3"), ("y", '"Weird Al" Yankovic', "4"), ("z", '12" Mix', "1")],
            id="Last.fm, marks in names between tabs",
        ),
        pytest.param(
            "spark.csv",
            'user,item,note\n1,a,"{\\"k\\":\\"v, w\\"}"\n2,b,""\n', [("1", "a", '{"k":"v, w"}'), ("2", "b", "")],
            id="Spark, JSON in a field",
        ),
        pytest.param(
            "movies.dat", "movie::title::genres\n1::Face/Off: A (1997)::Action|Drama\n2::\"Great\" Escape::War\n",
            [("1", "Face/Off: A (1997)", "Action|Drama"), ("2", '"Great" Escape', "War")], id="MovieLens with a header",
        ),
        pytest.param(
            "blank.csv", "\n\nuser,item\n1,a\n\n2,b\n", [("1", "a"), (None, None), ("2", "b")], id="blank lines",
        ),
        pytest.param(
            "r.txt",
            '"user" "item"\n"1" "a"\n"2" "b c"\n', [("1", "a"), ("2", "b c")], id="R's write.table between blanks",
        ),
        pytest.param(
            "bigquery.json", '{"user":"1","item":"a","n":"9007199254740993"}\n{"user":"2","item":"b"}\n',
            [("1", "a", "9007199254740993"), ("2", "b", None)], id="BigQuery JSON: long numbers as texts",
        ),
        pytest.param(
            "python.json", '{"user": 1, "item": "NaN", "x": NaN}\n{"user": 2, "item": "-Infinity", "x": -Infinity}\n',
            [("1", "NaN", None), ("2", "-Infinity", None)], id="Python's json: NaN",
        ),
    ],
)  # fmt: skip
def test_exports(tmp_path: Path, name: str, text: str | bytes, rows: list[Row] | None) -> None:
    layout = Layout(columns=("user", "item", "note")) if name == "mysql.txt" else None
    if rows is None:
        with pytest.raises(DataError):
            read(tmp_path, name, text, layout)
    else:
        assert read(tmp_path, name, text, layout) == rows


@pytest.mark.parametrize(
    ("name", "line", "names"),
    [
        ("yoochoose-clicks.dat", "1,2014-04-07T10:51:09.277Z,214536502,0", "user,time,item,"),
        ("UserBehavior.csv", "1,2268318,2520377,pv,1511544070", "user,item,,,time"),
        ("Gowalla_totalCheckins.txt", "0\t2010-10-19T23:55:27Z\t30.23\t-97.79\t22847", "user,time,item,,"),
        ("ratings_Beauty.csv", "A39HTATAQ9V7YF,0205616461,5.0,1369699200", "user,item,rating,time"),
        ("u.data", "196\t242\t3\t881250949", "user,item,rating,time"),
        ("foursquare.tsv", "470\t49bb\tStore\t40.7\tTue Apr 03 18:00:09 +0000 2012", "user,item,,,time"),
        ("jester.csv", "1,a,-7.82\n1,b,8.79", "user,item,time"),
    ],
)
def test_public_sets_without_a_header_are_told_how(tmp_path: Path, name: str, line: str, names: str) -> None:
    with pytest.raises(DataError, match="first line looks like data") as caught:
        read(tmp_path, name, line + "\n")
    assert f"--columns {names}" in str(caught.value)
    given = Layout(columns=tuple(f"c{at}" for at in range(len(line.splitlines()[0].replace("\t", ",").split(",")))))
    assert read(tmp_path, name, line + "\n", given)[0] == tuple(line.splitlines()[0].replace("\t", ",").split(","))


@pytest.mark.parametrize(
    "value",
    [{"user": {"0": 1}, "item": {"0": 2}}, {"rows": [{"user": 1}]}],
    ids=["pandas by columns", "rows in a field"],
)
def test_json_of_one_object_says_what_is_wrong(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="no plain values") as caught:
        read(tmp_path, "a.json", json.dumps(value))
    assert "records" in caught.value.remedy
