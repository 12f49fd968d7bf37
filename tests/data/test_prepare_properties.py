"""What must hold for any log: nothing lost but what the report names, order kept, splits disjoint, a true k-core."""

from __future__ import annotations

import gzip
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.clean import core_mask
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import DataError

ids = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=6).filter(
    lambda text: text.strip() != "" and not text.endswith(".0")
)


@st.composite
def logs(draw: st.DrawFn, least: int = 6) -> list[tuple[str, str, int]]:
    """A log of `least` rows or more in which a user and an item occur at least, in any order of times and with ties."""
    users = draw(st.lists(ids, min_size=2, max_size=5, unique=True))
    items = draw(st.lists(ids, min_size=2, max_size=6, unique=True))
    row = st.tuples(st.sampled_from(users), st.sampled_from(items), st.integers(0, 8))
    rows = draw(st.lists(row, min_size=least, max_size=40))
    counts = Counter(user for user, _, _ in rows)
    assume(len(counts) > 1 and len({item for _, item, _ in rows}) > 1 and max(counts.values()) > 2)
    return rows


def frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "time": pl.Int64}, orient="row")


def unfolded(data: Dataset) -> list[tuple[str, str, int]]:
    assert data.times is not None
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    names = data.user_ids.to_list()
    return [
        (names[user], data.item_ids[item], int(time))
        for user, item, time in zip(users, data.items, data.times, strict=True)
    ]


@settings(deadline=None, max_examples=12)
@given(logs())
def test_everything_is_kept_in_order_of_time_with_ties_in_file_order(rows: list[tuple[str, str, int]]) -> None:
    data = Dataset.from_frames(frame(rows), duplicates="keep")
    expected = defaultdict(list)
    for row in rows:
        expected[row[0]].append(row)
    in_order = [row for user in expected for row in sorted(expected[user], key=lambda row: row[2])]
    assert unfolded(data) == in_order


@settings(deadline=None, max_examples=12)
@given(logs(), st.sampled_from(["exact", "drop-consecutive", "drop"]), st.integers(0, 3), st.integers(1, 3))
def test_what_is_missing_is_what_the_report_names(
    rows: list[tuple[str, str, int]], how: str, core: int, shortest: int
) -> None:
    try:
        data = Dataset.from_frames(frame(rows), duplicates=how, k_core=core, min_history=shortest)
    except DataError:
        return
    kept = unfolded(data)
    assert not Counter(kept) - Counter(rows)
    steps = data.report["steps"]
    assert steps[0]["rows_out"] == len(rows)
    assert all(before["rows_out"] == after["rows_in"] for before, after in pairwise(steps))
    assert steps[-1]["rows_out"] == len(kept) == data.report["totals"]["interactions"]
    if how == "exact" and core <= 1 and shortest <= 1:
        assert set(kept) == set(rows)
        assert len(kept) == len(set(rows))
    if how == "drop":
        assert max(Counter((user, item) for user, item, _ in kept).values()) == 1


@settings(deadline=None, max_examples=12)
@given(logs(), st.sampled_from(["leave-one-out", "temporal"]))
def test_splits_are_disjoint_and_the_past_comes_first(rows: list[tuple[str, str, int]], split: str) -> None:
    try:
        data = Dataset.from_frames(frame(rows), split=split, valid_fraction=0.25, test_fraction=0.25)
    except DataError:
        return
    train = {at for user in range(data.num_users) for at in range(int(data.offsets[user]), int(data.train_end[user]))}
    valid, test = set(data.valid.tolist()), set(data.test.tolist())
    assert len(train | valid | test) == len(train) + len(valid) + len(test)
    for positions in (data.valid, data.test):
        assert (np.diff(positions) > 0).all()
        users = data.users_of(positions)
        assert len(set(users.tolist())) == len(users)
        assert (positions > data.offsets[users]).all()
    assert (data.train_end <= data.offsets[1:]).all()
    if split == "temporal":
        assert data.times is not None
        assert max(data.times[sorted(train)]) < min(data.times[data.valid]) < min(data.times[data.test])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_core_is_that_of_a_naive_reference(pairs: list[tuple[int, int]], user_least: int, item_least: int) -> None:
    users, items = (np.array(codes, dtype=np.uint32) for codes in zip(*pairs, strict=True))
    mask, _ = core_mask(users, items, user_least, item_least)
    left = list(enumerate(pairs))
    while True:
        per_user, per_item = Counter(u for _, (u, _) in left), Counter(i for _, (_, i) in left)
        next_left = [(n, (u, i)) for n, (u, i) in left if per_user[u] >= user_least and per_item[i] >= item_least]
        if len(next_left) == len(left):
            break
        left = next_left
    assert np.flatnonzero(mask).tolist() == [number for number, _ in left]


@settings(deadline=None, max_examples=12)
@given(logs())
def test_identifiers_survive_csv(rows: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.csv")
        frame(rows).write_csv(path)
        data = prepare_files(path, None, Path(folder, "out"), Prepare(duplicates="keep"))
    assert data.fingerprint == Dataset.from_frames(frame(rows), duplicates="keep").fingerprint


@st.composite
def cleanings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of everything that drops rows."""
    core, shortest = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    return {
        "duplicates": draw(st.sampled_from(["exact", "keep", "drop-consecutive", "drop"])),
        "k_core": core,
        "min_history": shortest,
        "max_history": draw(st.none() | st.integers(max(core, shortest, 1), 6)),
    }


def prepared(rows: list[tuple[str, str, int]], **how: Any) -> Dataset:
    """The data set; an example without one is another example's."""
    try:
        return Dataset.from_frames(frame(rows), **how)
    except DataError:
        reject()


def by_user(rows: list[tuple[str, str, int]]) -> dict[str, list[tuple[str, str, int]]]:
    found = defaultdict(list)
    for row in rows:
        found[row[0]].append(row)
    return found


@settings(deadline=None, max_examples=20)
@given(logs(least=15), cleanings())
def test_whatever_is_dropped_the_order_of_the_rest_stays(rows: list[tuple[str, str, int]], how: dict[str, Any]) -> None:
    data = prepared(rows, **how)
    whole = by_user(sorted(rows, key=lambda row: row[2]))
    for user, kept in by_user(unfolded(data)).items():
        rest = iter(whole[user])
        assert all(row in rest for row in kept)  # which moves on behind each row that it finds
        if how["duplicates"] == "keep" and how["k_core"] <= 1:
            assert kept == whole[user][-(how["max_history"] or len(rows)) :]


@settings(deadline=None, max_examples=15)
@given(logs(least=25), cleanings(), st.integers(3, 5))
def test_a_long_history_keeps_its_end(rows: list[tuple[str, str, int]], how: dict[str, Any], most: int) -> None:
    whole, cut = by_user(unfolded(prepared(rows, **how | {"max_history": None}))), how | {"max_history": most}
    assume(max(map(len, whole.values())) > most)
    assert by_user(unfolded(prepared(rows, **cut))) == {user: kept[-most:] for user, kept in whole.items()}


@settings(deadline=None, max_examples=20)
@given(logs(least=15), cleanings())
def test_what_is_clean_stays_as_it_is(rows: list[tuple[str, str, int]], how: dict[str, Any]) -> None:
    """The k-core above all is a fixed point: it leaves nothing that it would drop."""
    how["max_history"] = None  # to cut histories may leave items with too few interactions, as documented
    data = prepared(rows, **how)
    per_user, per_item = Counter(row[0] for row in unfolded(data)), Counter(row[1] for row in unfolded(data))
    assert min(per_user.values()) >= max(how["k_core"], how["min_history"])
    assert min(per_item.values()) >= how["k_core"]
    if how["duplicates"] == "drop-consecutive":
        how["duplicates"] = "keep"  # what the core leaves side by side was none in a row in the log
    again = Dataset.from_frames(frame(unfolded(data)), **how)
    assert unfolded(again) == unfolded(data)
    assert again.report["steps"][-1]["rows_out"] == again.report["steps"][0]["rows_in"]


@settings(deadline=None, max_examples=15)
@given(logs(least=15), cleanings())
def test_the_rows_named_as_dropped_are_gone_and_no_others(
    rows: list[tuple[str, str, int]], how: dict[str, Any]
) -> None:
    data = prepared(rows, **how)
    lost = Counter(rows) - Counter(unfolded(data))
    steps = data.report["steps"][1:]
    assert sum(step["rows_in"] - step["rows_out"] for step in steps) == sum(lost.values())
    for step in steps:
        named = step.get("example_rows", [])
        assert len(set(named)) == len(named) == min(5, step["rows_in"] - step["rows_out"])
        assert all(rows[number - 1] in lost for number in named)
    assert len({number for step in steps for number in step.get("example_rows", [])}) == sum(
        len(step.get("example_rows", [])) for step in steps
    )


@settings(deadline=None, max_examples=12)
@given(logs(), st.randoms(use_true_random=False))
def test_the_order_of_rows_decides_between_ties_alone(rows: list[tuple[str, str, int]], random: Random) -> None:
    distinct = [(user, item, number) for number, (user, item, _) in enumerate(rows)]
    shuffled = list(distinct)
    random.shuffle(shuffled)
    first, second = Dataset.from_frames(frame(distinct)), Dataset.from_frames(frame(shuffled))
    assert by_user(unfolded(first)) == by_user(unfolded(second))
    assert first.item_ids == second.item_ids


FORMATS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "log.tsv": lambda log, path: log.write_csv(path, separator="\t"),
    "log.jsonl": lambda log, path: log.write_ndjson(path),
    "log.parquet": lambda log, path: log.write_parquet(path),
    "log.csv.gz": lambda log, path: path.write_bytes(gzip.compress(log.write_csv().encode())),
}


@settings(deadline=None, max_examples=12)
@given(logs(), st.sampled_from(sorted(FORMATS)))
def test_identifiers_survive_every_format_and_the_folder(rows: list[tuple[str, str, int]], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        FORMATS[name](frame(rows), path)
        data = prepare_files(path, None, Path(folder, "out"), Prepare(duplicates="keep"))
        loaded = Dataset.load(Path(folder, "out"))
        assert Counter(unfolded(loaded)) == Counter(rows)
        assert loaded.fingerprint == data.fingerprint == Dataset.from_frames(frame(rows), duplicates="keep").fingerprint
        assert [loaded.item_index[item_id] for item_id in loaded.item_ids] == list(range(loaded.num_items))
