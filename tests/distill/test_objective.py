"""The block-wise loss against plain autograd, which holds everything at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmd4rec.data.batching import TrainingBatch
from llmd4rec.distillation.cache import TeacherCache
from llmd4rec.distillation.logit_adjustment import popularity_prior
from llmd4rec.losses.base import TeacherBatch
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.sample_weights import WEIGHT_BINS, rank_weights
from llmd4rec.losses.sampling import draw_candidates
from llmd4rec.losses.scores import Factors
from llmd4rec.losses.softmax import DistillationTerm, SampleWeights, ranking_loss
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training

N, I, D, K = 37, 53, 8, 13  # noqa: E741


def problem(seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    states = (torch.randn(N, D, dtype=torch.float64) * spread).requires_grad_()
    table = (torch.randn(I, D, dtype=torch.float64) * spread).requires_grad_()
    target = torch.randint(I, (N,))
    t_states, t_table = torch.randn(N, K, dtype=torch.float64), torch.randn(I, K, dtype=torch.float64)
    return states, table, target, t_states, t_table


def ranks(scores: Tensor, target: Tensor) -> Tensor:
    return (scores >= scores.gather(1, target[:, None])).sum(1)


def plain(
    states: Tensor,
    table: Tensor,
    target: Tensor,
    t_states: Tensor,
    t_table: Tensor,
    distill: DistillationTerm,
    smoothing: float = 0.0,
    student_rank: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, teacher = states @ table.T, t_states @ t_table.T
    ce = F.cross_entropy(scores, target, label_smoothing=smoothing)
    T = distill.temperature
    kl = F.kl_div((scores / T).log_softmax(1), (teacher / T).log_softmax(1), log_target=True, reduction="none").sum(1)
    weight = torch.ones(len(states), dtype=torch.float64)
    if distill.sample_weights == "rank":
        own = ranks(scores, target) if student_rank is None else student_rank
        weight = rank_weights(own, ranks(teacher, target)).double()
    kl = (weight * kl).mean() * (T**2 if distill.scale_by_t2 else 1)
    return ce + distill.weight * kl, ce, kl, weight


@pytest.mark.parametrize("block", [1, I, 5 * I + 3, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.5])
@pytest.mark.parametrize("weighting", ["rank", "none"])
@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_loss_and_gradients_equal_autograd_in_float64(
    block: int, temperature: float, weighting: SampleWeights, scale_by_t2: bool
) -> None:
    states, table, target, t_states, t_table = problem()
    distill = DistillationTerm(1.7, temperature, weighting, scale_by_t2)
    expected, ce, kl, weight = plain(states, table, target, t_states, t_table, distill)
    wanted = torch.autograd.grad(3 * expected, [states, table])

    of_teacher = TeacherBatch(Factors(t_states, t_table), ranks(t_states @ t_table.T, target))
    parts = ranking_loss(states, table, target, of_teacher, distill, block_elements=block)
    got = torch.autograd.grad(3 * parts.loss, [states, table])

    torch.testing.assert_close(parts.loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts.figures["ce"], ce.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts.figures["kl"], kl.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parts.figures["weight_mean"].double(), weight.mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts.figures["weight_counts"].double(), torch.histc(weight, WEIGHT_BINS, 0, 2))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("biased", [False, True])
def test_the_distillation_term_alone_equals_autograd_beside_another_loss(temperature: float, biased: bool) -> None:
    states, table, target, t_states, t_table = problem()
    t_states[:9] = 0  # ranks of the teacher's that leave the student no weight
    bias = torch.zeros(I, dtype=torch.float64) if biased else None
    distill = DistillationTerm(1.7, temperature)
    _, _, kl, weight = plain(states, table, target, t_states, t_table, distill)
    assert (weight == 0).any()
    wanted = torch.autograd.grad(1.7 * kl, [states, table])
    of_teacher = TeacherBatch(Factors(t_states, t_table), ranks(t_states @ t_table.T, target))
    parts = ranking_loss(
        states, table, target, of_teacher, distill, label_smoothing=0.3, bias_I=bias, cross_entropy=False
    )
    torch.testing.assert_close(parts.loss, 1.7 * kl, rtol=1e-9, atol=1e-9)
    assert "ce" not in parts.figures
    for a, b in zip(torch.autograd.grad(parts.loss, [states, table]), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@dataclass(frozen=True)
class Given:
    """Scores that are no product of two matrices."""

    scores_NI: Tensor

    @property
    def num_items(self) -> int:
        return self.scores_NI.shape[1]

    @property
    def device(self) -> torch.device:
        return self.scores_NI.device

    def __len__(self) -> int:
        return len(self.scores_NI)

    def in_units_of(self, nats: float) -> Given:
        return Given(self.scores_NI / nats)

    def largest(self) -> float:
        return float(self.scores_NI.abs().max())

    def of(self, block: slice, out_nI: Tensor) -> Tensor:
        return out_nI.copy_(self.scores_NI[block])


@pytest.mark.parametrize("factor", [1.0, 200.0])
def test_a_teacher_need_be_no_product_of_two_matrices(factor: float) -> None:
    states, table, target, t_states, t_table = problem(7)
    scores = t_states @ t_table.T * factor
    rank = ranks(scores, target)
    distill = DistillationTerm(1.7)
    given = ranking_loss(states, table, target, TeacherBatch(Given(scores), rank), distill, block_elements=5 * I)
    factors = Factors(t_states * factor, t_table)
    product = ranking_loss(states, table, target, TeacherBatch(factors, rank), distill, block_elements=5 * I)
    torch.testing.assert_close(given.loss, product.loss)
    for a, b in zip(
        torch.autograd.grad(given.loss, [states, table]),
        torch.autograd.grad(product.loss, [states, table]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("spread", [1.0, 8.0])  # 8: scores too large to be raised as they are
def test_without_a_teacher_it_is_cross_entropy(smoothing: float, spread: float) -> None:
    states, table, target, *_ = problem(1, spread)
    expected = F.cross_entropy(states @ table.T, target, label_smoothing=smoothing)
    wanted = torch.autograd.grad(expected, [states, table])
    parts = ranking_loss(states, table, target, label_smoothing=smoothing, block_elements=3 * I)
    got = torch.autograd.grad(parts.loss, [states, table])
    torch.testing.assert_close(parts.loss, expected)
    assert parts.figures.keys() == {"ce"}
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_ranks_at_the_start_of_the_round_decide_when_given() -> None:
    states, table, target, t_states, t_table = problem(2)
    start = torch.randint(1, I + 1, (N,))
    distill = DistillationTerm(1.0, 1.0, "rank", True)
    expected, *_, weight = plain(states, table, target, t_states, t_table, distill, student_rank=start)
    of_teacher = TeacherBatch(Factors(t_states, t_table), ranks(t_states @ t_table.T, target), start)
    parts = ranking_loss(states, table, target, of_teacher, distill)
    torch.testing.assert_close(parts.loss, expected)
    torch.testing.assert_close(parts.figures["weight_mean"].double(), weight.mean(), rtol=1e-6, atol=1e-6)


def test_scores_of_thousands_stay_finite() -> None:
    states, table, target, t_states, t_table = problem(3, spread=60.0)
    of_teacher = TeacherBatch(Factors(t_states.float() * 60, t_table.float() * 60), ranks(t_states @ t_table.T, target))
    parts = ranking_loss(states.float(), table.float(), target, of_teacher, DistillationTerm(1.0, 0.5))
    parts.loss.backward()
    assert torch.isfinite(parts.loss)
    for each in (states, table):
        assert each.grad is not None
        assert torch.isfinite(each.grad).all()


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it() -> None:
    states, table, target, *_ = problem(4)
    of_teacher = TeacherBatch(Factors(states.detach(), table.detach()), ranks((states @ table.T).detach(), target))
    with_teacher = ranking_loss(states, table, target, of_teacher, DistillationTerm(5.0, 2.0))
    alone = ranking_loss(states, table, target)
    assert abs(with_teacher.figures["kl"]) < 1e-12
    for a, b in zip(
        torch.autograd.grad(with_teacher.loss, [states, table]),
        torch.autograd.grad(alone.loss, [states, table]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_no_block_of_positions_by_items_is_held() -> None:
    """The largest tensor made during loss and gradient is a block, the states or a table: never N × I."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    largest = max(largest, leaf.numel())
            return result

    positions, items, block = 400, 3000, 30_000
    states, table = torch.randn(positions, D, requires_grad=True), torch.randn(items, D, requires_grad=True)
    t_states, t_table = torch.randn(positions, K).half(), torch.randn(items, K)
    target = torch.randint(items, (positions,))
    with Watch():  # type: ignore[no-untyped-call]
        of_teacher = TeacherBatch(Factors(t_states, t_table), torch.ones(positions, dtype=torch.int32))
        ranking_loss(states, table, target, of_teacher, DistillationTerm(), block_elements=block).loss.backward()
    assert largest <= max(block, items * K)
    assert largest < positions * items


def test_drawn_candidates_estimate_the_full_partition_without_bias() -> None:
    torch.manual_seed(0)
    items, draws = 4000, 400
    scores = torch.randn(items, dtype=torch.float64)
    target = torch.randint(items, (64,))
    full = scores.exp().sum()
    estimates = []
    for seed in range(400):
        candidate, row, bias = draw_candidates(target, items, draws, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(candidate[row], target)
        assert len(candidate.unique()) == len(candidate)
        estimates.append((scores[candidate] + bias).exp().sum())
    estimate = torch.stack(estimates)
    assert abs(estimate.mean() - full) < 4 * estimate.std() / len(estimates) ** 0.5
    assert abs(estimate.mean() / full - 1) < 0.01


def test_loss_over_all_items_as_candidates_is_the_full_loss() -> None:
    states, table, target, t_states, t_table = problem(5)
    of_teacher = TeacherBatch(Factors(t_states, t_table), ranks(t_states @ t_table.T, target))
    distill = DistillationTerm(1.3, 2.0)
    zero = torch.zeros(I, dtype=torch.float64)
    full = ranking_loss(states, table, target, of_teacher, distill)
    biased = ranking_loss(states, table, target, of_teacher, distill, bias_I=zero)
    torch.testing.assert_close(biased.loss, full.loss)


def test_candidates_that_stand_for_many_items_equal_those_items_repeated() -> None:
    """A bias of log(3) on an item is the same as having the item three times, at any temperature."""
    states, table, target, t_states, t_table = problem(6)
    table, states = table.detach(), states.detach()
    copies = torch.ones(I, dtype=torch.long)
    copies[torch.randperm(I)[:20]] = 3
    copies[target] = 1
    repeated = torch.arange(I).repeat_interleave(copies)
    target_repeated = torch.searchsorted(repeated, target)
    distill = DistillationTerm(1.3, 2.0, "none")
    rank = torch.ones(N)
    bias = copies.double().log()
    many = ranking_loss(
        states, table[repeated], target_repeated, TeacherBatch(Factors(t_states, t_table[repeated]), rank), distill
    )
    few = ranking_loss(states, table, target, TeacherBatch(Factors(t_states, t_table), rank), distill, bias_I=bias)
    torch.testing.assert_close(few.loss, many.loss)
    torch.testing.assert_close(few.figures, many.figures)

    # With smoothed labels, too, and so are the gradients.
    for spread in (1.0, 8.0):
        own, items = (states * spread).requires_grad_(), (table * spread).requires_grad_()
        many = ranking_loss(own, items[repeated], target_repeated, label_smoothing=0.1)
        few = ranking_loss(own, items, target, bias_I=bias, label_smoothing=0.1)
        torch.testing.assert_close(few.loss, many.loss)
        for a, b in zip(*(torch.autograd.grad(loss.loss, [own, items]) for loss in (few, many)), strict=True):
            torch.testing.assert_close(a, b)


def test_a_teacher_far_from_its_student_still_pulls_at_full_strength() -> None:
    """Partition sums may differ by so many powers of two that their ratio is no 32-bit number."""
    size = 43.6
    states, table = torch.full((4, 1), -size, requires_grad=True), torch.linspace(0.99, 1.0, I)[:, None]
    t_states, t_table = torch.full((4, 1), size), torch.linspace(0.99, 1.0, I)[:, None]
    target, distill = torch.zeros(4, dtype=torch.long), DistillationTerm(64.0, 1.0, "none")
    ours = ranking_loss(states, table, target, TeacherBatch(Factors(t_states, t_table), torch.ones(4)), distill)
    expected, *_ = plain(states.double(), table.double(), target, t_states.double(), t_table.double(), distill)
    got, wanted = (torch.autograd.grad(loss, states)[0] for loss in (ours.loss, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


class Served(torch.nn.Module):
    """As much of a model as an objective asks for."""

    num_items = I

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.table if items is None else self.table[items]


@pytest.mark.parametrize("drawn", [None, I - 13])
def test_a_prior_is_in_the_scores_that_learn(drawn: int | None) -> None:
    """The student's alone, and where candidates are drawn, those they are."""
    states, table, target, t_states, t_table = problem(7)
    counts = torch.randint(0, 1000, (I,))
    prior = popularity_prior(counts, 0.3)
    torch.testing.assert_close(prior.exp() ** (1 / 0.3), counts + 1.0, rtol=1e-4, atol=1e-4)
    distill = DistillationTerm(1.7, 1.0, "none", logit_adjustment_I=prior)
    training = Training(label_smoothing=0.0, full_softmax_items=drawn or I, num_candidates=drawn or I)
    rank = ranks(t_states @ t_table.T, target)
    teacher = TeacherCache(t_states.numpy(), t_table, rank.int().numpy())
    batch = TrainingBatch(
        items_BL=torch.zeros(1, N),
        lengths_B=torch.tensor([N]),
        trained_N=torch.arange(N),
        target_N=target,
        position_N=torch.arange(N),
    )
    parts = RankingObjective(training, teacher, distill)(states, cast(SequenceEncoder, Served(table)), batch, seed=3)

    candidate, row, bias = torch.arange(I), target, torch.zeros(I)
    if drawn:
        candidate, row, bias = draw_candidates(target, I, drawn, torch.Generator().manual_seed(3))
        assert len(candidate) < I
    scores = states @ table[candidate].T + bias + prior[candidate]
    teaches = t_states @ t_table[candidate].T + bias
    kl = F.kl_div(scores.log_softmax(1), teaches.log_softmax(1), log_target=True, reduction="none").sum(1).mean()
    expected = F.cross_entropy(scores, row) + 1.7 * kl
    torch.testing.assert_close(parts.loss, expected)
    for a, b in zip(*(torch.autograd.grad(loss, [states, table]) for loss in (parts.loss, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
