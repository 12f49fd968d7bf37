from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from llmd4rec.data.dataset import NO_TIME, Dataset
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.evaluation.slices import rolling_slices, span, wilson
from llmd4rec.evaluation.windows import (
    Rolling,
    cut_at_fraction,
    cut_of,
    release_times,
    seconds_of,
    windows_of,
)

from .examples import make_dataset

DAY = 86_400


def shop() -> Dataset:
    """Four users over 30 days; the cut of the tests is day 10, windows are of ten days."""
    days = [
        [1, 5, 12, 13, 25],  # before the cut, two events in window 0, one in window 1
        [2, 3, 22],  # nothing in window 0
        [11, 12, 21],  # nobody before the cut: without history in window 0, with one in window 1
        [1, 4, 10],  # an event at the very cut belongs to window 0
    ]
    sequences = [[0, 1, 2, 3, 2], [1, 0, 5], [4, 5, 0], [2, 3, 1]]
    return make_dataset(sequences, num_items=6, times=[[day * DAY for day in user] for user in days])


ASKED = Rolling(windows=2, every=10 * DAY, choose_on=0, cut=10 * DAY)


def targets(data: Dataset, asked: Rolling) -> list[list[tuple[str, list[int], list[int]]]]:
    """Per window (user, history, targets)."""
    found = []
    for each in windows_of(data, asked):
        rows = np.arange(len(each.held.positions))
        wanted, seen = each.held.targets, each.held.seen(data, rows)
        users = data.users_of(each.held.positions)
        found.append(
            [
                (
                    data.user_ids[int(users[row])],
                    seen.items[seen.offsets[row] : seen.offsets[row + 1]].tolist(),
                    wanted.items[wanted.offsets[row] : wanted.offsets[row + 1]].tolist(),
                )
                for row in rows
            ]
        )
    return found


def test_the_first_event_of_each_user_with_a_history_is_asked_for() -> None:
    assert targets(shop(), ASKED) == [
        [("u0", [0, 1], [2]), ("u3", [2, 3], [1])],
        [("u0", [0, 1, 2, 3], [2]), ("u1", [1, 0], [5]), ("u2", [4, 5], [0])],
    ]


def test_users_whose_first_event_is_in_the_window_stand_apart() -> None:
    data = shop()
    first = [data.users_of(each.first_events).tolist() for each in windows_of(data, ASKED)]
    assert first == [[2], []]


def test_a_history_up_to_the_event_may_begin_in_the_window() -> None:
    found = targets(shop(), replace(ASKED, history="event"))
    assert found[0] == [("u0", [0, 1], [2]), ("u2", [4], [5]), ("u3", [2, 3], [1])]
    assert found[1] == targets(shop(), ASKED)[1]


def test_several_targets_are_those_of_the_window() -> None:
    assert targets(shop(), replace(ASKED, targets="all"))[0] == [("u0", [0, 1], [2, 3]), ("u3", [2, 3], [1])]
    assert targets(shop(), replace(ASKED, targets="next:1")) == targets(shop(), ASKED)


def test_windows_end_with_the_log() -> None:
    found = windows_of(shop(), replace(ASKED, windows=9))
    assert [(each.window.number, each.window.start // DAY, each.window.end // DAY) for each in found] == [
        (0, 10, 20),
        (1, 20, 30),
    ]


def test_unknown_times_stand_at_the_event_before() -> None:
    data = shop()
    times = np.array(data.times)
    times[1] = NO_TIME
    assert targets(replace(data, times=times), ASKED) == targets(data, ASKED)


@pytest.mark.parametrize("seed", range(5))
def test_every_event_behind_the_cut_is_a_target_once_over_all_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, 9, rng.integers(1, 9)).tolist() for _ in range(40)]
    times = [np.sort(rng.integers(0, 300, len(sequence))).tolist() for sequence in sequences]
    data = make_dataset(sequences, num_items=9, times=times)
    asked = Rolling(windows=40, every=7, choose_on=0, cut=90)
    expected = []
    for number in range(40):
        start = 90 + 7 * number
        for user, (items, moments) in enumerate(zip(sequences, times, strict=True)):
            inside = [place for place, moment in enumerate(moments) if start <= moment < start + 7]
            if inside and inside[0] > 0:
                expected.append((number, user, items[inside[0]]))
    found = [
        (each.window.number, int(user), int(item))
        for each in windows_of(data, asked)
        for user, item in zip(data.users_of(each.held.positions), each.held.targets.items, strict=True)
    ]
    assert found == expected


def test_the_cut_is_that_of_the_split() -> None:
    rng = np.random.default_rng(0)
    log = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in rng.integers(0, 20, 300)],
            "item_id": [f"i{item}" for item in rng.integers(0, 30, 300)],
            "timestamp": np.sort(rng.integers(0, 10**6, 300)) + 10**9,
        }
    )
    data = Dataset.from_frames(log, split="temporal", test_fraction=0.2, valid_fraction=0.1)
    assert data.times is not None
    cut = cut_of(data)
    assert cut == np.sort(data.times)[240] == cut_at_fraction(data, 0.2)
    assert (data.times[data.test] >= cut).all()
    assert (data.times[data.test - 1] < cut).all()


def test_one_moment_cannot_be_divided() -> None:
    data = make_dataset([[0, 1, 2, 3, 4]] * 3, 5, [[7 * DAY] * 5] * 3)
    with pytest.raises(DataError, match="have the same time"):
        windows_of(data, Rolling(cut=7 * DAY))


def test_other_splits_have_no_cut() -> None:
    with pytest.raises(DataError, match=r"(?s)no moment behind which.*--split temporal.*--cut-fraction"):
        cut_of(shop())


def test_data_that_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="no times"):
        windows_of(make_dataset([[0, 1, 2]], num_items=3), ASKED)
    with pytest.raises(DataError, match=r"(?s)times fall within the history of 'u0'.*--order-by time"):
        windows_of(make_dataset([[0, 1, 2]], num_items=3, times=[[5, 3, 9]]), ASKED)
    with pytest.raises(DataError, match=r"no user with a history has a target behind the cut, 1970-02-20"):
        windows_of(shop(), replace(ASKED, cut=50 * DAY))


@pytest.mark.parametrize(
    "wrong",
    [{"windows": 0}, {"every": 0}, {"choose_on": 10}, {"count_to": "day"}, {"history": "all"}, {"targets": "some"}],
)
def test_wrong_settings_are_refused(wrong: dict[str, int | str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Rolling(**wrong)  # type: ignore[arg-type]


def test_spans_are_read_and_written() -> None:
    assert [seconds_of(text) for text in ("7d", "6h", "30m", "90s", "2w")] == [7 * DAY, 21_600, 1_800, 90, 14 * DAY]
    assert [span(seconds) for seconds in (14 * DAY, DAY, 21_600, 90, 0)] == [
        *("14 days", "1 day", "6 hours", "90 seconds", "0")
    ]
    for wrong in ("7", "d", "0d", "1.5d", "7 days"):
        with pytest.raises(ConfigError, match="is no span of time"):
            seconds_of(wrong)


def test_released_items_are_the_candidates() -> None:
    data = shop()
    dates = ["1970-01-01", "1970-01-05", "1970-01-11", "1970-01-12", "1970-01-21", None]
    data = replace(data, catalogue=data.catalogue.with_columns(pl.Series("released", dates)))
    found = windows_of(data, replace(ASKED, released="released"))
    allowed = [None if each.candidates_I is None else each.candidates_I.tolist() for each in found]
    assert allowed == [[True, True, True, False, False, True], [True, True, True, True, True, True]]


def test_dates_of_release_may_be_years_and_must_be_dates() -> None:
    data = shop()
    catalogue = data.catalogue.with_columns(pl.Series("year", [1970, 1971, 1999, None, 2000, 1950]))
    data = replace(data, catalogue=catalogue)
    assert release_times(data, "year")[:2].tolist() == [0, 365 * DAY]
    with pytest.raises(ConfigError, match="no field 'date'"):
        release_times(data, "date")
    with pytest.raises(DataError):
        release_times(data, "title")


def test_slices_split_the_targets() -> None:
    table = pl.DataFrame(
        {
            "time": [0, 9, 10, 25, 85, 200],
            "gap": [0, 3_601, DAY, 8 * DAY, 31 * DAY, 400 * DAY],
            "item_count": [0, 1, 3, 4, 100, 0],
        }
    )
    days = rolling_slices(table, "days", every=10, cut=0)
    assert {label: mask.nonzero()[0].tolist() for label, mask in days.items()} == {
        "0 to 10 seconds": [0, 1],
        "10 seconds to 20 seconds": [2],
        "20 seconds to 40 seconds": [3],
        "more than 80 seconds": [4, 5],
    }
    gaps = rolling_slices(table, "gap", every=10, cut=0)
    assert [label for label in gaps] == [
        "at most an hour",
        "an hour to a day",
        "8 to 30 days",
        "31 to 90 days",
        "more than 90 days",
    ]
    items = rolling_slices(table, "items", every=10, cut=0)
    assert [mask.nonzero()[0].tolist() for mask in items.values()] == [[0, 5], [1, 2], [3, 4]]


def test_wilson_by_the_textbook() -> None:
    # R: prop.test(2, 20, correct = FALSE) and prop.test(0, 10, correct = FALSE)
    assert wilson(2, 20) == pytest.approx((0.0278665, 0.3010336), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_histories_may_begin_in_a_window_where_the_split_lets_them() -> None:
    data = shop()
    within = replace(data, report={"split": {"kind": "temporal", "history": "event"}})
    assert targets(within, ASKED) == targets(data, replace(ASKED, history="event")) != targets(data, ASKED)
    assert targets(within, replace(ASKED, history="window")) == targets(data, ASKED)
    assert ASKED.on(within).history == "event"
    assert ASKED.on(data).history == "window"
