"""The cache of a teacher against the model it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.examples import LastItemModel, random_dataset
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import open_cache, write_cache
from llmd4rec.errors import LLMD4RecError, ModelError, RunError
from llmd4rec.losses.int8 import Int8Rows
from llmd4rec.losses.scores import Factors
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.sequential import SASRec

ITEMS = 50
CPU = torch.device("cpu")


@pytest.fixture
def data() -> Dataset:
    return random_dataset(25, ITEMS, longest=30)


def model(max_length: int = 10) -> SequenceEncoder:
    network = SASRec(dim=16, layers=1, dropout=0.5, max_length=max_length).build(ITEMS, 3)
    with torch.no_grad():
        network.get_parameter("items.weight").mul_(20)  # an untrained model's scores are all alike
    return network


def contexts(data: Dataset, max_length: int) -> list[tuple[list[int], int]]:
    """What each training position's state has seen, and its true next item, in the order of their numbers."""
    windows = TrainingWindows(data, max_length)
    found: list[tuple[list[int], int]] = [([], 0)] * windows.num_positions
    for chosen in windows.in_order(64):
        batch = windows.batch(chosen)
        rows = [divmod(index, batch.items_BL.shape[1]) for index in batch.trained_N.tolist()]
        numbers, targets = batch.position_N.tolist(), batch.target_N.tolist()
        for (row, column), number, target in zip(rows, numbers, targets, strict=True):
            found[number] = (batch.items_BL[row, : column + 1].tolist(), target)
    return found


def test_the_rebuilt_distributions_are_the_models(data: Dataset, tmp_path: Path) -> None:
    network = model().train()
    write_cache(network, data, tmp_path / "teacher", label="teacher-1", batch_items=37)
    assert network.training  # left as it was, but cached without dropout:
    network.eval()
    teacher = open_cache(tmp_path / "teacher", data, CPU)
    pairs = contexts(data, 10)
    assert teacher.states.dtype == np.float16
    assert len(teacher.states) == len(teacher.rank) == len(pairs)

    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    batch = teacher.batch(order)
    assert isinstance(batch.scores, Factors)
    assert isinstance(batch.scores.table_IK, Tensor)
    rebuilt = (batch.scores.states_NK.float() @ batch.scores.table_IK.T).log_softmax(1)
    for row, number in enumerate(order.tolist()):
        history, _ = pairs[number]
        with torch.no_grad():
            state = last_states(network, SequenceBatch(torch.tensor([history]), torch.tensor([len(history)])))
            expected = (state @ network.item_table().T).log_softmax(1)[0]
            size = float(state.abs() @ network.item_table().abs().max(0).values)
        # Half precision keeps 11 bits of each coordinate: a score is off by at most 5e-4 of |state| · |item|, and a log
        # probability by twice as much.
        assert (rebuilt[row] - expected).abs().max() < 2 * 5e-4 * size


def test_ranks_are_those_of_the_rebuilt_scores_over_the_whole_catalogue(data: Dataset, tmp_path: Path) -> None:
    several = 3 * ITEMS  # blocks in a batch
    write_cache(model(), data, tmp_path / "teacher", label="teacher-1", block_elements=several)
    teacher = open_cache(tmp_path / "teacher", data, CPU)
    assert isinstance(teacher.table, Tensor)
    scores = teacher.states.astype(np.float64) @ teacher.table.numpy().T.astype(np.float64)
    targets = np.array([target for _, target in contexts(data, 10)])
    true = scores[np.arange(len(targets)), targets]
    brute = (scores >= true[:, None] - 1e-9).sum(1)
    assert (teacher.rank == brute).mean() > 0.99  # 32-bit rounding may swap neighbours
    assert np.abs(teacher.rank - brute).max() <= 1
    batch = teacher.batch(torch.tensor([5, 0, 7]))
    assert batch.rank_N.tolist() == teacher.rank[[5, 0, 7]].tolist()


def test_ranks_are_those_of_the_8_bit_scores_that_the_student_will_see(data: Dataset, tmp_path: Path) -> None:
    write_cache(model(), data, tmp_path / "teacher", label="teacher-1", precision="int8")
    teacher = open_cache(tmp_path / "teacher", data, CPU, "int8")
    batch = teacher.batch(torch.arange(len(teacher.rank)))
    assert isinstance(batch.scores, Factors)
    assert isinstance(batch.scores.table_IK, Int8Rows)
    rows = Int8Rows.of(batch.scores.states_NK.float())
    scores = rows.matmul(batch.scores.table_IK, torch.empty(len(teacher.rank), ITEMS))
    target_N1 = torch.tensor([[target] for _, target in contexts(data, 10)])
    assert teacher.rank.tolist() == (scores >= scores.gather(1, target_N1)).sum(1).tolist()
    write_cache(model(), data, tmp_path / "exact", label="teacher-1")
    exact = open_cache(tmp_path / "exact", data, CPU).rank
    assert teacher.rank.tolist() != exact.tolist()  # rounded
    assert np.corrcoef(teacher.rank, exact)[0, 1] > 0.99


def test_ties_count_against_the_true_item(data: Dataset, tmp_path: Path) -> None:
    write_cache(LastItemModel(torch.ones(ITEMS, 4)), data, tmp_path / "teacher", label="constant")
    assert (open_cache(tmp_path / "teacher", data, CPU).rank == ITEMS).all()


def test_one_forward_pass_over_the_training_items(data: Dataset, tmp_path: Path) -> None:
    watched = LastItemModel(torch.randn(ITEMS, 4), max_length=40)
    write_cache(watched, data, tmp_path / "teacher", label="watched", batch_items=100)
    real = sum(int(lengths.sum()) for _, lengths in watched.batches)
    assert real == TrainingWindows(data, 40).num_positions
    assert all(items.numel() <= 100 or len(items) == 1 for items, _ in watched.batches)
    assert watched.modes == [(False, True)] * len(watched.batches)


def test_states_beyond_half_precision_are_kept_in_single(data: Dataset, tmp_path: Path) -> None:
    table = torch.rand(ITEMS, 4) + 0.5
    table[ITEMS // 2 :] *= 1e5  # earlier batches fit into half precision, later ones do not, or the other way round
    write_cache(LastItemModel(table), data, tmp_path / "teacher", label="large", batch_items=16)
    teacher = open_cache(tmp_path / "teacher", data, CPU)
    assert teacher.states.dtype == np.float32
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == [
        "rank.npy", "states.npy", "table.npy", "teacher.json",
    ]  # fmt: skip
    expected = np.array([table[history[-1]].numpy() for history, _ in contexts(data, 5)])
    np.testing.assert_allclose(teacher.states, expected, rtol=1e-3)


def test_only_the_drawn_candidates_are_compared(data: Dataset, tmp_path: Path) -> None:
    write_cache(model(), data, tmp_path / "teacher", label="teacher-1")
    teacher = open_cache(tmp_path / "teacher", data, CPU)
    candidates = torch.tensor([3, 10, 44])
    scores = teacher.batch(torch.tensor([0]), candidates).scores
    assert isinstance(scores, Factors)
    assert isinstance(scores.table_IK, Tensor)
    assert isinstance(teacher.table, Tensor)
    assert torch.equal(scores.table_IK, teacher.table[candidates])


def test_other_data_is_refused(data: Dataset, tmp_path: Path) -> None:
    write_cache(model(), data, tmp_path / "teacher", label="teacher-1")
    with pytest.raises(RunError, match="made for other data"):
        open_cache(tmp_path / "teacher", random_dataset(25, ITEMS, seed=1, longest=30), CPU)


@pytest.mark.parametrize("name", ["teacher.json", "states.npy", "table.npy", "rank.npy"])
@pytest.mark.parametrize("how", ["missing", "cut", "bit"])
def test_a_damaged_cache_is_refused(data: Dataset, tmp_path: Path, name: str, how: str) -> None:
    write_cache(model(), data, tmp_path / "teacher", label="teacher-1")
    path = tmp_path / "teacher" / name
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:50])
    else:
        content[-30] ^= 1  # of a state, a score or a rank; of a checksum
        path.write_bytes(content)
    with pytest.raises(RunError, match="Delete"):
        open_cache(tmp_path / "teacher", data, CPU)


def test_a_cache_of_other_weights_is_refused(data: Dataset, tmp_path: Path) -> None:
    made_of = {"undistilled": "1", "llm": "2"}
    write_cache(model(), data, tmp_path / "teacher", label="teacher-1", made_of=made_of)
    open_cache(tmp_path / "teacher", data, CPU, made_of=made_of)
    open_cache(tmp_path / "teacher", data, CPU)
    for other in ({"undistilled": "1", "llm": "3"}, {"undistilled": "1"}, {}):
        with pytest.raises(RunError, match="of other models than the run has now"):
            open_cache(tmp_path / "teacher", data, CPU, made_of=other)


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(data: Dataset, small_disk: Path) -> None:
    """As it would be for a mapping that the disk has no room for."""
    network = SASRec(dim=256, layers=1, max_length=10).build(ITEMS, 3)
    with pytest.raises(LLMD4RecError, match="the disk is full"):
        write_cache(network, data, small_disk / "teacher", label="teacher-1")
    assert list(small_disk.iterdir()) == []


class Poisoned(LastItemModel):
    """Gives a state that is no number after some batches."""

    def states(self, batch: SequenceBatch) -> Tensor:
        states = super().states(batch)
        return states * torch.nan if len(self.batches) == 4 else states


def test_undefined_states_are_never_cached(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot cache llm-round-2: a state is not a finite number"):
        write_cache(Poisoned(torch.randn(ITEMS, 4)), data, tmp_path / "teacher", label="llm-round-2", batch_items=20)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_cache_that_was_there(data: Dataset, tmp_path: Path) -> None:
    good = model()
    write_cache(good, data, tmp_path / "teacher", label="good")
    before = np.array(open_cache(tmp_path / "teacher", data, CPU).states)
    with pytest.raises(ModelError):
        write_cache(Poisoned(torch.randn(ITEMS, 4)), data, tmp_path / "teacher", label="bad", batch_items=20)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    np.testing.assert_array_equal(open_cache(tmp_path / "teacher", data, CPU).states, before)


def test_what_is_held_out_is_not_cached(data: Dataset, tmp_path: Path) -> None:
    write_cache(model(), data, tmp_path / "teacher", label="teacher-1")
    items = data.items.copy()
    items[data.valid], items[data.test] = (items[data.valid] + 1) % ITEMS, (items[data.test] + 2) % ITEMS
    altered = dataclasses.replace(data, items=items)
    write_cache(model(), altered, tmp_path / "altered", label="teacher-1")
    for name in ("states.npy", "table.npy", "rank.npy"):
        assert (tmp_path / "teacher" / name).read_bytes() == (tmp_path / "altered" / name).read_bytes()


def test_estimated_ranks_are_near_the_exact_ones(data: Dataset, tmp_path: Path) -> None:
    items = 2000
    data = random_dataset(40, items, longest=30)
    network = SASRec(dim=16, layers=1, max_length=10).build(items, 3)
    write_cache(network, data, tmp_path / "exact", label="teacher-1")
    write_cache(network, data, tmp_path / "estimated", label="teacher-1", rank_items=500)
    exact = open_cache(tmp_path / "exact", data, CPU).rank.astype(float)
    estimated = open_cache(tmp_path / "estimated", data, CPU).rank.astype(float)
    assert estimated.min() >= 1
    assert not np.array_equal(exact, estimated)
    # The share of 500 drawn items above the true one has a standard deviation of at most 0.5 / √500.
    assert np.abs(estimated - exact).max() / items < 5 * 0.5 / 500**0.5
    assert abs((estimated - exact).mean()) / items < 0.03
