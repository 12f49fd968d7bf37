from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llmd4rec.errors import ModelError
from llmd4rec.evaluation.ranking import NO_CANDIDATE, NO_ITEM, ItemLists, rank_targets
from llmd4rec.scoring.factors import FactorQuery


def one_hot_scores(scores: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """States and table whose product is `scores`."""
    return torch.tensor(scores), torch.eye(len(scores[0]))


def seen_of(lists: list[list[int]]) -> ItemLists:
    offsets = np.concatenate([[0], np.cumsum([len(entry) for entry in lists])]).astype(np.int64)
    return ItemLists(offsets, np.array([item for entry in lists for item in entry], dtype=np.int32))


def test_by_hand() -> None:
    states, table = one_hot_scores([[0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0]])
    ranking = rank_targets(FactorQuery.of(states, table), np.array([2, 0]), k=3)
    assert ranking.ranks.tolist() == [3, 1]
    assert ranking.top.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert (ranking.ranks.dtype.name, ranking.top.dtype.name) == ("int64", "int32")


def test_ties_count_against_the_target() -> None:
    states, table = one_hot_scores([[1.0, 1.0, 1.0, 0.0]])
    for target in range(3):
        assert rank_targets(FactorQuery.of(states, table), np.array([target])).ranks.tolist() == [3]
    assert rank_targets(FactorQuery.of(states, table), np.array([3])).ranks.tolist() == [4]


@pytest.mark.parametrize("dim", [1, 8, 64, 576])
@pytest.mark.parametrize("rows", [1, 2, 7, 15])
def test_a_collapsed_model_ranks_every_target_last(dim: int, rows: int) -> None:
    """Also when states differ and all items share one vector, however the product rounds at a block's edges."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(15, dim, generator=generator)
    for row in (torch.zeros(dim), torch.randn(dim, generator=generator)):
        for table in (row.expand(1003, dim), row.repeat(1003, 1)):
            ranks = rank_targets(FactorQuery.of(states, table), np.arange(15), block_elements=rows * 1003).ranks
            assert (ranks == 1003).all()


def test_seen_items_are_no_candidates() -> None:
    states, table = one_hot_scores([[5.0, 4.0, 3.0, 2.0]])
    ranking = rank_targets(FactorQuery.of(states, table), np.array([2]), seen_of([[0, 0]]), k=4)
    assert ranking.ranks.tolist() == [2]
    assert ranking.top.tolist() == [[1, 2, 3, NO_ITEM]]


def test_a_target_already_seen_is_a_miss() -> None:
    states, table = one_hot_scores([[5.0, 4.0, 3.0]])
    assert rank_targets(FactorQuery.of(states, table), np.array([0]), seen_of([[0]])).ranks.tolist() == [NO_CANDIDATE]
    assert rank_targets(FactorQuery.of(states, table), np.array([0]), seen_of([[0, 1, 2]]), k=2).top.tolist() == [
        [-1, -1]
    ]


def test_more_places_than_items() -> None:
    states, table = one_hot_scores([[1.0, 2.0]])
    assert rank_targets(FactorQuery.of(states, table), np.array([0]), k=4).top.tolist() == [[1, 0, NO_ITEM, NO_ITEM]]


def test_no_users() -> None:
    ranking = rank_targets(FactorQuery.of(torch.empty(0, 2), torch.eye(2)), np.array([], dtype=np.int64), k=3)
    assert (ranking.ranks.shape, ranking.top.shape) == ((0,), (0, 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("k", [0, 2])
def test_scores_that_are_no_numbers_are_refused(value: float, k: int) -> None:
    good = torch.ones(3, 2)
    bad = good.clone()
    bad[2, 1] = value
    for states, table in ((bad, good), (good, bad)):
        with pytest.raises(ModelError, match="NaN"):
            rank_targets(FactorQuery.of(states, table), np.array([0, 0, 0]), k=k)


def test_overflow_is_refused() -> None:
    """Finite inputs whose product is inf - inf for an item that is not the target."""
    with pytest.raises(ModelError, match="NaN"):
        rank_targets(FactorQuery.of(torch.full((1, 2), 1e30), torch.tensor([[0.0, 0.0], [1e30, -1e30]])), np.array([0]))


def test_norms_that_overflow_never_lift_the_target() -> None:
    """The scores are finite, yet 1e30² is not: the allowance for rounding is then inf, or inf · 0."""
    states = torch.tensor([[1e30, 0.0]])
    table = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [0.0, 1.0]])
    for target in range(3):
        assert rank_targets(FactorQuery.of(states, table), np.array([target])).ranks.tolist() == [3]


def test_an_infinite_score_of_another_item_is_ahead_of_the_target() -> None:
    states, table = torch.tensor([[1e30]]), torch.tensor([[1.0], [1e30], [-1e30]])
    ranking = rank_targets(FactorQuery.of(states, table), np.array([0]), k=3)
    assert ranking.ranks[0] > 1
    assert ranking.top.tolist() == [[1, 0, NO_ITEM]]
    with pytest.raises(ModelError, match="scores"):
        rank_targets(FactorQuery.of(states, table), np.array([1]))


def test_a_catalogue_of_one_item() -> None:
    states, table = torch.ones(2, 3), torch.ones(1, 3)
    ranking = rank_targets(FactorQuery.of(states, table), np.array([0, 0]), seen_of([[], [0]]), k=3)
    assert ranking.ranks.tolist() == [1, NO_CANDIDATE]
    assert ranking.top.tolist() == [[0, NO_ITEM, NO_ITEM], [NO_ITEM, NO_ITEM, NO_ITEM]]


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0]), min_size=4, max_size=4), min_size=1, max_size=5),
    target=st.integers(0, 3),
    harm=st.integers(0, 3),
)
def test_a_better_score_of_another_item_never_helps_the_target(
    scores: list[list[float]], target: int, harm: int
) -> None:
    states, table = one_hot_scores(scores)
    targets = np.full(len(scores), target)
    before = rank_targets(FactorQuery.of(states, table), targets).ranks
    if harm != target:
        states[:, harm] += 1
        assert (rank_targets(FactorQuery.of(states, table), targets).ranks >= before).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    users=st.integers(1, 9),
    items=st.integers(1, 12),
    k=st.integers(0, 14),
    block_elements=st.integers(1, 60),
    remove=st.booleans(),
)
def test_agrees_with_brute_force(seed: int, users: int, items: int, k: int, block_elements: int, remove: bool) -> None:
    rng = np.random.default_rng(seed)
    states, table = rng.integers(-2, 3, (users, 2)), rng.integers(-2, 3, (items, 2))
    targets = rng.integers(0, items, users)
    lists = [rng.integers(0, items, rng.integers(0, 4)).tolist() if remove else [] for _ in range(users)]
    ranking = rank_targets(
        FactorQuery.of(torch.tensor(states), torch.tensor(table)),
        targets,
        seen_of(lists) if remove else None,
        k,
        block_elements,
    )
    for user, target in enumerate(targets):
        scores = [int(states[user] @ row) for row in table]
        candidates = [item for item in range(items) if item not in lists[user]]
        others = sum(scores[item] >= scores[target] for item in candidates if item != target)
        expected = 1 + others if target in candidates else NO_CANDIDATE
        assert ranking.ranks[user] == expected

        shown = [item for item in ranking.top[user].tolist() if item != NO_ITEM]
        assert len(set(shown)) == len(shown) == min(k, len(candidates))
        assert set(shown) <= set(candidates)
        best = sorted((scores[item] for item in candidates), reverse=True)[:k]
        assert [scores[item] for item in shown] == best
        if expected <= k:
            assert target in shown


class _LargestTensor(TorchDispatchMode):
    """Notes the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_memory_does_not_grow_with_users_times_items() -> None:
    users, items, dim, block = 1_500, 2_000, 4, 150_000
    states, table = torch.randn(users, dim), torch.randn(items, dim)
    seen = seen_of([[user % items, 3] for user in range(users)])
    with _LargestTensor() as largest:  # type: ignore[no-untyped-call]
        ranking = rank_targets(FactorQuery.of(states, table), np.zeros(users, dtype=np.int64), seen, 20, block)
    assert len(ranking.ranks) == users
    assert largest.elements <= block  # users × items is 20 times as much
