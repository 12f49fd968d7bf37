"""Several targets per user."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.splits import temporal
from llmd4rec.errors import ConfigError, RunError
from llmd4rec.evaluation import Evaluation, Evaluator, compare
from llmd4rec.evaluation.held_out import held_out
from llmd4rec.evaluation.ranking import NO_CANDIDATE, ItemLists, rank_targets
from llmd4rec.scoring.factors import FactorQuery

from .examples import LastItemModel, evaluate, make_dataset

DAY = 86_400


def temporal_dataset() -> Dataset:
    """Two users of three periods: training before day 10, validation before day 20, test from then on."""
    items = [[0, 1, 2, 3, 2, 4, 0, 5, 5], [5, 4, 3]]
    days = [[1, 2, 11, 12, 13, 21, 22, 23, 24], [1, 15, 16]]
    data = make_dataset(items, num_items=6, times=[[day * DAY for day in each] for each in days])
    assert data.times is not None
    split = temporal(data.offsets, data.times, 5 / 12, 4 / 12)
    return dataclasses.replace(data, train_end=split.train_end, valid=split.valid, test=split.test)


def named(data: Dataset, lists: ItemLists) -> list[list[str]]:
    bounds = zip(lists.offsets[:-1], lists.offsets[1:], strict=True)
    return [[data.item_ids[item] for item in lists.items[start:end]] for start, end in bounds]


def test_targets_by_hand() -> None:
    data = temporal_dataset()
    assert named(data, held_out(data, "test").targets) == [["i4"]]
    assert named(data, held_out(data, "test", "next:3").targets) == [["i4", "i0", "i5"]]
    assert named(data, held_out(data, "test", "all").targets) == [["i4", "i0", "i5"]]
    # Validation ends where the user's test targets begin, and i2 comes twice.
    assert named(data, held_out(data, "valid", "all").targets) == [["i2", "i3"], ["i4", "i3"]]
    assert named(data, held_out(data, "valid", "next:1").targets) == named(data, held_out(data, "valid").targets)


def test_leave_one_out_holds_one_item_out() -> None:
    data = make_dataset([[0, 1, 2, 3], [3, 2, 1]], num_items=4)
    for split in ("valid", "test"):
        assert held_out(data, split, "all").targets.items.tolist() == held_out(data, split).targets.items.tolist()


@pytest.mark.parametrize("targets", ["", "next:", "next:0", "last", "next:x", 5])
def test_other_targets_are_refused(targets: object) -> None:
    with pytest.raises(ConfigError, match="targets is"):
        Evaluator(targets=targets)  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    users=st.integers(1, 6),
    items=st.integers(4, 12),
    block_elements=st.integers(1, 60),
    remove=st.booleans(),
)
def test_ranks_of_several_targets_are_places_in_the_list(
    seed: int, users: int, items: int, block_elements: int, remove: bool
) -> None:
    """Ties go against the targets; among themselves they share the places behind whatever ties with them."""
    rng = np.random.default_rng(seed)
    states, table = rng.integers(-2, 3, (users, 2)), rng.integers(-2, 3, (items, 2))
    wanted = [rng.choice(items, rng.integers(1, 5), replace=False) for _ in range(users)]
    lists = [rng.integers(0, items, rng.integers(0, 4)).tolist() if remove else [] for _ in range(users)]

    def joined(each: list[np.ndarray] | list[list[int]]) -> ItemLists:
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in each])]).astype(np.int64)
        return ItemLists(offsets, np.array([item for one in each for item in one], dtype=np.int64))

    targets = joined(wanted)
    query = FactorQuery.of(torch.tensor(states), torch.tensor(table))
    found = rank_targets(query, targets, joined(lists), 3, block_elements).ranks
    for user in range(users):
        scores = table @ states[user]
        candidates = [item for item in range(items) if item not in lists[user]]
        order = sorted(candidates, key=lambda item: (-scores[item], item in wanted[user]))
        expected = sorted(order.index(item) + 1 if item in order else NO_CANDIDATE for item in wanted[user])
        assert sorted(found[targets.offsets[user] : targets.offsets[user + 1]]) == expected


def test_figures_of_several_targets_by_hand() -> None:
    data = temporal_dataset()  # before the test targets: i0 i1 i2 i3 i2, of the first user
    order = ["i5", "i1", "i4", "i0", "i2", "i3"]
    table = torch.zeros(data.num_items, 1)
    for place, item in enumerate(order):
        table[data.item_index[item]] = float(len(order) - place)
    model = LastItemModel(torch.ones(data.num_items, 1))
    model.item_table = lambda items=None: table  # type: ignore[method-assign]
    names = ["recall@2", "precision@2", "map@2", "ndcg@2", "hr@2", "mrr@2"]
    kept = Evaluator(names, filter_seen=False, targets="all").evaluate(model, data)
    ideal = 1 + 1 / math.log2(3)
    assert kept.metrics == pytest.approx(
        {"recall@2": 1 / 3, "precision@2": 1 / 2, "map@2": 1 / 3, "ndcg@2": 1 / ideal, "hr@2": 1.0, "mrr@2": 1.0}
    )
    assert kept.per_user["ranks"].to_list() == [[3, 4, 1]]
    assert kept.per_user["item_ids"].to_list() == [["i4", "i0", "i5"]]
    # i0 is in the history: no candidate, and still one of three targets.
    filtered = Evaluator(names, targets="all").evaluate(model, data)
    assert filtered.per_user["ranks"].to_list() == [[2, NO_CANDIDATE, 1]]
    assert filtered.metrics["recall@2"] == pytest.approx(2 / 3)
    assert filtered.metrics["ndcg@2"] == pytest.approx(1.0)


def test_one_target_gives_the_same_figures_either_way() -> None:
    data = make_dataset([[0, 1, 2, 3], [3, 2, 1], [2, 0, 3]], num_items=5)
    model = LastItemModel(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert evaluate(model, data, targets="all").metrics == evaluate(model, data).metrics


def test_saving_and_comparing_several_targets(tmp_path: Path) -> None:
    data = temporal_dataset()
    models = [LastItemModel(torch.randn(data.num_items, 3, generator=torch.Generator().manual_seed(s))) for s in (0, 1)]
    first, second = (evaluate(model, data, "valid", targets="all") for model in models)
    first.save(tmp_path / "first")
    loaded = Evaluation.load(tmp_path / "first")
    assert loaded.to_json() == first.to_json()
    assert (first.to_json()["targets"], first.to_json()["num_targets"]) == ("all", 4)
    result = compare(loaded, second, flips=9, resamples=9)
    assert result.overall.metrics["ndcg@10"].first == first.metrics["ndcg@10"]
    with pytest.raises(RunError, match="targets is 'all' and 'next'"):
        compare(first, evaluate(models[0], data, "valid"))
