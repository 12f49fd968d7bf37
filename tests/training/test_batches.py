"""Training windows against plain Python that walks through every user's training items."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from evaluation.examples import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec.data.batching import TrainingWindows
from llmd4rec.data.dataset import Dataset

# (interactions, of which for training) of each user
users = st.lists(st.integers(0, 25).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=8)


def numbered(lengths: list[tuple[int, int]]) -> Dataset:
    """A data set whose items are their own flat positions, so that a batch says where it was read."""
    total = sum(length for length, _ in lengths)
    starts = np.cumsum([0, *(length for length, _ in lengths)])[:-1]
    sequences = [np.arange(start, start + length) for start, (length, _) in zip(starts, lengths, strict=True)]
    dataset = make_dataset(sequences, max(total, 1))
    ends = starts + [trained for _, trained in lengths]
    return dataclasses.replace(dataset, train_end=ends.astype(np.int64))


def training_pairs(dataset: Dataset) -> list[tuple[int, int, int]]:
    """(first flat position of the user, flat position of the last item seen, flat position of the target)."""
    pairs = []
    for start, end in zip(dataset.offsets[:-1].tolist(), dataset.train_end.tolist(), strict=True):
        pairs += [(start, last, last + 1) for last in range(start, end - 1)]
    return pairs


@given(users, st.integers(1, 9), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_each_position_is_trained_once_with_its_target_and_all_the_history_that_fits(
    lengths: list[tuple[int, int]], max_length: int, tokens: int
) -> None:
    dataset = numbered(lengths)
    windows = TrainingWindows(dataset, max_length)
    pairs = training_pairs(dataset)
    assert windows.num_positions == len(pairs)

    trained: dict[int, int] = {}  # number → length of the context it was trained with
    longest: dict[int, int] = {}  # flat position → the longest context any window shows it with
    for chosen in windows.shuffled(tokens, np.random.default_rng(0)):
        batch = windows.batch(chosen)
        assert batch.items_BL.shape[1] == int(batch.lengths_B.max()) <= max_length
        answers = iter(zip(batch.target_N.tolist(), batch.position_N.tolist(), strict=True))
        mask_BL = torch.zeros_like(batch.items_BL, dtype=torch.bool).flatten().index_fill_(0, batch.trained_N, True)
        mask_BL = mask_BL.view_as(batch.items_BL)
        for items, length, mask in zip(batch.items_BL, batch.lengths_B.tolist(), mask_BL, strict=True):
            assert items[length:].eq(0).all()
            assert not mask[length:].any()
            read = items[:length].tolist()
            assert read == list(range(read[0], read[0] + length))
            for row, flat in enumerate(read):
                longest[flat] = max(longest.get(flat, 0), row + 1)
                if mask[row]:
                    target, number = next(answers)
                    first, last, true_target = pairs[number]
                    assert (flat, target) == (last, true_target)
                    assert read[0] >= first
                    assert number not in trained
                    trained[number] = row + 1
        assert next(answers, None) is None

    assert trained.keys() == set(range(len(pairs)))
    for number, (first, last, _) in enumerate(pairs):
        available = last - first + 1
        assert trained[number] == longest[last]
        assert trained[number] >= min(available, max_length - max(1, max_length // 2) + 1)
        if available <= max_length:
            assert trained[number] == available
    assert windows.targets().tolist() == [target for _, _, target in pairs]


@given(users, st.integers(1, 9), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_both_orders_hold_every_window_once(lengths: list[tuple[int, int]], max_length: int, tokens: int) -> None:
    windows = TrainingWindows(numbered(lengths), max_length)
    everything = list(range(len(windows)))
    in_order = list(windows.in_order(tokens))
    assert sorted(int(w) for chosen in in_order for w in chosen) == everything
    sizes = [windows.batch(chosen).items_BL.shape for chosen in in_order]
    assert all(rows * columns <= tokens or rows == 1 for rows, columns in sizes)

    shuffled = windows.shuffled(tokens, np.random.default_rng(3))
    assert sorted(int(w) for chosen in shuffled for w in chosen) == everything
    again = windows.shuffled(tokens, np.random.default_rng(3))
    assert [chosen.tolist() for chosen in shuffled] == [chosen.tolist() for chosen in again]


def test_held_out_items_are_in_no_batch() -> None:
    marker = 99
    rng = np.random.default_rng(0)
    sequences = [[*rng.integers(0, 50, rng.integers(1, 30)), marker, marker] for _ in range(40)]
    windows = TrainingWindows(make_dataset(sequences, 100), 7)
    assert windows.num_positions == sum(len(sequence) - 3 for sequence in sequences)
    for batches in (windows.shuffled(64, rng), windows.in_order(64)):
        for chosen in batches:
            batch = windows.batch(chosen)
            assert not (batch.items_BL == marker).any()
            assert not (batch.target_N == marker).any()


def test_batches_are_of_about_the_size_asked_for_and_come_in_another_order_each_time() -> None:
    dataset = numbered([(length, length) for length in np.random.default_rng(0).integers(2, 60, 300)])
    windows = TrainingWindows(dataset, 20)
    epochs = [windows.shuffled(128, np.random.default_rng(seed)) for seed in (0, 1)]
    sizes = [len(windows.batch(chosen).target_N) for chosen in epochs[0]]
    assert np.median(sizes) == pytest.approx(128, rel=0.2)
    assert max(sizes) < 1.5 * 128 + 20
    assert [chosen.tolist() for chosen in epochs[0]] != [chosen.tolist() for chosen in epochs[1]]
    # Windows of a batch are of similar length, so that little is computed on padding.
    cells = sum(windows.batch(chosen).items_BL.numel() for chosen in epochs[0])
    real = sum(int(windows.batch(chosen).lengths_B.sum()) for chosen in epochs[0])
    assert real / cells > 0.9


@pytest.mark.parametrize("limit", [1, 100, 1000, 10**9])
def test_a_limited_epoch_trains_about_so_many_positions_drawn_anew(limit: int) -> None:
    windows = TrainingWindows(numbered([(30, 28)] * 100), 10)
    first, second = (windows.shuffled(64, np.random.default_rng(seed), limit) for seed in (0, 1))
    numbers = np.concatenate([windows.batch(chosen).position_N.numpy() for chosen in first])
    assert len(np.unique(numbers)) == len(numbers)
    wanted = min(limit, windows.num_positions)
    assert wanted <= len(numbers) < wanted + 10
    if limit < windows.num_positions:
        assert {int(w) for chosen in first for w in chosen} != {int(w) for chosen in second for w in chosen}


def test_users_with_nothing_to_train_give_no_window() -> None:
    windows = TrainingWindows(make_dataset([[1, 2], [3], [1, 2, 3]], 5), 4)
    assert windows.num_positions == len(windows) == 0
    assert windows.shuffled(16, np.random.default_rng(0)) == []
    assert list(windows.in_order(16)) == []
    assert windows.targets().tolist() == []
