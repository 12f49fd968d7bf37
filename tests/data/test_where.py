"""Conditions on rows: what is compared as what, what is counted, and what is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.row_filter import Value, condition_text, filtered, parse
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.ingest.table import ROW, table_of
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import ConfigError, DataError, LLMD4RecError

TEXTS = pl.DataFrame(
    {
        "user_id:token": ["u", "NA", "01", "1", " ", "1.0"],
        "rating": ["4.0", "10", "3", None, "-1", "4"],
        "event": ["view", "buy", "View", "buy", "a, b", "it's"],
        "big": ["1234567890123456789", "1234567890123456788", "1", "2", "3", "4"],
        "when": ["2019-12-31 23:59:59", "2020-01-01", "2020-01-02T00:00:00Z", "", "2020-02-01", "2020-03-01"],
        "epoch": ["1577836799", "1577836800", "1577836801", "1577836802", "1577836803", "1577836804"],
        "seen": ["True", "False", "true", "TRUE", "false", ""],
        "User Rating": ["1", "2", "3", "4", "5", "6"],
    }
)
TYPED = pl.DataFrame(
    {
        "small": pl.Series([1, 2, 3, None, 200], dtype=pl.UInt8),
        "half": [0.5, 1.0, float("nan"), None, 4.0],
        "seen": [True, False, None, True, False],
        "day": [date(2020, 1, 1), date(2020, 1, 2), None, date(2020, 1, 3), date(2020, 1, 4)],
        "at": [datetime(2020, 1, 1, hour, tzinfo=UTC) for hour in range(4)] + [None],
        "kind": pl.Series(["a", "b", "a", None, "c"], dtype=pl.Categorical),
        "money": pl.Series(["1.10", "2.20", "3.30", None, "4.40"]).cast(pl.Decimal(10, 2)),
        "millis": [1577836800000, 1577923200000, 1578009600000, None, 1578096000000],
        "tags": [["a"], [], None, ["b"], ["c"]],
    }
)


def rows(frame: pl.DataFrame, *conditions: str) -> list[int]:
    """The rows, from 1, for which all conditions hold."""
    return filtered(table_of(frame, "the log"), conditions)[0].collect([pl.col(ROW)])[ROW].to_list()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("rating >= 4", [1, 2, 6]),
        ("rating>3", [1, 2, 6]),
        ("rating < 4", [3, 5]),
        ("rating <= 3.5", [3, 5]),
        ("rating = 4", [1, 6]),
        ("rating == 4.0", [1, 6]),
        ("rating = '4'", [6]),
        ("rating != -1", [1, 2, 3, 6]),
        ("rating <> -1", [1, 2, 3, 6]),
        ("rating in (4, -1)", [1, 5, 6]),
        ("rating not in (4, -1)", [2, 3]),
        ("user_id != NA", [1, 3, 4, 6]),
        ("user_id:token != 'NA'", [1, 3, 4, 6]),
        ("user_id = '1'", [4]),
        ("user_id = 1", [3, 4, 6]),
        ("event = view", [1]),
        ("event IN (view, 'a, b')", [1, 5]),
        ("event = 'it''s'", [6]),
        ('event = "a, b"', [5]),
        ("big != 1234567890123456789", [2, 3, 4, 5, 6]),
        ("big > 1234567890123456788", [1]),
        ("when >= 2020-01-01", [2, 3, 5, 6]),
        ("when < '2020-01-02 00:00:00'", [1, 2]),
        ("epoch >= 2020-01-01", [2, 3, 4, 5, 6]),
        ("epoch > 1577836803", [6]),
        ("seen = true", [1, 3, 4]),
        ('"User Rating" > 4', [5, 6]),
        ("`User Rating` in (1,2)", [1, 2]),
        ("User Rating > 5", [6]),
    ],
)
def test_conditions_on_texts(condition: str, expected: list[int]) -> None:
    assert rows(TEXTS, condition) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("small > -1", [1, 2, 3, 5]),
        ("small != -1", [1, 2, 3, 5]),
        ("small in (1, 300)", [1]),
        ("small = '2'", [2]),
        ("half >= 1", [2, 5]),
        ("half != 1", [1, 5]),
        ("seen = 1", [1, 4]),
        ("seen != true", [2, 5]),
        ("day > 2020-01-02", [4, 5]),
        ("day = 2020-01-02", [2]),
        ("at >= '2020-01-01 02:00'", [3, 4]),
        ("at < 2020-01-01T01:30:00+00:00", [1, 2]),
        ("kind = a", [1, 3]),
        ("kind in (a, c)", [1, 3, 5]),
        ("money > 2.2", [3, 5]),
        ("millis >= 2020-01-02", [2, 3, 5]),
        ("millis = 1577923200000", [2]),
    ],
)
def test_conditions_on_typed_columns(condition: str, expected: list[int]) -> None:
    assert rows(TYPED, condition) == expected


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("rating", "is no condition"),
        ("rating 4", "is no condition"),
        (">= 4", "is no condition"),
        ("rating >=", "needs a value"),
        ("rating >= 4, 5", "needs one value"),
        ("rating in 4, 5", "its values in brackets"),
        ("rating in ()", "needs a value"),
        ("rating >= 4 and event = view", "Give --where once for each"),
        ("rating = (4)", "is no value"),
        ("ratings >= 4", "Did you mean 'rating'"),
        ("rating >= good", "'rating' (String) cannot be compared with 'good'"),
        ("event > view", "cannot be compared with 'view'"),
        ("when > 03/04/2012", "cannot be compared with '03/04/2012'"),
        ("__import__('os').system('x') = 1", "no column"),
    ],
)
def test_what_is_no_condition_says_so(condition: str, words: str) -> None:
    with pytest.raises(LLMD4RecError) as caught:
        rows(TEXTS, condition)
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("condition", ["seen > 1", "seen = yes!", "half = a", "tags = a", "small > a", "day > 5"])
def test_what_a_type_cannot_be_compared_with_is_named(condition: str) -> None:
    with pytest.raises(LLMD4RecError, match="cannot be compared") as caught:
        rows(TYPED, condition)
    assert caught.value.remedy


def test_parsing() -> None:
    assert parse("a b >= 4").column == "a b"
    assert parse("a in (x, 'y, z', 3)").values == (Value("x"), Value("y, z", quoted=True), Value("3"))
    assert parse(condition_text("User Id", "!=", "it's")).values == (Value("it's", quoted=True),)
    assert parse(condition_text("user_id", "!=", r"\N")).values == (Value(r"\N", quoted=True),)


LOG = """user_id,item_id,rating,time
u,a,4,5
u,b,NA,soon
u,c,5,3
,c,5,3
u,d,,2
u,e,5,6
v,a,1,1
v,b,5,2
"""


def test_conditions_come_before_anything_else_and_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    data = prepare_files(path, None, tmp_path / "out", Prepare(where=("rating != 'NA'", "rating >= 4")))
    assert [data.item_ids[item] for item in data.items] == ["c", "a", "e", "b"]
    steps = [(step["step"], step["rows_in"], step["rows_out"]) for step in data.report["steps"][:4]]
    assert steps == [
        ("read", 8, 8),
        ("where rating != 'NA'", 8, 6),
        ("where rating >= 4", 6, 5),
        ("rows without user or item", 5, 4),
    ]
    first, second = data.report["steps"][1:3]
    assert (first["note"], first["example_rows"]) == ("1 of them have no value in 'rating'", [2, 5])
    assert (second["note"], second["example_rows"]) == ("it does not hold", [7])
    assert data.report["interactions"]["where"] == ["rating != 'NA'", "rating >= 4"]
    assert "| where rating >= 4 | 6 | 5 | 1 |" in (tmp_path / "out" / "report.md").read_text()
    assert Dataset.load(tmp_path / "out").settings["where"] == ["rating != 'NA'", "rating >= 4"]


def test_a_value_that_cannot_be_compared_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    with pytest.raises(DataError) as caught:
        prepare_files(path, None, tmp_path / "out", Prepare(where=("rating >= 4",)))
    assert "row 2, column 'rating': 'NA' cannot be compared with 4 (1 such rows)" in str(caught.value)
    assert '--where "rating != \'NA\'" --where "rating >= 4"' in caught.value.remedy
    with pytest.raises(DataError, match="no row is left where rating = 7") as caught:
        prepare_files(path, None, tmp_path / "out", Prepare(where=("rating = 7",)))
    assert "'4', 'NA', '5', '1'" in caught.value.remedy


def test_conditions_from_python() -> None:
    frame = pl.DataFrame(
        {"user": ["u"] * 4 + ["v"], "item": list("abcda"), "rating": [5, 1, 4, 4, 5], "time": [1, 2, 3, 4, 5]}
    )
    for where in ("rating >= 4", ["rating >= 4"], ("rating > 1", "rating != 3")):
        for made in (frame, frame.lazy(), frame.to_pandas()):
            data = Dataset.from_frames(made, where=where)
            assert [data.item_ids[item] for item in data.items] == ["a", "c", "d", "a"]
    with pytest.raises(ConfigError, match="no condition"):
        Dataset.from_frames(frame, where="rating")


def test_an_unfiltered_rating_click_or_event_is_pointed_out() -> None:
    base = pl.DataFrame({"user": list("uuuuvv"), "item": list("abcdab"), "time": [1, 2, 3, 4, 5, 6]})
    for name, values, example in (
        ("rating:float", ["1", "4", "5", "4", "5", "4"], "rating >= 4"),
        ("Book-Rating", [0, 4, 4, 5, 5, 4], "Book-Rating >= 4"),
        ("is_click", [0, 1, 1, 1, 1, 0], "is_click = 1"),
        ("liked", [True, False, True, True, True, True], "liked = true"),
        ("event_type", ["view", "view", "buy", "view", "view", "buy"], "event_type = 'view'"),
    ):
        frame = base.with_columns(pl.Series(name, values))
        (warning,) = Dataset.from_frames(frame).report["warnings"]
        assert f"every row counts as a choice of its item, whatever it holds in {name!r}" in warning
        assert f'--where "{example}"' in warning
        assert not Dataset.from_frames(frame, where=example).report["warnings"]
    late = pl.DataFrame({"user": ["u", "v"] * 6000, "item": list("abc") * 4000, "click": [1] * 11_999 + [0]})
    assert "whatever it holds in 'click' (0, 1)" in Dataset.from_frames(late, order_by="row").report["warnings"][0]
    same = base.with_columns(rating=pl.lit(5), event=pl.lit("buy"), click=pl.Series(["x"] * 6))
    assert not Dataset.from_frames(same).report["warnings"]
