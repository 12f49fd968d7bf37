"""A data set as it was known at a moment, and with nothing held out."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError

ROWS = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 9)), min_size=8, max_size=24)


def made(rows: list[tuple[str, str, int]]) -> Dataset:
    rows = [*rows, *(("x", item, time) for time, item in enumerate("abcd"))]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Dataset.from_frames(log, duplicates="keep")


@settings(deadline=None, max_examples=25)
@given(ROWS, st.integers(-1, 11))
def test_until_a_moment_only_earlier_rows_are_there(rows: list[tuple[str, str, int]], moment: int) -> None:
    data = made(rows)
    then = data.until(moment)
    assert data.times is not None
    assert then.times is not None
    for user in range(data.num_users):
        mine = slice(data.offsets[user], data.offsets[user + 1])
        kept = data.items[mine][data.times[mine] < moment]
        assert then.items[then.offsets[user] : then.offsets[user + 1]].tolist() == kept.tolist()
    assert then.item_ids == data.item_ids
    assert then.user_ids.to_list() == data.user_ids.to_list()
    assert not len(then.valid)
    assert not len(then.test)
    assert then.train_end.tolist() == then.offsets[1:].tolist()
    assert then.is_temporal


@settings(deadline=None, max_examples=25)
@given(ROWS)
def test_the_whole_has_every_row_in_training(rows: list[tuple[str, str, int]]) -> None:
    data = made(rows)
    whole = data.whole()
    assert whole.train_counts.tolist() == np.bincount(data.items, minlength=data.num_items).tolist()
    assert not len(whole.valid)
    assert not len(whole.test)
    assert whole.fingerprint != data.fingerprint
    assert whole.is_temporal == data.is_temporal


def test_a_log_without_times_has_no_moment() -> None:
    data = Dataset.from_frames(pl.DataFrame({"user_id": [*"uuuv"], "item_id": [*"abcd"], "position": [*range(4)]}))
    with pytest.raises(DataError, match="no times"):
        data.until(5)


@pytest.mark.parametrize(("history", "expected"), [("window", ["c"]), ("event", ["c", "b"])])
def test_targets_behind_a_moment_are_of_the_users_that_the_split_asks_for(
    history: Literal["window", "event"], expected: list[str]
) -> None:
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 5), ("v", "a", 5), ("v", "b", 6), ("w", "a", 6), ("w", "b", 9)]
    rows += [("x", item, 20 + time) for time, item in enumerate("abcd")]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log = log.with_columns(pl.col("timestamp") * 86_400)
    data = Dataset.from_frames(log, split="temporal", valid_fraction=0.1, test_fraction=0.1, history=history)
    then = data.before(4 * 86_400, days=4)  # w's second item comes too late
    assert [data.item_ids[item] for item in data.items[then.valid]] == expected
    assert then.target_history == history == then.training_part().target_history
    assert then.until(7 * 86_400).target_history == history
