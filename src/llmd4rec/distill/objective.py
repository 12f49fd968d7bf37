"""The loss of mutual distillation, computed block by block, with its gradient in the same walk.

    L = mean_s CE(s)  +  λ · mean_s( w(s) · KL( p_teacher(s; T) ‖ p_student(s; T) ) )
    p(s; T) = softmax(scores / T)

over the whole catalogue (LLMD4Rec's L_llm with λ1, T1, w1 and L_crm with λ2, T2, w2 are this one loss with the roles
exchanged). A student's scores are `states_ND @ table_ID.T`, a teacher's `t_states_NK @ t_table_IK.T`. The walk takes a
few positions at a time, so no tensor of positions × items outlives its block; ranks, weights, loss and the gradients
of states and table all come out of the one pass. Names end in their shape: N positions, I items, n positions of a
block, D and K widths of student and teacher.

Where the catalogue is too large for a full softmax, the same walk runs over a drawn set of candidates
(:func:`draw_candidates`) whose scores carry a log-Q correction, `bias_C`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from llmd4rec.data.batches import Batch
from llmd4rec.distill.weights import rank_weights
from llmd4rec.models.ranker import Ranker
from llmd4rec.training.fit import LossParts, Training

if TYPE_CHECKING:
    from llmd4rec.distill.publish import Teacher

#: Elements of one block of scores. 2^20 floats (4 MB) stay in a CPU's cache between the passes over a block.
BLOCK_ELEMENTS = 1 << 20

Weighting = Literal["rank", "none"]


@dataclass(frozen=True)
class Distill:
    """How a teacher is listened to.

    Attributes:
        strength: λ.
        temperature: T of both distributions.
        weighting: "rank" for the adaptive weights, "none" for 1 everywhere.
        scale_by_t2: multiply the KL by T², which keeps its gradient's size independent of T (Hinton et al., 2015).
    """

    strength: float = 1.0
    temperature: float = 1.0
    weighting: Weighting = "rank"
    scale_by_t2: bool = True


@dataclass(frozen=True)
class Lesson:
    """What the teacher has to say about N positions.

    Attributes:
        states_NK: the teacher's states, any float type.
        table_IK: the teacher's item table (already reduced to the candidates, if candidates were drawn).
        rank_N: the teacher's rank of each true item over the whole catalogue.
        student_rank_N: the student's rank at the start of the round; None to use its current one.
    """

    states_NK: Tensor
    table_IK: Tensor
    rank_N: Tensor
    student_rank_N: Tensor | None = None


@dataclass(frozen=True)
class RankingObjective:
    """The objective of one training: the loss below, with or without a teacher.

    Attributes:
        settings: label smoothing, and when and how many candidates are drawn.
        teacher: whom to listen to, if anybody.
        distill: how; required with a teacher.
    """

    settings: Training
    teacher: Teacher | None = None
    distill: Distill | None = None

    def __call__(self, states_ND: Tensor, ranker: Ranker, batch: Batch, seed: int) -> LossParts:
        """See :class:`~llmd4rec.training.fit.Objective`."""
        target_N, bias_C, candidate_C = batch.target_N, None, None
        if ranker.num_items > self.settings.full_softmax_items:
            generator = torch.Generator().manual_seed(seed)
            candidate_C, target_N, bias_C = draw_candidates(
                target_N, ranker.num_items, self.settings.candidates, generator
            )
        lesson = self.teacher.lesson(batch.position_N, candidate_C) if self.teacher is not None else None
        table_ID = ranker.item_table(candidate_C)
        return ranking_loss(
            states_ND,
            table_ID,
            target_N,
            lesson,
            self.distill,
            bias_I=bias_C,
            label_smoothing=self.settings.label_smoothing,
            # A matrix product with only a few rows is bound by memory; a large catalogue's blocks may be larger.
            block_elements=max(BLOCK_ELEMENTS, 32 * len(table_ID)),
        )


def ranking_loss(
    states_ND: Tensor,
    table_ID: Tensor,
    target_N: Tensor,
    lesson: Lesson | None = None,
    distill: Distill | None = None,
    *,
    bias_I: Tensor | None = None,
    label_smoothing: float = 0.0,
    block_elements: int = BLOCK_ELEMENTS,
) -> LossParts:
    """Cross-entropy over the catalogue plus weighted distillation; see the module's docstring for the formula.

    Args:
        states_ND: the student's states, one per position.
        table_ID: the student's item table.
        target_N: row of the true next item in `table_ID`.
        lesson: the teacher's side of the same N positions; None for plain training.
        distill: how to listen; required with a lesson.
        bias_I: added to every row of student and teacher scores alike: the log-Q correction of drawn candidates.
        label_smoothing: ε of the cross-entropy's target (1 - ε) · one-hot + ε / I.
        block_elements: bound on the elements of one block of scores.
    """
    total, ce, kl, weight_N, rank_N = _Walk.apply(  # type: ignore[no-untyped-call]
        states_ND, table_ID, target_N, lesson, distill, bias_I, label_smoothing, block_elements
    )
    return LossParts(total, ce, kl, weight_N if lesson is not None else None, rank_N)


class _Walk(torch.autograd.Function):
    """One pass over blocks of positions that yields loss, ranks, weights and both gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        table_ID: Tensor,
        target_N: Tensor,
        lesson: Lesson | None,
        distill: Distill | None,
        bias_I: Tensor | None,
        label_smoothing: float,
        block_elements: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        positions, items = len(states_ND), len(table_ID)
        wants_gradient = states_ND.requires_grad or table_ID.requires_grad
        rows = max(1, min(positions, block_elements // items))
        states_ND, table_ID = states_ND.detach(), table_ID.detach()
        table_DI = table_ID.t()
        buffers = _Buffers(rows, items, states_ND, lesson is not None)

        # Sums run in float64: a long walk of float32 additions would lose the last digits of the loss.
        ce_sum = torch.zeros((), dtype=torch.float64, device=states_ND.device)
        kl_sum = torch.zeros((), dtype=torch.float64, device=states_ND.device)
        rank_N = torch.empty(positions, dtype=torch.int64, device=states_ND.device)
        weight_N = states_ND.new_ones(positions if lesson is not None else 0)
        grad_states_ND = torch.empty_like(states_ND) if wants_gradient else None
        grad_table_ID = torch.zeros_like(table_ID) if wants_gradient else None

        for start in range(0, positions, rows):
            block = slice(start, min(start + rows, positions))
            states_nD, target_n1 = states_ND[block], target_N[block, None]
            n = len(target_n1)
            scores_nI = torch.mm(states_nD, table_DI, out=buffers.scores[:n])
            true_n1 = scores_nI.gather(1, target_n1)
            rank_N[block] = _ranks(scores_nI, true_n1, bias_I)
            if bias_I is not None:
                scores_nI += bias_I
                true_n1 = scores_nI.gather(1, target_n1)

            weighted_n1 = None
            if lesson is not None:
                assert distill is not None
                weight_n = weight_N[block]
                if distill.weighting == "rank":
                    student = rank_N if lesson.student_rank_N is None else lesson.student_rank_N
                    weight_n.copy_(rank_weights(student[block], lesson.rank_N[block]))
                weighted_n1 = weight_n[:, None] * distill.strength
                teacher_nI = buffers.teacher[:n]
                torch.mm(lesson.states_NK[block].to(table_ID.dtype), lesson.table_IK.t(), out=teacher_nI)
                if bias_I is not None:
                    teacher_nI += bias_I
                kl_n = _divergence_(teacher_nI, scores_nI, buffers.soft[:n], distill.temperature, bias_I)
                scale = distill.temperature**2 if distill.scale_by_t2 else 1.0
                kl_sum += torch.dot(weight_n.double(), kl_n.double()) * scale
                # d(λ w KL)/d(scores) = λ w (p_student - p_teacher) / T, now that `teacher_nI` holds that difference
                weighted_n1 = weighted_n1 * (scale / distill.temperature)

            smoothing = scores_nI.mean(1, keepdim=True) if label_smoothing else true_n1
            peak_n1 = scores_nI.amax(1, keepdim=True)
            probability_nI = scores_nI.sub_(peak_n1).exp_()
            partition_n1 = probability_nI.sum(1, keepdim=True)
            log_partition_n1 = partition_n1.log() + peak_n1
            expected_n1 = (1 - label_smoothing) * true_n1 + label_smoothing * smoothing
            ce_sum += (log_partition_n1 - expected_n1).sum(dtype=torch.float64)

            if grad_states_ND is not None and grad_table_ID is not None:
                gradient_nI = probability_nI.div_(partition_n1)
                if label_smoothing:
                    gradient_nI -= label_smoothing / items
                gradient_nI.scatter_add_(1, target_n1, torch.full_like(true_n1, label_smoothing - 1))
                if weighted_n1 is not None:
                    gradient_nI.addcmul_(buffers.teacher[:n], weighted_n1)
                torch.mm(gradient_nI, table_ID, out=grad_states_ND[block])
                grad_table_ID.addmm_(gradient_nI.t(), states_nD)

        strength = distill.strength if distill is not None else 0.0
        ce, kl = ce_sum / positions, kl_sum / positions
        total = (ce + strength * kl).to(states_ND.dtype)
        if grad_states_ND is not None and grad_table_ID is not None:
            ctx.save_for_backward(grad_states_ND.div_(positions), grad_table_ID.div_(positions))
        ctx.mark_non_differentiable(ce, kl, weight_N, rank_N)
        return total, ce, kl, weight_N, rank_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_states_ND, grad_table_ID = ctx.saved_tensors
        scale = gradients[0]
        return grad_states_ND * scale, grad_table_ID * scale, None, None, None, None, None, None


class _Buffers:
    """The few blocks of positions × items that exist, allocated once and reused."""

    def __init__(self, rows: int, items: int, like: Tensor, has_teacher: bool) -> None:
        self.scores = like.new_empty(rows, items)
        self.teacher = like.new_empty(rows, items) if has_teacher else self.scores
        self.soft = like.new_empty(rows, items) if has_teacher else self.scores


def _ranks(scores_nI: Tensor, true_n1: Tensor, bias_I: Tensor | None) -> Tensor:
    """1 + how many others score at least as high; with drawn candidates each counts for the items it stands for."""
    above_nI = scores_nI >= true_n1
    if bias_I is None:
        return above_nI.sum(1)
    return (above_nI.to(scores_nI.dtype) @ bias_I.exp()).round().long().clamp(min=1)


def _divergence_(
    teacher_nI: Tensor, scores_nI: Tensor, soft_nI: Tensor, temperature: float, bias_I: Tensor | None
) -> Tensor:
    """KL( teacher ‖ student ) at a temperature, per row; leaves `p_student - p_teacher` in `teacher_nI`.

    `scores_nI` is read only; `soft_nI` is scratch space.
    """
    teacher_nI.div_(temperature) if bias_I is None else _tempered_(teacher_nI, temperature, bias_I)
    torch.div(scores_nI, temperature, out=soft_nI)
    if bias_I is not None and temperature != 1:
        soft_nI += bias_I * (1 - 1 / temperature)
    peak_t, peak_s = teacher_nI.amax(1, keepdim=True), soft_nI.amax(1, keepdim=True)
    teacher_nI -= peak_t
    soft_nI -= peak_s
    # KL = Σ q (a - b) - log Z_a + log Z_b with q = exp(a) / Z_a, where a, b are the shifted scores
    raised = teacher_nI.exp()
    z_t = raised.sum(1, keepdim=True)
    teacher_nI -= soft_nI
    cross = torch.einsum("ni,ni->n", raised, teacher_nI)
    soft_nI.exp_()
    z_s = soft_nI.sum(1, keepdim=True)
    kl_n = cross / z_t[:, 0] - z_t[:, 0].log() + z_s[:, 0].log()
    torch.sub(soft_nI.div_(z_s), raised.div_(z_t), out=teacher_nI)
    return kl_n


def _tempered_(scores_nI: Tensor, temperature: float, bias_I: Tensor) -> Tensor:
    """Divides the scores, but not the log-Q correction they already carry, by the temperature."""
    scores_nI.div_(temperature)
    if temperature != 1:
        scores_nI += bias_I * (1 - 1 / temperature)
    return scores_nI


def draw_candidates(
    target_N: Tensor, num_items: int, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates for one step of a large catalogue: the batch's true items and a uniform draw from all others.

    The log-Q correction makes each drawn item stand for `(I - own) / draws` items, so that the partition function over
    the candidates is an unbiased estimate of the one over the catalogue, given the batch.

    Args:
        target_N: the true items of the step.
        num_items: |I|.
        draws: how many items to draw.
        generator: source of randomness, on the CPU.

    Returns:
        candidate_C: item indices, ascending; target_N as rows of it; bias_C: the correction, 0 for true items.
    """
    own = torch.unique(target_N.cpu())
    drawn = torch.randint(num_items, (draws,), generator=generator)
    drawn = torch.unique(drawn)
    drawn = drawn[~torch.isin(drawn, own, assume_unique=True)]
    candidate_C, order = torch.cat([own, drawn]).sort()
    bias_C = torch.zeros(len(candidate_C))
    if len(drawn):
        bias_C[len(own) :] = float(torch.log(torch.tensor((num_items - len(own)) / len(drawn), dtype=torch.float64)))
    row_N = torch.searchsorted(candidate_C, target_N.cpu())
    device = target_N.device
    return candidate_C.to(device), row_N.to(device), bias_C[order].to(device)
