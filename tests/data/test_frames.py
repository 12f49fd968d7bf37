"""Frames as people have them: what is read, and what is named with its remedy."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from llmd4rec import Dataset
from llmd4rec.errors import DataError

USERS, ITEMS, TIMES = ["u", "u", "u", "v", "v", "v"], ["a", "b", "c", "b", "c", "a"], [30, 20, 10, 1, 2, 3]
#: By time.
WANTED = {"u": ["c", "b", "a"], "v": ["b", "c", "a"]}


class Frame(pd.DataFrame):  # type: ignore[misc]
    """As geopandas and others make them."""


def log(**more: Any) -> pd.DataFrame:
    return pd.DataFrame({"user_id": USERS, "item_id": ITEMS, "timestamp": TIMES, **more})


def histories(frame: Any, **settings: Any) -> dict[str, list[str]]:
    data = Dataset.from_frames(frame, **settings)
    names = data.item_ids
    return {
        user: [names[item] for item in data.items[data.offsets[at] : data.offsets[at + 1]]]
        for at, user in enumerate(data.user_ids.to_list())
    }


INDIA = timezone(timedelta(hours=5, minutes=30))
MOMENTS = [datetime(2024, 1, 1, 12, 0, second, tzinfo=INDIA) for second in TIMES]


@pytest.mark.parametrize(
    "unused",
    [
        pytest.param([1, "a", None, 2.5, {}, []], id="mixed objects"),
        pytest.param([1, "a", None, True, "b", 2], id="numbers and text"),
        pytest.param(pd.interval_range(0, 6), id="intervals"),
        pytest.param(pd.period_range("2024-01", periods=6, freq="M"), id="periods"),
        pytest.param([1j] * 6, id="complex"),
        pytest.param([object()] * 6, id="objects"),
        pytest.param([{"a": 1}, {"b": "x"}, None, {}, {"a": "y"}, {"a": [1]}], id="dictionaries"),
        pytest.param([{1, 2}, {"x"}, set(), None, {3}, {4}], id="sets"),
        pytest.param(pd.to_datetime(["2024-01-01"] * 6).tz_localize(INDIA), id="+05:30"),
        pytest.param(MOMENTS[:3] + [moment.astimezone(UTC) for moment in MOMENTS[3:]], id="several zones"),
        pytest.param(pd.to_timedelta(range(6), unit="s"), id="durations"),
        pytest.param(pd.arrays.SparseArray([0, 0, 1, 0, 0, 0]), id="sparse"),
        pytest.param(np.arange(6).astype("float16"), id="float16"),
        pytest.param([b"x"] * 6, id="bytes"),
        pytest.param([None] * 6, id="nothing"),
        pytest.param(pd.Categorical([1, 2, None, 1, 2, 1]), id="categories of numbers"),
        pytest.param(pd.array([1, None, 3, 4, 5, 6], dtype="Int64"), id="nullable"),
        pytest.param(pd.array(["x"] * 6, dtype="string[pyarrow]"), id="Arrow text"),
        pytest.param([np.zeros((2, 2))] * 6, id="matrices"),
    ],
)
def test_a_column_that_nobody_uses_stops_nothing(unused: Any) -> None:
    assert histories(log(unused=unused)) == WANTED


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        pytest.param(lambda frame: Frame(frame), {}, id="a subclass"),
        pytest.param(lambda frame: frame.set_index("user_id"), {}, id="the user in the index"),
        pytest.param(lambda frame: frame.set_index(["user_id", "item_id"]), {}, id="user and item in the index"),
        pytest.param(lambda frame: frame.set_index("user_id", drop=False), {}, id="in the index and a column"),
        pytest.param(lambda frame: frame.set_index("timestamp"), {}, id="the time in the index"),
        pytest.param(lambda f: f.set_index("user_id").rename_axis(None), {"user_col": "index"}, id="without a name"),
        pytest.param(lambda frame: frame.iloc[[0, 3, 1, 4, 2, 5]], {}, id="an index out of order"),
        pytest.param(lambda frame: pd.concat([frame, frame["item_id"]], axis=1), {}, id="the same column twice"),
        pytest.param(lambda f: f.rename(columns=lambda name: (name, "")), {}, id="names of two levels"),
        pytest.param(lambda frame: frame.convert_dtypes(), {}, id="nullable types"),
        pytest.param(lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"), {}, id="Arrow types"),
        pytest.param(lambda f: f.astype({"user_id": "category", "item_id": "category"}), {}, id="categories"),
        pytest.param(lambda frame: frame.astype(object), {}, id="objects"),
        pytest.param(lambda frame: frame.assign(timestamp=MOMENTS), {}, id="half-hour zone"),
        pytest.param(lambda f: f.assign(timestamp=pd.Series(MOMENTS, dtype=object)), {}, id="moments as objects"),
        pytest.param(
            lambda f: f.assign(timestamp=[m.astimezone(UTC) if n % 2 else m for n, m in enumerate(MOMENTS)]),
            {},
            id="moments of two zones",
        ),
        pytest.param(
            lambda f: f.assign(timestamp=pd.PeriodIndex.from_ordinals(TIMES, freq="s")), {}, id="periods as times"
        ),
        pytest.param(
            lambda f: f.assign(timestamp=pd.Series(MOMENTS).astype("timestamp[ns, tz=+05:30][pyarrow]")),
            {},
            id="Arrow +05:30",
        ),
        pytest.param(lambda frame: pa.Table.from_pandas(frame, preserve_index=False), {}, id="a PyArrow table"),
        pytest.param(
            lambda f: pl.from_pandas(f).with_columns(o=pl.Series([object()] * 6, dtype=pl.Object)),
            {},
            id="polars Object",
        ),
        pytest.param(
            lambda f: pl.from_pandas(f).with_columns(item_id=pl.Series(ITEMS, dtype=pl.Object)), {}, id="text as Object"
        ),
    ],
)
def test_what_has_one_meaning_is_read(change: Callable[[pd.DataFrame], pd.DataFrame], settings: dict[str, Any]) -> None:
    assert histories(change(log()), **settings) == WANTED


def test_identifiers_that_are_uuids() -> None:
    names = [uuid.UUID(int=number) for number in (1, 2, 3, 2, 3, 1)]
    assert histories(log().assign(item_id=names))["u"] == [str(name) for name in names[:3]][::-1]


@pytest.mark.parametrize(
    ("change", "said", "remedy"),
    [
        pytest.param(
            lambda f: f.assign(item_id=["a", 1, 2, 1, 2, "a"]), "column 'item_id': .*int and str", "astype", id="mixed"
        ),
        pytest.param(
            lambda f: f.assign(item_id=pd.interval_range(0, 6)), "column 'item_id': .*interval", "text", id="intervals"
        ),
        pytest.param(
            lambda f: pd.concat([f, f["item_id"].iloc[::-1].reset_index(drop=True)], axis=1),
            "column 'item_id': two columns have this name",
            "Rename",
            id="twice",
        ),
        pytest.param(
            lambda f: f.set_index(pd.Index(USERS[::-1], name="user_id")), "'user_id': two columns", "Rename", id="index"
        ),
        pytest.param(
            lambda f: pl.from_pandas(f).with_columns(item_id=pl.Series([object()] * 6, dtype=pl.Object)),
            "type object",
            "text",
            id="Object",
        ),
        pytest.param(lambda f: f.to_dict("list"), "is a dict, not a table", "polars or pandas", id="a dictionary"),
        pytest.param(lambda f: f.groupby("user_id"), "not a table", "polars or pandas", id="groups"),
        pytest.param(lambda f: f["user_id"], "not a table", "frame", id="a column"),
    ],
)
def test_what_has_not_is_named_with_its_remedy(change: Any, said: str, remedy: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        Dataset.from_frames(change(log()))
    assert remedy in caught.value.remedy


def test_sets_in_a_catalogue_are_several_values() -> None:
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "tags": [{"x", "y"}, {"y"}, set()]})
    data = Dataset.from_frames(log(), items)
    assert data.multi_fields == {"tags": "list"}
    assert [data.catalogue["tags"][data.item_index[name]] for name in "abc"] == ["x; y", "y", None]
