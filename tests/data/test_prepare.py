"""Hand-computed cases of cleaning, ordering, splitting and the catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from llmd4rec.data.dataset import NO_TIME, Dataset
from llmd4rec.data.ingest.limits import LONGEST_ID
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.io.files import read_json, write_json
from llmd4rec.server.schema import ItemId

LOG = pl.DataFrame(
    {
        "user_id": ["u2", "u1", "u1", "u2", "u1", "u2", "u1", "u3"],
        "item_id": ["c", "a", "b", "a", "c", "b", "a", "b"],
        "timestamp": [10, 5, 3, 30, 7, 20, 7, 1],
    }
)


def histories(data: Dataset) -> dict[str, list[str]]:
    """Identifiers per user, oldest first."""
    return {
        user: [data.item_ids[item] for item in data.items[data.offsets[at] : data.offsets[at + 1]]]
        for at, user in enumerate(data.user_ids)
    }


def held(data: Dataset, positions: np.ndarray) -> dict[str, str]:
    users = data.users_of(positions)
    return {data.user_ids[int(user)]: data.item_ids[data.items[at]] for user, at in zip(users, positions, strict=True)}


def test_orders_by_time_with_ties_in_file_order_and_leaves_two_out() -> None:
    data = Dataset.from_frames(LOG)
    assert histories(data) == {"u2": ["c", "b", "a"], "u1": ["b", "a", "c", "a"], "u3": ["b"]}
    assert held(data, data.test) == {"u2": "a", "u1": "a"}
    assert held(data, data.valid) == {"u2": "b", "u1": "c"}
    assert data.train_end.tolist() == [1, 5, 8]
    assert data.times is not None
    assert data.times.tolist() == [10, 20, 30, 3, 5, 7, 7, 1]
    assert data.train_counts.sum() == 1 + 2 + 1
    assert [each.dtype for each in (data.offsets, data.items, data.times)] == [np.int64, np.int32, np.int64]


def test_position_comes_before_time_and_unknown_times_are_marked() -> None:
    log = LOG.with_columns(
        position=pl.Series([0, 3, 2, 1, 1, 2, 0, 0]), timestamp=pl.Series([1, None, 1, 1, 1, 1, 1, None])
    )
    data = Dataset.from_frames(log)
    assert histories(data)["u1"] == ["a", "c", "b", "a"]
    assert histories(data)["u2"] == ["c", "a", "b"]
    assert data.times is not None
    assert data.times.tolist() == [1, 1, 1, 1, 1, 1, NO_TIME, NO_TIME]
    assert data.report["interactions"]["ordered_by"] == "position"


def test_a_position_that_contradicts_the_times_is_pointed_out() -> None:
    data = Dataset.from_frames(LOG.with_columns(position=-pl.col("timestamp")))
    assert any("--order-by time" in warning for warning in data.report["warnings"])


def test_order_by_row_ignores_times() -> None:
    assert histories(Dataset.from_frames(LOG, order_by="row"))["u1"] == ["a", "b", "c", "a"]


def test_without_time_or_position_equal_rows_are_repeats_and_stay() -> None:
    log = pl.DataFrame({"user": ["u", "u", "u", "v"], "item": ["a", "a", "b", "b"]})
    assert histories(Dataset.from_frames(log)) == {"u": ["a", "a", "b"], "v": ["b"]}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("keep", ["a", "a", "a", "b", "a", "b"]),
        ("exact", ["a", "a", "b", "a", "b"]),
        ("drop-consecutive", ["a", "b", "a", "b"]),
        ("drop", ["a", "b"]),
    ],
)
def test_duplicates(how: str, expected: list[str]) -> None:
    rows = [("u", "a", 1), ("u", "a", 1), ("u", "a", 2), ("u", "b", 3), ("u", "a", 4), ("u", "b", 5)]
    other = [("v", "a", 1), ("v", "b", 2), ("v", "c", 3)]
    log = pl.DataFrame(rows + other, schema=["user", "item", "time"], orient="row")
    data = Dataset.from_frames(log, duplicates=how)
    assert histories(data) == {"u": expected, "v": ["a", "b", "c"]}
    assert sum(step["rows_in"] - step["rows_out"] for step in data.report["steps"]) == 6 - len(expected)


def test_exact_duplicates_are_found_between_other_rows_of_the_same_moment() -> None:
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "a", 1), ("u", "c", 2), ("v", "a", 1), ("v", "b", 1), ("v", "c", 1)]
    data = Dataset.from_frames(pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"))
    assert histories(data)["u"] == ["a", "b", "c"]
    step = next(step for step in data.report["steps"] if step["step"] == "exact duplicates")
    assert step["example_rows"] == [3]


def test_k_core_iterates_and_histories_are_cut() -> None:
    # x is liked by u and v only; without it v falls to one interaction, then y falls to one.
    rows = [("u", "a"), ("u", "b"), ("u", "a"), ("u", "b"), ("w", "a"), ("w", "b"), ("w", "y"), ("v", "y"), ("v", "x")]
    log = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    data = Dataset.from_frames(log, k_core=2)
    assert histories(data) == {"u": ["a", "b", "a", "b"], "w": ["a", "b"]}
    assert histories(Dataset.from_frames(log, min_history=3, max_history=3)) == {
        "u": ["b", "a", "b"],
        "w": ["a", "b", "y"],
    }


def test_temporal_split() -> None:
    rows = [("u", "a", 1), ("u", "b", 7), ("u", "c", 8), ("u", "a", 9), ("v", "b", 2), ("v", "c", 3), ("v", "a", 10)]
    rows += [("w", "a", 7), ("w", "b", 9), ("z", "a", 4)]
    log = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").with_columns(position=pl.lit(0))
    data = Dataset.from_frames(log, split="temporal", valid_fraction=0.3, test_fraction=0.3)
    # Sorted times: 1 2 3 4 | 7 7 8 | 9 9 10.
    assert held(data, data.valid) == {"u": "b"}  # w has no history before the window
    assert held(data, data.test) == {"u": "a", "v": "a", "w": "b"}
    assert data.train_end.tolist() == [1, 6, 7, 10]
    assert data.report["split"]["test_from"] == "1970-01-01 00:00:09"


def sessions(count: int) -> pl.DataFrame:
    """Users of three items each, one user after the other, of whom the last but one and another straddle the cuts."""
    rows = [(f"u{user:02}", f"i{user % 4 + place}", 10 * user + place) for user in range(count) for place in range(3)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def test_histories_may_begin_behind_a_cut() -> None:
    log = sessions(20)  # 60 rows; validation begins within u09, test within u14
    split: dict[str, Any] = {"split": "temporal", "valid_fraction": 15 / 60, "test_fraction": 17 / 60}
    before = Dataset.from_frames(log, history="window", **split)
    assert held(before, before.valid) == {"u09": "i2"}
    assert held(before, before.test) == {"u14": "i3"}
    within = Dataset.from_frames(log, history="event", **split)
    # Every user's second item; of those who straddle a cut their first behind it.
    users = {user: f"i{int(user[1:]) % 4 + 1}" for user in within.user_ids.to_list()}
    assert held(within, within.valid) == {user: users[user] for user in ("u10", "u11", "u12", "u13")} | {"u09": "i2"}
    assert held(within, within.test) == {f"u{user}": users[f"u{user}"] for user in range(15, 20)} | {"u14": "i3"}
    assert within.train_end.tolist() == before.train_end.tolist()
    assert (before.target_history, within.target_history) == ("window", "event")


@pytest.mark.parametrize(("count", "history"), [(24, "window"), (90, "event")])
def test_histories_of_short_sessions_begin_behind_the_cuts(count: int, history: str) -> None:
    """One user straddles each cut: with 24 users one target in nine, with 90 one in thirty-one."""
    fractions = {"valid_fraction": 1 / 3, "test_fraction": (count + 1) / (3 * count)}
    data = Dataset.from_frames(sessions(count), split="temporal", **fractions)
    assert data.target_history == history == data.report["split"]["history"]
    assert bool([warning for warning in data.report["warnings"] if "--history event" in warning]) == (
        history == "event"
    )


def test_where_no_history_begins_before_a_cut_the_remedy_is_named() -> None:
    log = sessions(20).with_columns(timestamp=pl.col("timestamp") // 10 * 10 + pl.int_range(pl.len()) % 3)
    split: dict[str, Any] = {"split": "temporal", "valid_fraction": 15 / 60, "test_fraction": 15 / 60}
    with pytest.raises(DataError, match=r"(?s)began before its part of the log.*--history event"):
        Dataset.from_frames(log, history="window", **split)
    assert Dataset.from_frames(log, **split).target_history == "event"
    with pytest.raises(ConfigError, match="no meaning with leave-one-out"):
        Dataset.from_frames(log, history="event")


def test_temporal_split_needs_times() -> None:
    with pytest.raises(DataError, match="temporal split needs the time"):
        Dataset.from_frames(LOG.drop("timestamp"), split="temporal")
    with pytest.raises(DataError, match="leaves no training"):
        Dataset.from_frames(LOG.with_columns(timestamp=1), split="temporal")


def test_catalogue() -> None:
    items = pl.DataFrame(
        {
            "asin": ["a", "b", "b", "z", None],
            "Title": ["  Red\n shoe ", "", "second", "unseen", "nobody"],
            "categories": [["Shoes", "Red"], [], None, ["Z"], None],
            "brand": [None, None, None, None, None],
            "price": [1.5, 2.0, 3.0, 4.0, 5.0],
        },
        schema_overrides={"brand": pl.String},
    )
    data = Dataset.from_frames(LOG, items, item_id_col="asin")
    assert set(data.item_ids) == {"a", "b", "c"}
    assert data.text_fields == ("title", "categories")
    assert data.texts()[data.item_index["a"]] == "title: Red shoe; categories: Shoes; Red"
    assert data.texts()[data.item_index["b"]] == data.texts()[data.item_index["c"]] == ""
    facts = data.report["catalogue"]
    assert facts["of_these_without_a_row_here"] == 1
    assert facts["examples_without_a_row"] == ["c"]
    assert (facts["repeated_rows_dropped"], facts["rows_without_identifier"]) == (1, 1)
    assert (facts["items_without_interactions"], facts["these_were"]) == (1, "dropped")
    assert facts["text_columns_without_text"] == ["brand"]

    kept = Dataset.from_frames(LOG, items, keep_unseen_items=True, text_cols=["Title"])
    assert set(kept.item_ids) == {"a", "b", "c", "z"}
    assert kept.text_fields == ("title",)
    assert histories(kept) == histories(data)


def test_identifiers_are_never_taken_for_text() -> None:
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "asin": ["B1", "B2", "B3"], "title": ["A", "B", "C"]})
    data = Dataset.from_frames(LOG, items)
    assert data.text_fields == ("title",)
    assert "B1" not in "".join(data.texts())


def test_text_columns_of_one_name_are_refused_and_a_title_left_out_is_pointed_out() -> None:
    items = pl.DataFrame({"asin": list("abc"), "item_id": list("xyz"), "title": list("def"), "name": list("ghi")})
    with pytest.raises(DataError, match="column 'item_id': it would be called 'item_id', as is the identifier"):
        Dataset.from_frames(LOG, items, item_id_col="asin", text_cols=["item_id", "title"])
    typed = items.rename({"title": "a:token", "name": "a:float"})
    with pytest.raises(DataError, match="column 'a:float': it would be called 'a', as is column 'a:token'"):
        Dataset.from_frames(LOG, typed, item_id_col="asin", text_cols=["a:token", "a:float"])
    data = Dataset.from_frames(LOG, items, item_id_col="asin", text_cols=["name"])
    assert sorted(data.titles) == ["g", "h", "i"]
    assert any("'title' was left out, since 'name' is taken" in warning for warning in data.report["warnings"])
    assert data.report["catalogue"]["columns_left_out"] == ["item_id", "title"]
    for both in (["name", "title"], None):
        data = Dataset.from_frames(LOG, items, item_id_col="asin", text_cols=both, duplicates="drop")
        assert not data.report["warnings"]


def test_blanks_around_identifiers_are_kept_and_pointed_out() -> None:
    log = LOG.with_columns(item_id=pl.Series(["c", " a", "b", "a", "c ", "b", "a", "b"]))
    data = Dataset.from_frames(log, pl.DataFrame({"item_id": ["a", " b"], "title": ["A", "B"]}))
    assert set(data.item_ids) == {"a", "b", "c", " a", "c "}
    first, second = (warning for warning in data.report["warnings"] if "blanks around" in warning)
    assert "2 items of the interactions frame have blanks around their identifier, such as" in first
    assert "2 of them like another one but for these" in first
    assert second.startswith("1 items of the items frame have blanks around their identifier, such as ' b'; they")


def test_targets_that_their_user_had_before_are_counted() -> None:
    # Test targets of u1 and u3; what follows a validation target (u3's) was not had before it.
    log = {"u1": "abca", "u2": "adcb", "u3": "abb", "u4": "abc"}
    rows = [(user, item, at) for user, items in log.items() for at, item in enumerate(items)]
    data = Dataset.from_frames(pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"))
    names = [f"{what}_targets_the_user_had_before" for what in ("validation", "test")]
    assert [data.report["split"][name] for name in names] == [0, 2]
    warned = [warning for warning in data.report["warnings"] if "evaluation.filter_seen" in warning]
    assert len(warned) == 1
    assert warned[0].startswith("2 of 4 test targets (50.0%)")
    assert not Dataset.from_frames(LOG, duplicates="drop").report["warnings"]


def test_catalogue_of_other_identifiers_is_pointed_out() -> None:
    data = Dataset.from_frames(LOG, pl.DataFrame({"item_id": ["x1"], "title": ["X"]}))
    assert any("do the identifiers match" in warning for warning in data.report["warnings"])


def test_item_order_tells_nothing_of_the_file_and_does_not_depend_on_it() -> None:
    names = [f"{number:03}" for number in range(200)]
    log = pl.DataFrame({"user": ["u", "v"] * 100, "item": names, "time": list(range(200))})
    order = Dataset.from_frames(log).item_ids
    assert abs(np.corrcoef([int(name) for name in order], np.arange(200))[0, 1]) < 0.25
    assert Dataset.from_frames(log.reverse()).item_ids == order


def test_ids_of_any_kind_agree_between_the_files() -> None:
    # A nullable pandas column stores whole numbers as floats.
    log = pd.DataFrame({"user": [1.0, 1.0, 1.0, 2.0, None], "item": [7, 8, 9, 7, 9], "time": [1, 2, 3, 4, 5]})
    items = pl.DataFrame({"item": ["7", "8", "9"], "title": ["seven", "eight", "nine"]})
    data = Dataset.from_frames(log, items)
    assert data.user_ids.to_list() == ["1", "2"]
    assert [data.titles[item] for item in data.items] == ["seven", "eight", "nine", "seven"]
    step = next(step for step in data.report["steps"] if step["step"] == "rows without user or item")
    assert step["example_rows"] == [5]


@pytest.mark.parametrize(("kind", "bits"), [(pl.Float32, 24), (pl.Float64, 53)])
def test_floats_too_big_for_identifiers_are_refused(kind: type[pl.DataType], bits: int) -> None:
    log = LOG.with_columns(user_id=pl.Series([1, 2, 2, 1, 2, 1, 2, 2**bits]).cast(kind))
    with pytest.raises(DataError, match=rf"column 'user_id': Float\d\d identifiers beyond 2\^{bits}"):
        Dataset.from_frames(log)
    below = LOG.with_columns(user_id=pl.Series([1, 2, 2, 1, 2, 1, 2, 2**bits - 1]).cast(kind))
    assert Dataset.from_frames(below).user_ids.to_list() == ["1", "2", str(2**bits - 1)]


@pytest.mark.parametrize(
    "make",
    [pl.DataFrame.lazy, pl.DataFrame.to_pandas, lambda frame: frame],
    ids=["lazy", "pandas", "eager"],
)
def test_kinds_of_frames_give_the_same(make: object) -> None:
    assert Dataset.from_frames(make(LOG)).fingerprint == Dataset.from_frames(LOG).fingerprint  # type: ignore[operator]


SECONDS = [1388620800, 1388620801, 1388620802, 1388620803]
UTC = pl.Series(SECONDS) * 1000


@pytest.mark.parametrize(
    "times",
    [
        pl.Series(SECONDS),
        pl.Series(SECONDS).cast(pl.Float64) + 0.25,
        pl.Series(SECONDS).cast(pl.String),
        pl.Series(SECONDS) * 10**3,
        pl.Series(SECONDS) * 10**6,
        pl.Series(SECONDS) * 10**9,
        UTC.cast(pl.Datetime("ms")),
        UTC.cast(pl.Datetime("ms", "UTC")),
        UTC.cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone("Asia/Tokyo"),
        UTC.cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%dT%H:%M:%S.500Z"),
        UTC.cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d %H:%M:%S"),
        UTC.cast(pl.Datetime("ms")).dt.strftime("%Y/%m/%d %H:%M:%S"),
        (UTC + 7_200_000).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%dT%H:%M:%S+02:00"),
    ],
    ids=lambda series: f"{series.dtype} {series[0]}",
)
def test_times_in_every_form(times: pl.Series) -> None:
    log = pl.DataFrame({"user": ["u", "u", "u", "v"], "item": ["a", "b", "c", "a"], "time": times})
    data = Dataset.from_frames(log)
    assert data.times is not None
    assert data.times.tolist() == SECONDS


def test_dates() -> None:
    days = pl.Series(["2014-01-01", "2014-01-02", "2014-01-03", "2014-01-03"])
    for times in (days, days.str.to_date()):
        data = Dataset.from_frames(pl.DataFrame({"user": ["u", "u", "u", "v"], "item": list("abca"), "date": times}))
        assert data.times is not None
        assert np.diff(data.times[:3]).tolist() == [86400, 86400]


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_days_in_eight_digits_are_days(kind: type[pl.DataType]) -> None:
    days = pl.Series([20240131, 20240201, 20240301, 20240301]).cast(kind)
    data = Dataset.from_frames(pl.DataFrame({"user": ["u", "u", "u", "v"], "item": list("abca"), "date": days}))
    assert data.times is not None
    assert data.times.tolist() == [1706659200 + day * 86400 for day in (0, 1, 30, 30)]


def test_eight_digits_that_are_no_days_are_seconds() -> None:
    seconds = [20240131, 20240132, 20240301, 20240301]  # no month has 32 days
    data = Dataset.from_frames(pl.DataFrame({"user": ["u", "u", "u", "v"], "item": list("abca"), "time": seconds}))
    assert data.times is not None
    assert data.times.tolist() == seconds


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_moments_in_fourteen_digits_are_moments(kind: type[pl.DataType]) -> None:
    moments = pl.Series([20240131235959, 20240201000000, 20240201000001, 20240201000001]).cast(kind)
    data = Dataset.from_frames(pl.DataFrame({"user": ["u", "u", "u", "v"], "item": list("abca"), "time": moments}))
    assert data.times is not None
    assert data.times.tolist() == [1706745599, 1706745600, 1706745601, 1706745601]


def timed(times: Sequence[object]) -> pl.DataFrame:
    size = len(times)
    return pl.DataFrame(
        {"user": [f"u{at % 2}" for at in range(size)], "item": [f"i{at % 5}" for at in range(size)], "time": times}
    )


def test_two_units_in_one_column_are_refused() -> None:
    seconds = [1600000000 + at for at in range(20)]
    for scale, unit in ((10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")):
        # One in another unit is enough, and neither values that stand for no time nor the column's type hide it.
        mixed = [*seconds[:7], 0, seconds[7] * scale, *seconds[8:]]
        for times in (mixed, list(map(str, mixed)), [float(time) for time in mixed]):
            with pytest.raises(DataError) as caught:
                Dataset.from_frames(timed(times))
            assert f"column 'time': times in seconds and in {unit} side by side (row 1: 1600000000" in str(caught.value)
            assert "row 9: 1" in str(caught.value)


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([0, 1, 2, 3, 1600000000, 1600000001], id="zeros"),
        pytest.param([-3600 * 24 * 365, 5, 978300760, 1600000000, 253402300799], id="1969 to the year 9999"),
        pytest.param(
            [0, 0, 1600000000000, 1600000000001, 1600000000002, 10_000_000_000_000], id="milliseconds and placeholders"
        ),
        pytest.param([at * 10**10 for at in range(300)] + [10**9, 2 * 10**9], id="a counter of microseconds"),
        pytest.param([int(1.5**at) for at in range(100)], id="a counter that grows and grows"),
    ],
)
def test_one_unit_is_not_taken_for_two(times: list[object]) -> None:
    assert Dataset.from_frames(timed(times)).num_interactions == len(times)


def test_formats_that_come_late_are_read() -> None:
    moments = pl.datetime_range(datetime(2024, 1, 1), datetime(2024, 1, 2), "30s", eager=True)  # 2,881 of them
    texts = [
        *moments[:2000].dt.strftime("%Y-%m-%d %H:%M:%S"),
        *moments[2000:2800].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        *moments[2800:].dt.strftime("%Y/%m/%d %H:%M:%S"),
    ]
    data = Dataset.from_frames(timed(texts))
    assert data.times is not None
    assert sorted(data.times.tolist()) == [1704067200 + 30 * at for at in range(2881)]
    with pytest.raises(DataError, match="row 2901, column 'time': 'soon'"):
        Dataset.from_frames(timed([*texts, *["2024-02-01 00:00:00"] * 19, "soon"]))


def test_milliseconds_order_within_a_second() -> None:
    log = pl.DataFrame(
        {
            "user": ["u", "u", "u", "v"],
            "item": list("abca"),
            "time": [1388620800900, 1388620800100, 1388620800500, 1388620800000],
        }
    )
    assert histories(Dataset.from_frames(log))["u"] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k_cor": 3}, "Did you mean 'k_core'"),
        ({"k_core": -1}, "k_core is -1"),
        ({"split": "random"}, "leave-one-out, temporal"),
        ({"order_by": "row", "split": "temporal"}, "temporal split cannot"),
        ({"max_history": 2, "min_history": 3}, "max_history 2"),
        ({"test_fraction": 0.6, "valid_fraction": 0.5}, "leave nothing to train on"),
        ({"text_cols": "title"}, "one string"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Dataset.from_frames(LOG, **settings)
    assert words in str(caught.value)


def test_saving_and_loading(tmp_path: Path) -> None:
    data = Dataset.from_frames(LOG)
    data.save(tmp_path / "one")
    loaded = Dataset.load(tmp_path / "one")
    assert loaded.fingerprint == data.fingerprint
    assert loaded.report == data.report
    assert "exact duplicates" in (tmp_path / "one" / "report.md").read_text()
    loaded.save(tmp_path / "two")
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_only_prepared_folders_are_replaced(tmp_path: Path) -> None:
    data = Dataset.from_frames(LOG)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="no prepared data set"):
        data.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    data.save(tmp_path / "data")
    with pytest.raises(DataError, match="already exists"):
        data.save(tmp_path / "data")
    data.save(tmp_path / "data", overwrite=True)


FILES = (
    *("offsets.npy", "items.npy", "train_end.npy", "valid.npy", "test.npy", "times.npy"),
    *("users.parquet", "catalogue.parquet", "report.json", "report.md", "dataset.json"),
)


def alter(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(whole[:-8])
    elif how == "one bit":
        place = len(whole) * 3 // 4
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


@pytest.mark.parametrize("how", ["gone", "cut short", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_folder_is_noticed(tmp_path: Path, name: str, how: str) -> None:
    Dataset.from_frames(LOG).save(tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(FILES)
    alter(tmp_path / "data" / name, how)
    with pytest.raises(
        DataError, match=r"dataset\.json" if name == "dataset.json" else f"is damaged: {name}"
    ) as caught:
        Dataset.load(tmp_path / "data")
    assert caught.value.remedy


def test_every_value_of_the_head_is_guarded(tmp_path: Path) -> None:
    Dataset.from_frames(LOG).save(tmp_path / "data")
    head = read_json(tmp_path / "data" / "dataset.json")
    changes = [{"text_fields": ["title"]}, {"settings": {**head["settings"], "k_core": 5}}, {"fingerprint": "0" * 32}]
    changes += [{"test_targets": 1}, {"files": {**head["files"], "items.npy": "0" * 64}}, {"added": 1}]
    for change in changes:
        write_json(tmp_path / "data" / "dataset.json", head | change)
        with pytest.raises(DataError, match=r"dataset\.json is not as it was written"):
            Dataset.load(tmp_path / "data")


def test_times_put_beside_data_without_times_are_not_read(tmp_path: Path) -> None:
    Dataset.from_frames(LOG).save(tmp_path / "with")
    Dataset.from_frames(LOG.drop("timestamp")).save(tmp_path / "without")
    (tmp_path / "without" / "times.npy").write_bytes((tmp_path / "with" / "times.npy").read_bytes())
    with pytest.raises(DataError, match=r"times\.npy was not written with the rest"):
        Dataset.load(tmp_path / "without")


def test_a_folder_of_an_earlier_version_is_read_and_guarded_by_its_fingerprint(tmp_path: Path) -> None:
    """As it was once written: no checksums, the fingerprint made in the old way."""
    data = Dataset.from_frames(LOG)
    data.save(tmp_path / "data")
    head = read_json(tmp_path / "data" / "dataset.json")
    old = {name: value for name, value in head.items() if name not in ("files", "sha256")}
    old["fingerprint"] = "7f5ac96c6b03b08337073ae552bf87be"
    write_json(tmp_path / "data" / "dataset.json", old)
    assert Dataset.load(tmp_path / "data").fingerprint == data.fingerprint
    other = pl.read_parquet(tmp_path / "data" / "users.parquet").with_columns(user_id=pl.Series(["u2", "u1", "u4"]))
    other.write_parquet(tmp_path / "data" / "users.parquet")
    with pytest.raises(DataError, match="its content is not what was written"):
        Dataset.load(tmp_path / "data")


def test_held_out_targets_inside_the_training_part_are_refused(tmp_path: Path) -> None:
    data = Dataset.from_frames(LOG)
    for name, positions in (("valid", data.valid - 1), ("test", data.test - 2), ("test", data.test[::-1])):
        altered: dict[str, Any] = {name: positions}
        dataclasses.replace(data, **altered).save(tmp_path / "data", overwrite=True)
        with pytest.raises(DataError, match=rf"{name}\.npy does not fit train_end\.npy"):
            Dataset.load(tmp_path / "data")


def test_the_fingerprint_tells_apart_whatever_a_model_could() -> None:
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["x\x01y", "z", ""], "brand": ["p", "q", None]})
    data = Dataset.from_frames(LOG, items)
    catalogue, moved = data.catalogue, data.items.copy()
    moved[0] = (moved[0] + 1) % 3
    a, b, c = (data.item_index[name] for name in "abc")
    titles = catalogue["title"].to_list()
    shifted = list(titles)
    shifted[min(a, b)], shifted[max(a, b)] = "x", "y\x01z" if a < b else "z\x01y"
    nothing = list(titles)
    nothing[c] = None if titles[c] == "" else ""
    others = [
        dataclasses.replace(data, text_fields=("title",)),
        dataclasses.replace(data, text_fields=("brand", "title")),
        dataclasses.replace(data, times=None),
        dataclasses.replace(data, items=moved),
        dataclasses.replace(data, train_end=data.train_end - 1),
        dataclasses.replace(data, valid=data.test),
        dataclasses.replace(data, test=data.valid),
        dataclasses.replace(data, user_ids=data.user_ids.reverse()),
        dataclasses.replace(data, catalogue=catalogue.with_columns(title=pl.Series(shifted))),
        dataclasses.replace(data, catalogue=catalogue.with_columns(title=pl.Series(nothing))),
        dataclasses.replace(data, catalogue=catalogue.rename({"brand": "maker"})),
        dataclasses.replace(data, catalogue=catalogue.drop("brand")),
    ]
    assert len({each.fingerprint for each in [data, *others]}) == 1 + len(others)
    assert dataclasses.replace(data, report={}, settings={}, path=None).fingerprint == data.fingerprint


def test_an_identifier_may_have_as_many_characters_as_the_service_takes() -> None:
    long = "ä" * LONGEST_ID
    log = pl.DataFrame({"user_id": ["u"] * 3 + ["v"] * 3, "item_id": [long, "b", "c", "b", long, "c"]})
    assert long in Dataset.from_frames(log).item_ids
    assert TypeAdapter(ItemId).validate_python(long) == long
    for frame in (log.with_columns(pl.col("item_id") + "x"), log.with_columns(user_id=pl.lit(long + "x"))):
        with pytest.raises(DataError, match=r"column '\w+_id': an identifier has 51\d characters, more than 512"):
            Dataset.from_frames(frame)
    with pytest.raises(ValidationError):
        TypeAdapter(ItemId).validate_python(long + "x")
    items = pl.DataFrame({"item_id": ["b", long + "x"], "title": ["B", "C"]})
    with pytest.raises(DataError, match="the items frame, column 'item_id': an identifier has 513"):
        Dataset.from_frames(log, items)
