"""What the same users choose: counts and scores by loops, and while events come."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from evaluation.examples import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec.errors import DataError
from llmd4rec.inference.memory import subset
from llmd4rec.scoring.memory.counting import Log, count_together
from llmd4rec.scoring.memory.item_knn import ItemKNNScorer
from llmd4rec.scoring.memory.settings import ItemKNN, Memory
from llmd4rec.scoring.memory.state import CountedMemory

from .memories import ITEMS, SEEDS, counted_memory
from .memory_oracle import counted, item_knn_scores, random_log, together

ALONE = Memory(content=None, transitions=None, recency=None, weights={"item_knn": 1.0})


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    last=st.sampled_from([1, 2, 4, 50]),
    powers=st.sampled_from([(0.7, 0.3), (0.5, 0.5), (0.0, 0.0)]),
    at_once=st.sampled_from([1, 40, 1 << 20]),
    share=st.sampled_from([None, 0.5, 1.0]),
)
def test_counts_and_scores_are_those_of_loops(
    seed: int, last: int, powers: tuple[float, float], at_once: int, share: float | None
) -> None:
    data = random_log(seed)
    assert data.times is not None
    counts = counted(data, None if share is None else int(np.quantile(data.times, share)) + 1)
    both, chosen = together(data, counts, last)
    log = Log(data.items, data.offsets, np.array(counts), data.times, ITEMS)
    starts, columns, values, found = count_together(log, last, 1000, at_once)
    dense = np.zeros((ITEMS, ITEMS))
    dense[np.repeat(np.arange(ITEMS), np.diff(starts)), columns] = values[:, 0]
    np.testing.assert_array_equal(dense, both)
    np.testing.assert_array_equal(found, chosen)
    asked = ItemKNN(last=last, history_power=powers[0], item_power=powers[1])
    histories = [[3, 5, 3, 9], [0], []]
    query = ItemKNNScorer.count(asked, log).prepare(histories, [None] * 3, [None] * 3)
    np.testing.assert_allclose(
        query.scores(), [item_knn_scores(each, both, chosen, asked) for each in histories], rtol=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    last=st.sampled_from([1, 2, 4, 50]),
    max_per_row=st.sampled_from([1, 4, 1000]),
    at_once=st.booleans(),
    changed=st.booleans(),
)
def test_leaving_out_a_user_is_counting_the_others(
    seed: int, last: int, max_per_row: int, at_once: bool, changed: bool
) -> None:
    """Of rows that were cut to their highest counts, what was cut off is not taken off again."""
    data = random_log(seed)
    asked = ItemKNN(last=last, max_per_row=max_per_row)
    counts = counted(data, None)
    log = Log(data.items, data.offsets, np.array(counts), data.times, ITEMS)
    scorer = ItemKNNScorer.count(asked, log)
    whole, chosen = together(data, counts, last)
    if changed and max_per_row == 1000:  # the rows of 0 and 1 are not those of a fresh count any more
        scorer.observe([0], 1)
        whole[0, 1], whole[1, 0], chosen[1] = whole[0, 1] + 1, whole[1, 0] + 1, chosen[1] + 1
    kept = np.array([np.isin(np.arange(ITEMS), scorer.together(item)[0]) for item in range(ITEMS)])
    users, windows, expected = [], [], []
    histories = [data.items[a:b] for a, b in zip(data.offsets[:-1], data.train_end, strict=True)]
    for user, history in enumerate(histories):
        theirs = (np.arange(len(counts)) >= data.offsets[user]) & (np.arange(len(counts)) < data.train_end[user])
        others = np.where(kept, whole - together(data, theirs.tolist(), last)[0], 0)
        for end in range(1, len(history)):
            users.append(user)
            windows.append(history[:end].tolist())
            expected.append(item_knn_scores(windows[-1], others, chosen, asked))
    if at_once:
        found = scorer.prepare_leaving_out(windows, histories, np.array(users)).scores()
    else:
        one_by_one = [
            scorer.prepare_leaving_out([window], [histories[user]], np.zeros(1, np.int64))
            for window, user in zip(windows, users, strict=True)
        ]
        found = np.concatenate([each.scores() for each in one_by_one])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_by_hand() -> None:
    """a with b by two users, a with c by one; b is chosen thrice, c once; a twice, and again, which is not counted."""
    data = make_dataset([[0, 1, 0], [0, 1], [2, 0], [1]], 3).whole()
    scorer = counted_memory(ALONE, data, None).parts["item_knn"]
    found = scorer.prepare([[0]], [None], [None]).scores()[0]
    np.testing.assert_allclose(found, [0, 2 / 3**0.7 / 3**0.3, 1 / 3**0.7], rtol=1e-6)


def test_of_a_long_row_the_highest_counts_are_kept() -> None:
    data = make_dataset([[0, 1], [0, 1], [0, 2], [0, 3], [0, 3], [0, 3]], 4).whole()
    log = Log(data.items, data.offsets, np.ones(len(data.items), bool), None, 4)
    starts, columns, values, chosen = count_together(log, 50, 2)
    assert columns[: starts[1]].tolist() == [1, 3]
    assert values[: starts[1], 0].tolist() == [2, 3]
    assert chosen.tolist() == [6, 2, 1, 3]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, last=st.sampled_from([1, 3, 50]))
def test_observing_is_counting_anew(seed: int, last: int) -> None:
    data = random_log(seed)
    asked = ALONE.model_copy(update={"item_knn": ItemKNN(last=last)})
    nothing = data.until(0)
    memory, expected = counted_memory(asked, nothing.whole(), None), counted_memory(asked, data.whole(), None)
    for start, end in pairwise(data.offsets.tolist()):
        for position in range(start, end):
            memory.observe(data.items[start:position].tolist(), int(data.items[position]), None)
    for each in (memory, subset(memory, np.arange(ITEMS))):
        found, wanted = (one.prepare([[0, 1, 7], [5]], [None] * 2, [None] * 2).scores() for one in (each, expected))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_new_item_is_counted_in_and_shared_with_the_smaller_catalogue() -> None:
    memory = counted_memory(ALONE, random_log(1), None)
    grown = memory.with_items([ITEMS], {})
    assert grown.prepare([[5]], [None], [None]).scores()[0, ITEMS] == 0
    grown.observe([5, 6], ITEMS, None)
    assert grown.prepare([[5]], [None], [None]).scores()[0, ITEMS] > 0
    assert grown.prepare([[ITEMS]], [None], [None]).scores()[0, [5, 6]].min() > 0
    assert memory.prepare([[5]], [None], [None]).scores().shape == (1, ITEMS)


def test_a_part_of_the_catalogue_keeps_what_is_within() -> None:
    memory = counted_memory(ALONE, random_log(3), None)
    rows = np.array([7, 2, 5])
    whole, part = memory.parts["item_knn"], subset(memory, rows).parts["item_knn"]
    expected = whole.prepare([[7, 5]], [None], [None]).scores()[0, rows]
    np.testing.assert_allclose(part.prepare([[0, 2]], [None], [None]).scores()[0], expected, rtol=1e-6)


def test_without_a_weight_it_can_be_left_out() -> None:
    memory = counted_memory(Memory(content=None, weights={"item_knn": 1.0}), random_log(2), None)
    assert "item_knn" in memory.without_unused().parts
    unused = memory.with_weights({"transitions": 1.0, "item_knn": 0.0})
    fewer = unused.without_unused()
    assert list(fewer.parts) == ["transitions", "recency"]
    query = [[3, 5]], [None], [None]
    np.testing.assert_array_equal(fewer.prepare(*query).scores(), unused.prepare(*query).scores())
    alone = counted_memory(ALONE, random_log(2), None).with_weights({"item_knn": 0.0})
    assert list(alone.without_unused().parts) == ["item_knn"]


@pytest.mark.parametrize("name", ["item_knn_items", "item_knn_counts", "item_knn_chosen"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    memory = counted_memory(ALONE, random_log(2), None)
    memory.save(folder)
    query = [[3, 5]], [None], [None]
    np.testing.assert_array_equal(CountedMemory.load(folder).prepare(*query).scores(), memory.prepare(*query).scores())
    array = np.load(folder / f"{name}.npy")
    np.save(folder / f"{name}.npy", array * -1 - 1)
    with pytest.raises(DataError, match="does not fit"):
        CountedMemory.load(folder)
