"""What orders a history: columns of times that no name tells, ties, and rows that lack a time."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.columns import words
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import ConfigError, DataError

#: 2022-04-15 05:20:00 in UTC.
START = 1650000000
USERS, LENGTH = 30, 6


def shuffled(**columns: Any) -> pl.DataFrame:
    """A log of which the rows are shuffled; columns are functions of the place in the whole log, the user and item.

    Each user takes the items i0 ... i5 shifted by the user's number, one every seven hours.
    """
    places = [(user, step) for user in range(USERS) for step in range(LENGTH)]
    Random(7).shuffle(places)
    rows = []
    for user, step in places:
        item, seconds = (user + step) % 10, START + 25200 * step + 60 * user
        made = {name: make(seconds, user, item) for name, make in columns.items()}
        rows.append({"user_id": f"u{user}", "item_id": f"i{item}", **made})
    return pl.DataFrame(rows)


def written(seconds: int, form: str) -> str:
    return str(pl.Series([seconds * 1000]).cast(pl.Datetime("ms")).dt.strftime(form)[0])


def iso(seconds: int) -> str:
    return written(seconds, "%Y-%m-%d %H:%M:%S")


def in_order(data: Dataset) -> bool:
    """Whether each user's items are in the order in which they were taken."""
    for at, user in enumerate(data.user_ids):
        items = [data.item_ids[item] for item in data.items[data.offsets[at] : data.offsets[at + 1]]]
        if items != [f"i{(int(user[1:]) + step) % 10}" for step in range(LENGTH)]:
            return False
    return True


def said(data: Dataset, text: str) -> bool:
    return any(text in warning for warning in data.report["warnings"])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("last_watch_dt", lambda s, u, i: iso(s)),
        ("InvoiceDate", lambda s, u, i: written(s, "%d.%m.%Y %H:%M")),
        ("click_timestamp", lambda s, u, i: s * 1000),
        ("eventdate", lambda s, u, i: iso(s)),
        ("bestelldatum", lambda s, u, i: pl.Series([iso(s)]).str.to_datetime()[0]),
        ("event_timestamp", lambda s, u, i: str(s * 10**6)),  # Google Analytics in BigQuery
        ("dateHour", lambda s, u, i: iso(s)[:13].replace("-", "").replace(" ", "")),
        ("order_purchase_timestamp", lambda s, u, i: iso(s)),
        ("trans_date_trans_time", lambda s, u, i: iso(s)),
        ("ts_listen", lambda s, u, i: float(s)),
        ("fecha", lambda s, u, i: iso(s)[:10].replace("-", "/") + iso(s)[10:16]),
        ("x", lambda s, u, i: iso(s) + "Z"),
        ("_airbyte_emitted", lambda s, u, i: iso(s).replace(" ", "T") + ".000Z"),
        (
            "listened",
            lambda s, u, i: pl.Series([iso(s)]).str.to_datetime().dt.strftime("%a %b %d %H:%M:%S +0000 %Y")[0],
        ),
    ],
)
def test_a_column_of_times_of_any_name_is_taken_and_said(name: str, make: Any) -> None:
    data = Dataset.from_frames(shuffled(**{name: make, "price": lambda s, u, i: i * 1.5, "n": lambda s, u, i: u}))
    assert in_order(data)
    assert data.report["interactions"]["columns"]["time"] == name
    assert data.report["interactions"]["ordered_by"] == "time"
    assert data.times is not None
    assert int(data.times.min()) == START - 1200 * (name == "dateHour")
    assert said(
        data, f"column {name!r} reads as times and was taken for the order; the order of the rows contradicts it"
    )


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("order_id", lambda s, u, i: s),
        ("phone", lambda s, u, i: 1650000000 + 7 * (s % 1000)),
        ("price", lambda s, u, i: (s % 977) + 0.99),
        ("count", lambda s, u, i: s % 50),
        ("release_date", lambda s, u, i: f"2019-01-{i + 1:02}"),  # the same in all rows of an item
        ("birthday", lambda s, u, i: f"1990-01-{u % 28 + 1:02}"),  # and of a user
        ("note", lambda s, u, i: f"seen at {iso(s)} or so, but nobody knows for sure whether that was it"),
        ("zip", lambda s, u, i: 40000 + s % 9000),
        ("sku", lambda s, u, i: str(10**12 + s)),
        ("year", lambda s, u, i: 1990 + s % 30),
        ("sensor", lambda s, u, i: s % 2**31 * 7 % 2**33),
    ],
)
def test_what_is_no_time_is_not_taken(name: str, make: Any) -> None:
    data = Dataset.from_frames(shuffled(**{name: make}))
    assert data.report["interactions"]["ordered_by"] == "row"
    assert data.times is None
    assert said(data, "no column that is known as the time or the position: each user's rows were taken in the order")


def test_numbers_as_large_as_times_under_a_name_that_does_not_tell_are_only_named() -> None:
    data = Dataset.from_frames(shuffled(value=lambda s, u, i: s))
    assert data.report["interactions"]["ordered_by"] == "row"
    assert said(data, "column 'value' could hold times and contradicts the order of the rows in")
    assert in_order(Dataset.from_frames(shuffled(value=lambda s, u, i: s), time_col="value"))


def test_of_several_that_agree_the_finest_is_taken() -> None:
    frame = shuffled(
        partition_day=lambda s, u, i: iso(s)[:10],
        seen_on=lambda s, u, i: iso(s),
        hour_dt=lambda s, u, i: iso(s)[:13] + ":00",
    )
    for columns in (["partition_day", "seen_on", "hour_dt"], ["hour_dt", "partition_day", "seen_on"]):
        data = Dataset.from_frames(frame.select("user_id", "item_id", *columns))
        assert in_order(data)
        assert data.report["interactions"]["columns"]["time"] == "seen_on"
        assert said(data, "(the finest of those that agree with it: ")


def test_of_two_as_fine_the_start_of_a_session_comes_last() -> None:
    frame = shuffled(session_start=lambda s, u, i: s * 1000, click_timestamp=lambda s, u, i: s * 1000 + 5)
    data = Dataset.from_frames(frame)
    assert data.report["interactions"]["columns"]["time"] == "click_timestamp"


def test_several_that_differ_in_order_are_named() -> None:
    frame = shuffled(ordered_on=lambda s, u, i: iso(s), shipped_on=lambda s, u, i: iso(s * 7919 % 10**8 + START))
    with pytest.raises(DataError) as caught:
        Dataset.from_frames(frame)
    assert "several that read as times and differ in the order" in str(caught.value)
    assert "ordered_on" in str(caught.value)
    assert "shipped_on" in str(caught.value)
    assert "--time-col" in caught.value.remedy
    assert in_order(Dataset.from_frames(frame, time_col="ordered_on"))
    assert Dataset.from_frames(frame, order_by="row").times is None


def test_rows_in_order_of_such_a_column_stay_and_it_is_named() -> None:
    frame = shuffled(seen_dt=lambda s, u, i: iso(s)).sort("seen_dt")
    data = Dataset.from_frames(frame)
    assert in_order(data)
    assert data.report["interactions"]["ordered_by"] == "row"
    assert said(data, "column 'seen_dt' reads as times and does not contradict the order of the rows")
    # Where a time is needed, it is taken all the same.
    for settings in ({"order_by": "time"}, {"split": "temporal", "test_fraction": 0.2, "valid_fraction": 0.2}):
        data = Dataset.from_frames(frame, **settings)
        assert data.report["interactions"]["columns"]["time"] == "seen_dt"


def test_a_finer_column_beside_the_known_one_is_taken() -> None:
    columns = {"date": lambda s, u, i: int(iso(s)[:10].replace("-", "")), "time_ms": lambda s, u, i: s * 1000 + 7}
    frame = shuffled(hourmin=lambda s, u, i: iso(s)[11:13] + "00", **columns)
    data = Dataset.from_frames(frame)
    assert in_order(data)
    assert data.report["interactions"]["columns"]["time"] == "time_ms"
    assert said(data, "'time_ms' was taken for the order, since it is finer than 'date' and nowhere contradicts it")
    data = Dataset.from_frames(frame, time_col="date")
    assert not in_order(data)
    # What is finer but contradicts it is another time: of the delivery, say.
    other = frame.with_columns(time_ms=pl.col("time_ms").reverse())
    assert Dataset.from_frames(other).report["interactions"]["columns"]["time"] == "date"
    # Where two are as fine, the known one stays.
    both = shuffled(timestamp=lambda s, u, i: s, loaded_at=lambda s, u, i: iso(s + 60))
    data = Dataset.from_frames(both)
    assert data.report["interactions"]["columns"]["time"] == "timestamp"
    assert data.report["warnings"] == []


def test_a_known_name_that_holds_no_moments_is_pointed_out() -> None:
    frame = shuffled(time=lambda s, u, i: s % 97, last_watch_dt=lambda s, u, i: iso(s))
    data = Dataset.from_frames(frame)
    assert data.report["interactions"]["columns"]["time"] == "time"
    assert said(data, "ordered by column 'time', whose values are not of the years 1990 to 2100; 'last_watch_dt' read")


def test_a_position_that_a_column_of_times_contradicts_is_pointed_out() -> None:
    frame = shuffled(position=lambda s, u, i: s % 7, viewed_dt=lambda s, u, i: iso(s))
    data = Dataset.from_frames(frame)
    assert data.report["interactions"]["ordered_by"] == "position"
    assert said(data, "column 'viewed_dt' could hold times and contradicts the order by position in")
    assert in_order(Dataset.from_frames(frame, order_by="time"))


def test_days_of_two_readings_in_a_column_that_the_order_needs_are_refused_with_the_remedy() -> None:
    def day(s: int, u: int, i: int) -> str:
        step = (s - START) // 25200
        return f"0{step + 1}/0{(step * 5) % 6 + 1}/2022"

    frame = shuffled(InvoiceDate=day)
    with pytest.raises(DataError, match=r"column 'InvoiceDate': .* may be ") as caught:
        Dataset.from_frames(frame)
    assert '--time-format "%d/%m/%Y" or --time-format "%m/%d/%Y"' in caught.value.remedy
    assert in_order(Dataset.from_frames(frame, time_format="%m/%d/%Y"))


def test_words_of_names() -> None:
    assert words("clickTimestamp_ms:float") == ["click", "timestamp", "ms"]
    assert words("InvoiceDate") == ["invoice", "date"]


# ---- ties --------------------------------------------------------------------------------------------------------
def tied(order: str) -> pl.DataFrame:
    """Forty users who each take ten of fifty items at random in one moment."""
    random = Random(3)
    rows = [(f"u{user}", item, 1650000000 + user) for user in range(40) for item in random.sample(range(50), 10)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    if order == "ascending":
        frame = frame.sort("user_id", "item_id")
    if order == "descending":
        frame = frame.sort("user_id", "item_id", descending=True)
    if order == "texts":
        frame = frame.with_columns(pl.format("v{}", "item_id").alias("item_id")).sort("user_id", "item_id")
    if order == "numbers in texts":
        frame = frame.sort("user_id", "item_id").with_columns(pl.format("v{}", "item_id").alias("item_id"))
    return frame


@pytest.mark.parametrize("order", ["ascending", "descending", "texts", "numbers in texts"])
def test_ties_in_order_of_identifiers_are_pointed_out(order: str) -> None:
    data = Dataset.from_frames(tied(order))
    way = "descending" if order == "descending" else "ascending"
    assert said(data, "360 of 360 neighbours in the histories share their moment")
    assert said(data, f"100% stand in {way} order of their identifiers")
    ties = data.report["interactions"]["ties"]
    assert ties["broken_by"] == "row"
    assert (ties["neighbours"], ties["tied"], ties["tied_share"]) == (360, 360, 1.0)
    assert ties["ascending_by_identifier"] == (0.0 if order == "descending" else 1.0)
    data = Dataset.from_frames(tied(order), ties="hash")
    assert not data.report["warnings"]
    assert abs(data.report["interactions"]["ties"]["ascending_by_identifier"] - 0.5) < 0.1


def test_ties_that_stand_at_random_are_counted_only() -> None:
    data = Dataset.from_frames(tied("random"))
    assert not data.report["warnings"]
    assert abs(data.report["interactions"]["ties"]["ascending_by_identifier"] - 0.5) < 0.1
    ascending = tied("ascending").with_columns(timestamp=pl.int_range(400))
    data = Dataset.from_frames(ascending)  # in order of items, but so were the choices
    assert data.report["interactions"]["ties"] == {"broken_by": "row", "neighbours": 360, "tied": 0, "tied_share": 0.0}


def test_how_ties_are_broken() -> None:
    rows = [("u", "a", 2), ("u", "b", 1), ("u", "c", 1), ("u", "d", 1), ("v", "a", 1), ("v", "b", 1), ("v", "c", 1)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")

    def items(**settings: Any) -> list[str]:
        data = Dataset.from_frames(frame, **settings)
        return [data.item_ids[item] for item in data.items]

    assert items() == items(ties="row") == ["b", "c", "d", "a", "a", "b", "c"]
    assert items(ties="last-first") == ["d", "c", "b", "a", "c", "b", "a"]
    hashed = items(ties="hash")
    assert hashed[3] == "a"
    assert sorted(hashed[:3]) == ["b", "c", "d"]
    # It does not depend on the order of the rows.
    again = Dataset.from_frames(frame.reverse(), ties="hash")
    per_user = {user: again.items[again.offsets[at] : again.offsets[at + 1]] for at, user in enumerate(again.user_ids)}
    assert [again.item_ids[item] for user in "uv" for item in per_user[user]] == hashed
    with pytest.raises(ConfigError, match="ties cannot be 'first'"):
        items(ties="first")


def test_no_item_comes_first_everywhere_by_hash() -> None:
    rows = [(f"u{user}", item, 1) for user in range(300) for item in "abcdef"]
    data = Dataset.from_frames(pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"), ties="hash")
    first = [data.item_ids[item] for item in data.items[data.offsets[:-1]]]
    assert all(25 < first.count(item) < 75 for item in "abcdef")


def test_rows_sorted_by_item_with_nothing_else_to_order_them_are_pointed_out() -> None:
    data = Dataset.from_frames(tied("ascending").drop("timestamp"), order_by="row")
    assert said(data, "100% of the neighbours in the histories stand in ascending order of their identifiers")
    assert not Dataset.from_frames(tied("random").drop("timestamp"), order_by="row").report["warnings"]


# ---- rows without a time ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{}, {"split": "temporal", "valid_fraction": 0.2, "test_fraction": 0.2}])
def test_rows_without_a_time_are_left_out_on_request(settings: dict[str, Any]) -> None:
    frame = shuffled(timestamp=lambda s, u, i: s if (u, i) != (3, 4) else None)
    with pytest.raises(DataError) as caught:
        Dataset.from_frames(frame, **settings)
    assert "column 'timestamp' is empty (1 of 180 rows)" in str(caught.value)
    assert "--missing-times drop" in caught.value.remedy
    data = Dataset.from_frames(frame, missing_times="drop", **settings)
    step = next(step for step in data.report["steps"] if step["step"] == "rows without time")
    assert (step["rows_in"], step["rows_out"]) == (180, 179)
    assert step["example_rows"] == [frame.with_row_index(offset=1).filter(pl.col("timestamp").is_null())["index"][0]]


def test_rows_without_a_position_are_left_out_on_request() -> None:
    rows = [("u", "a", 2), ("u", "b", 1), ("u", "c", None), ("u", "d", 3), ("v", "a", 1)]
    frame = pl.DataFrame(rows, schema=["user", "item", "position"], orient="row")
    with pytest.raises(DataError, match=r"row 3: column 'position' is empty \(1 of 5 rows\)"):
        Dataset.from_frames(frame)
    data = Dataset.from_frames(frame, missing_times="drop")
    assert [data.item_ids[item] for item in data.items] == ["b", "a", "d", "a"]
    with pytest.raises(DataError, match="no row has a position"):
        Dataset.from_frames(frame.with_columns(position=pl.lit(None, pl.Int64)), missing_times="drop")


def test_the_order_is_called_time_and_folders_that_say_timestamp_are_read(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u", "u", "u", "v"], "item": list("abca"), "time": [1, 2, 3, 4]})
    with pytest.raises(ConfigError, match="order_by cannot be 'timestamp'") as caught:
        Dataset.from_frames(frame, order_by="timestamp")
    assert caught.value.remedy == "It is called 'time' now."
    data = Dataset.from_frames(frame, order_by="time")
    assert data.report["interactions"]["ordered_by"] == "time"
    data.settings["order_by"] = data.report["interactions"]["ordered_by"] = "timestamp"
    data.save(tmp_path / "data")
    assert Dataset.load(tmp_path / "data").settings["order_by"] == "timestamp"


# ---- identifiers -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["NA", r"\N", "(null)", "#N/A", "none", "undefined", "Unknown", "(not set)", "nan"])
def test_identifiers_that_stand_for_none_are_pointed_out(text: str) -> None:
    rows = [("u", "a"), ("u", "b"), ("u", "c"), (text, "a"), ("v", text), ("v", "c")]
    data = Dataset.from_frames(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"), order_by="row")
    first, second = data.report["warnings"]
    assert first.startswith(
        f"one user is called {text!r} and has 1 of 6 rows (16.7%), which often stands for a missing"
    )
    assert f"--where \"user_id != '{text}'\"" in first
    assert second.startswith(f"one item is called {text!r}")
    with_condition = Dataset.from_frames(
        pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"),
        where=[f"user_id != '{text}'", f"item_id != '{text}'"],
        order_by="row",
    )
    assert with_condition.report["warnings"] == []


@pytest.mark.parametrize(
    ("text", "rows", "warned"),
    [
        ("-1", 3, True),
        ("0", 40, True),
        ("0", 12, False),
        ("guest7", 80, True),
        ("guest7", 30, False),
        ("x-1", 3, False),
    ],
)
def test_an_identifier_with_an_outsized_share_is_pointed_out(text: str, rows: int, warned: bool) -> None:
    # Thirty other users of ten rows each; a placeholder number needs twice as many as the next, any other four times.
    log = [(str(user + 5), f"i{at}") for user in range(30) for at in range(10)] + [
        (text, f"i{at}") for at in range(rows)
    ]
    Random(5).shuffle(log)
    data = Dataset.from_frames(pl.DataFrame(log, schema=["user_id", "item_id"], orient="row"), order_by="row")
    assert said(data, f"one user is called {text!r} and has {rows} of {300 + rows} rows") is warned
    assert len(data.report["warnings"]) == warned


def test_two_outsized_identifiers_do_not_hide_each_other() -> None:
    log = [(f"u{user}", f"i{at}") for user in range(30) for at in range(10)]
    log += [(name, f"i{at % 10}") for name, count in (("anon-a", 200), ("anon-b", 150)) for at in range(count)]
    data = Dataset.from_frames(pl.DataFrame(log, schema=["user_id", "item_id"], orient="row"), order_by="row")
    assert said(data, "one user is called 'anon-a'")
    assert said(data, "one user is called 'anon-b'")


def test_files_say_the_same_as_frames(tmp_path: Path) -> None:
    frame = shuffled(last_watch_dt=lambda s, u, i: iso(s))
    frame.write_csv(tmp_path / "log.csv")
    data = prepare_files(tmp_path / "log.csv", None, tmp_path / "out", Prepare())
    assert data.fingerprint == Dataset.from_frames(frame).fingerprint
    assert "last_watch_dt" in (tmp_path / "out" / "report.md").read_text()
