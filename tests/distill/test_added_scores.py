"""A model that is taught with the memory's scores added to its own: loss, positions, cache, plan and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from distill.test_memory_teacher import CPU, ITEMS, memory_of, network
from scoring.memory_oracle import random_log, random_texts
from torch import Tensor
from torch.nn import functional as F

from llmd4rec.data.batching import TrainingBatch
from llmd4rec.distillation.cache import TeacherCache, open_cache, write_cache
from llmd4rec.distillation.memory_teacher import MemoryTeacher
from llmd4rec.losses.base import TeacherBatch
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.scores import AddedScores, Factors, SparseScores
from llmd4rec.losses.softmax import DistillationTerm, ranking_loss
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training


def some_added(positions: int, items: int, width: int = 3) -> tuple[AddedScores, Tensor]:
    """Added scores, and the same as a matrix."""
    states, table = torch.randn(positions, width), torch.randn(items, width)
    named = torch.stack([torch.randperm(items)[:4] for _ in range(positions)])
    values = 2 * torch.rand(positions, 4)
    return AddedScores(states, table, SparseScores(named, values)), (states @ table.T).scatter_add(1, named, values)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("large", [1.0, 40.0])
def test_what_is_added_counts_everywhere_in_the_loss(temperature: float, large: float) -> None:
    """Loss and gradients are autograd's of the sum, for small and large scores; the teacher's stay as they are."""
    torch.manual_seed(1)
    states, table = (large * torch.randn(7, 4)).requires_grad_(), torch.randn(11, 4, requires_grad=True)
    teacher_states, teacher_table = torch.randn(7, 5), torch.randn(11, 5)
    target, bias = torch.randint(0, 11, (7,)), torch.rand(11)
    added, matrix = some_added(7, 11)
    rank = torch.randint(1, 5, (7,))
    teaches = TeacherBatch(Factors(teacher_states, teacher_table), rank)
    term = DistillationTerm(3.0, temperature, "rank")
    options: dict[str, Any] = {"bias_I": bias, "label_smoothing": 0.1, "block_elements": 33}
    found = ranking_loss(states, table, target, teaches, term, added=added, **options)

    # The sum as one model of more numbers, of which each item has a column of its own.
    wide = torch.cat([states, matrix], 1)
    expected = ranking_loss(wide, torch.cat([table, torch.eye(11)], 1), target, teaches, term, **options)
    for name, figure in expected.figures.items():
        torch.testing.assert_close(found.figures[name], figure, rtol=1e-5, atol=1e-5)
    plain = ranking_loss(states, table, target, added=added, label_smoothing=0.1).loss
    by_torch = F.cross_entropy(states @ table.T + matrix, target, label_smoothing=0.1)
    torch.testing.assert_close(plain, by_torch, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        *(torch.autograd.grad(each, [states, table]) for each in (found.loss, expected.loss)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Served(torch.nn.Module):
    """A model that is a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.num_items = table, len(table)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.table if items is None else self.table[items]


def cached(tmp_path: Path) -> tuple[TeacherCache, MemoryTeacher]:
    data = random_log(4, items=ITEMS)
    teacher = MemoryTeacher(memory_of(data, random_texts(4, ITEMS)), 0.7, data)
    write_cache(network(), data, tmp_path / "cache", label="x", memory=teacher)
    return open_cache(tmp_path / "cache", data, CPU, "int8"), teacher


@pytest.mark.parametrize("candidates", [None, torch.tensor([0, 2, 3, 5, 9, 11])])
def test_a_cache_says_what_of_its_scores_is_the_memorys(tmp_path: Path, candidates: Tensor | None) -> None:
    cache, teacher = cached(tmp_path)
    positions = torch.arange(len(cache.rank))
    memory = cache.batch(positions, candidates).memory
    assert memory is not None
    items, values = map(torch.from_numpy, teacher.most_NK(positions.numpy()))
    content = torch.from_numpy(teacher.states_NC(positions.numpy()) @ teacher.table_IC.T)
    expected = content.scatter_add(1, items.long(), values)
    rows = expected if candidates is None else expected[:, candidates]
    nothing = torch.zeros(len(positions), 1), torch.zeros(rows.shape[1], 1)
    found = memory.to(*nothing).of(slice(0, len(positions)), torch.empty_like(rows))
    torch.testing.assert_close(found, rows, rtol=2e-3, atol=2e-3)  # states are kept in half precision


@pytest.mark.parametrize("beside", [True, False])
def test_the_memorys_scores_are_added_where_they_are_asked_for(tmp_path: Path, beside: bool) -> None:
    cache, _ = cached(tmp_path)
    positions = torch.arange(24)
    states, table = torch.randn(24, 4), torch.randn(ITEMS, 4)
    target = torch.randint(0, ITEMS, (24,))
    batch = TrainingBatch(
        items_BL=torch.zeros(1, 24, dtype=torch.int64),
        lengths_B=torch.tensor([24]),
        trained_N=torch.arange(24),
        target_N=target,
        position_N=positions,
    )
    term = DistillationTerm(2.0, beside_memory=beside)
    found = RankingObjective(Training(), cache, term)(states, cast(SequenceEncoder, Served(table)), batch, 5).loss
    teaches = cache.batch(positions)
    expected = ranking_loss(states, table, target, teaches, term, added=teaches.memory).loss
    alone = ranking_loss(states, table, target, teaches, term).loss
    torch.testing.assert_close(found, expected if beside else alone)
    assert not torch.allclose(expected, alone)
