"""The loss of mutual distillation, computed block by block, with its gradient in the same walk.

    L = mean_s CE(s)  +  λ · mean_s( w(s) · KL( p_teacher(s; T) ‖ p_student(s; T) ) )
    p(s; T) = softmax(scores / T)

over the whole catalogue (LLMD4Rec's L_llm with λ1, T1, w1 and L_crm with λ2, T2, w2 are this one loss with the roles
exchanged). A student's scores are `states_ND @ table_ID.T`; a teacher gives its scores of a block of positions when it
is asked (:class:`~llmd4rec.losses.scores.BlockScores`). The walk takes a few positions at a time, so no tensor of
positions × items outlives its block; ranks, weights, loss and the gradients of states and table all come out of the
one pass. Names end in their shape: N positions, I items, n positions of a block, D the student's width.

Where the catalogue is too large for a full softmax, the same walk runs over a sampled set of candidates
(:func:`~llmd4rec.losses.sampling.draw_candidates`) whose scores carry a log-Q correction, `bias_C`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from llmd4rec.losses.base import StepLoss, TeacherBatch
from llmd4rec.losses.sample_weights import rank_weights, weight_figures
from llmd4rec.losses.scores import BLOCK_ELEMENTS, AddedScores, BlockScores, Factors, SparseScores
from llmd4rec.matmul import product

#: On a GPU, which has no such cache and waits for each of a block's small kernels to be started: 256 MB.
GPU_BLOCK_ELEMENTS = 1 << 26

SampleWeights = Literal["rank", "none"]

_LN2 = math.log(2.0)
#: 2^x, sums of a catalogue of them and what one such sum is of another stay within 32-bit floats.
_SAFE_EXPONENT = 56.0


@dataclass(frozen=True)
class DistillationTerm:
    """The distillation term of the loss.

    Attributes:
        weight: λ.
        temperature: T of both distributions.
        sample_weights: "rank" for the adaptive weights, "none" for 1 everywhere.
        scale_by_t2: multiply the KL by T², which keeps its gradient's size independent of T (Hinton et al., 2015).
        logit_adjustment_I: what is added to the student's scores while it learns and not when it serves, [I]; see
            :mod:`llmd4rec.distillation.logit_adjustment`. None: nothing.
        exclude_seen: whether items of the history have no probability, neither the student's nor the teacher's.
        beside_memory: whether the memory's scores are added to the student's, as where both are served: it learns
            what the memory does not say.
    """

    weight: float = 1.0
    temperature: float = 1.0
    sample_weights: SampleWeights = "rank"
    scale_by_t2: bool = True
    logit_adjustment_I: Tensor | None = None
    exclude_seen: bool = False
    beside_memory: bool = False


def ranking_loss(
    states_ND: Tensor,
    table_ID: Tensor,
    target_N: Tensor,
    teacher: TeacherBatch | None = None,
    distill: DistillationTerm | None = None,
    *,
    bias_I: Tensor | None = None,
    label_smoothing: float = 0.0,
    block_elements: int = BLOCK_ELEMENTS,
    cross_entropy: bool = True,
    excluded: SparseScores | None = None,
    added: AddedScores | None = None,
) -> StepLoss:
    """Cross-entropy over the catalogue plus weighted distillation; see the module's docstring for the formula.

    Args:
        states_ND: the student's states, one per position.
        table_ID: the student's item table.
        target_N: row of the true next item in `table_ID`.
        teacher: the teacher's side of the same N positions; None for plain training.
        distill: weight, temperature and sample weights of the distillation term; required with a teacher.
        bias_I: added to every row of student and teacher scores alike: the log-Q correction of sampled candidates.
        label_smoothing: ε of the cross-entropy's target (1 - ε) · one-hot + ε / I; a sampled candidate has that of
            all the items it stands for.
        block_elements: bound on the elements of one block of scores.
        cross_entropy: False for the distillation term alone, beside another loss.
        excluded: takes all probability from some rows of `table_ID`, the student's and the teacher's, for each
            position; never from its true item. Label smoothing, which would ask for some, is not possible with it.
        added: to the student's scores, everywhere in the loss; no gradient reaches it.

    Returns:
        The loss, with `ce` in nats; with a teacher also `kl`, the mean weighted KL in nats, and the figures of the
        sample weights.
    """
    loss, ce, kl, weight_N = _Walk.apply(  # type: ignore[no-untyped-call]
        states_ND,
        table_ID,
        target_N,
        teacher,
        distill,
        bias_I,
        label_smoothing,
        block_elements,
        cross_entropy,
        excluded,
        added,
    )
    figures = {"ce": ce} if cross_entropy else {}
    if teacher is not None:
        figures |= {"kl": kl, **weight_figures(weight_N)}
    return StepLoss(loss, figures)


class _Walk(torch.autograd.Function):
    """One pass over blocks of positions that yields loss, ranks, weights and both gradients.

    What makes it fast is what it does not do to the positions × items of a block:

    - Scores are kept in units of log 2 (the states are scaled beforehand), because 2^x is cheaper than e^x.
    - They are raised as they are where none can overflow, and only otherwise shifted by the row's largest.
    - Nothing is normalised: a row's factor c meets its state (d numbers), not its scores (I numbers). With
      P = 2^scores and Q = 2^teacher, a row of the gradient is c · (P - r · Q) - onehot.
    - What is one number in a row (onehot) or the same in every row (label smoothing) is added at the end.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        table_ID: Tensor,
        target_N: Tensor,
        teacher: TeacherBatch | None,
        distill: DistillationTerm | None,
        bias_I: Tensor | None,
        label_smoothing: float,
        block_elements: int,
        cross_entropy: bool,
        excluded: SparseScores | None,
        added: AddedScores | None,
    ) -> tuple[Tensor | None, ...]:
        positions, items = len(states_ND), len(table_ID)
        wants_gradient = states_ND.requires_grad or table_ID.requires_grad
        rows = max(1, min(positions, block_elements // items))
        states_ND, table_ID = states_ND.detach(), table_ID.detach()
        table_DI = table_ID.t()
        temperature = distill.temperature if distill is not None else 1.0
        scores = Factors(states_ND, table_ID) if added is None else added.to(states_ND, table_ID)
        student = _Scores(scores, bias_I, temperature)
        buffer = states_ND.new_empty(rows, items)
        teacher_term = None
        if teacher is not None and distill is not None:
            teacher_term = _TeacherTerm(teacher, distill, student, bias_I, buffer, positions, cross_entropy, excluded)
        # Sums run in float64: a long walk of float32 additions would lose the last digits of the loss.
        ce = torch.zeros((), dtype=torch.float64, device=states_ND.device)
        grad_states_ND = torch.empty_like(states_ND)
        grad_table_DI = states_ND.new_zeros(table_DI.shape)
        for start in range(0, positions, rows):
            block = slice(start, min(start + rows, positions))
            target_n1 = target_N[block, None]
            scores_nI = student.of(block, buffer[: len(target_n1)])
            if excluded is not None:
                excluded.add_(block, scores_nI)
            if teacher_term is not None:
                teacher_term.set_weights(block, scores_nI, target_n1)
            shift_n1 = student.to_logits_(scores_nI)
            true_n1 = scores_nI.gather(1, target_n1)
            if label_smoothing and shift_n1 is not None:  # which the mean of the scores, below, is not told of
                ce += label_smoothing * shift_n1.sum(dtype=torch.float64)
            if teacher_term is not None:
                teacher_term.compare(block, scores_nI)

            power_nI = scores_nI.exp2_()
            sum_n1 = power_nI.sum(1, keepdim=True)
            ce += (sum_n1.log2() - (1 - label_smoothing) * true_n1).sum(dtype=torch.float64)
            factor_n1 = 1 / sum_n1
            if teacher_term is not None:
                factor_n1 = teacher_term.add_gradient_(block, power_nI, sum_n1)
            if wants_gradient:
                grad_states_ND[block] = product(power_nI, table_DI).mul_(factor_n1)
                grad_table_DI += product((states_ND[block] * factor_n1).t(), power_nI.t())

        # With label smoothing ε the target is (1 - ε) · onehot + ε · share.
        on_target = 1 - label_smoothing
        ce = ce * _LN2 / positions
        if label_smoothing:
            share_I = table_ID.new_full((items,), 1 / items) if bias_I is None else torch.softmax(bias_I, 0)
            mean_item_D = share_I @ table_ID
            ce -= label_smoothing * (states_ND.mean(0) @ mean_item_D).double()
            if added is not None:
                ce -= label_smoothing * added.mean(share_I).double()
        kl = teacher_term.kl / positions if teacher_term is not None else torch.zeros_like(ce)
        distilled = (distill.weight if distill is not None else 0.0) * kl
        total = (ce + distilled if cross_entropy else distilled).to(states_ND.dtype)
        if wants_gradient:
            grad_table_ID = grad_table_DI.t().contiguous()
        if wants_gradient and cross_entropy:
            grad_states_ND -= on_target * table_ID[target_N]
            grad_table_ID.index_add_(0, target_N, states_ND, alpha=-on_target)
            if label_smoothing:
                grad_states_ND -= label_smoothing * mean_item_D
                grad_table_ID -= label_smoothing * torch.outer(share_I, states_ND.sum(0))
        if wants_gradient:
            ctx.save_for_backward(grad_states_ND.div_(positions), grad_table_ID.div_(positions))
        if teacher_term is None:
            ctx.mark_non_differentiable(ce, kl)
            return total, ce, kl, None
        ctx.mark_non_differentiable(ce, kl, teacher_term.weight_N)
        return total, ce, kl, teacher_term.weight_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_states_ND, grad_table_ID = ctx.saved_tensors
        scale = gradients[0]
        if scale.device.type != "cpu" or scale != 1:  # a GPU would have to be waited for to learn that it is 1
            grad_states_ND, grad_table_ID = grad_states_ND * scale, grad_table_ID * scale
        return grad_states_ND, grad_table_ID, *[None] * 9


class _Scores:
    """The scores of one model, block by block, in units of log 2."""

    def __init__(self, scores: BlockScores, bias_I: Tensor | None, temperature: float) -> None:
        self.scores = scores.in_units_of(_LN2)
        self.bias_I = None if bias_I is None else bias_I / _LN2
        # A GPU would have to be waited for to learn how large they get; there, scores are always shifted.
        self.bounded = scores.device.type == "cpu" and self._largest() / min(1.0, temperature) < _SAFE_EXPONENT

    def _largest(self) -> float:
        bias = 0.0 if self.bias_I is None else float(self.bias_I.abs().max())
        return self.scores.largest() + bias

    def of(self, block: slice, out_nI: Tensor) -> Tensor:
        """As they are."""
        return self.scores.of(block, out_nI)

    def to_logits_(self, scores_nI: Tensor, temperature: float = 1.0) -> Tensor | None:
        """At a temperature, with the log-Q correction, and small enough to be raised; in place.

        Returns:
            By how much each row was made smaller for that, [n, 1]; None: by nothing.
        """
        if temperature != 1:
            scores_nI.div_(temperature)
        if self.bias_I is not None:
            scores_nI += self.bias_I
        if self.bounded:
            return None
        shift_n1 = scores_nI.amax(1, keepdim=True)
        scores_nI -= shift_n1
        return shift_n1

    def at(self, temperature: float, logits_nI: Tensor, out_nI: Tensor) -> Tensor:
        """The logits of temperature 1 at another one."""
        torch.div(logits_nI, temperature, out=out_nI)
        if self.bias_I is not None:  # which no temperature divides
            out_nI += self.bias_I * (1 - 1 / temperature)
        if not self.bounded:
            out_nI -= out_nI.amax(1, keepdim=True)
        return out_nI


class _TeacherTerm:
    """The teacher's side of the walk: weights, divergence, and its part of the gradient.

    For each block :meth:`set_weights`, :meth:`compare` and :meth:`add_gradient_` are called in this order.
    """

    def __init__(
        self,
        teacher: TeacherBatch,
        distill: DistillationTerm,
        student: _Scores,
        bias_I: Tensor | None,
        like: Tensor,
        positions: int,
        cross_entropy: bool,
        excluded: SparseScores | None,
    ) -> None:
        self.excluded = excluded
        self.batch, self.distill, self.student, self.bias_I = teacher, distill, student, bias_I
        self.teacher = _Scores(teacher.scores, bias_I, distill.temperature)
        self.cross_entropy = cross_entropy
        self.scale = distill.temperature**2 if distill.scale_by_t2 else 1.0
        self.kl = torch.zeros((), dtype=torch.float64, device=like.device)
        self.weight_N = like.new_ones(positions)
        self.rank_N: Tensor | None = None
        if distill.sample_weights == "rank":
            given = teacher.student_rank_N
            self.rank_N = torch.empty(positions, dtype=torch.int64, device=like.device) if given is None else given
        self._teacher_logits, self._power = torch.empty_like(like), torch.empty_like(like)
        self._soft = like.new_empty(like.shape if distill.temperature != 1 else (0, 0))

    def set_weights(self, block: slice, scores_nI: Tensor, target_n1: Tensor) -> None:
        """Weights of a block, from the student's scores as they are."""
        if self.rank_N is None:
            return
        if self.batch.student_rank_N is None:
            above_nI = torch.ge(scores_nI, scores_nI.gather(1, target_n1), out=self._power[: len(scores_nI)])
            self.rank_N[block] = _counted(above_nI, self.bias_I)
        self.weight_N[block] = rank_weights(self.rank_N[block], self.batch.rank_N[block]).to(self.weight_N.dtype)

    def compare(self, block: slice, logits_nI: Tensor) -> None:
        """The teacher's scores of a block, and the part of the KL that needs the student's logits."""
        n, temperature = len(logits_nI), self.distill.temperature
        teacher_nI = self.teacher.of(block, self._teacher_logits[:n])
        if self.excluded is not None:
            self.excluded.add_(block, teacher_nI)
        self.teacher.to_logits_(teacher_nI, temperature)
        soft_nI = logits_nI if temperature == 1 else self.student.at(temperature, logits_nI, self._soft[:n])
        # KL = Σ q (a - b) - log Z_q + log Z_p, where q = 2^a / Z_q and p = 2^b / Z_p
        self._power_nI = torch.exp2(teacher_nI, out=self._power[:n])
        self._sum_n1 = self._power_nI.sum(1, keepdim=True)
        cross_n1 = teacher_nI.sub_(soft_nI).mul_(self._power_nI).sum(1, keepdim=True)
        self._partial_kl_n1 = cross_n1 / self._sum_n1 - self._sum_n1.log2()
        self._soft_nI = soft_nI

    def add_gradient_(self, block: slice, power_nI: Tensor, sum_n1: Tensor) -> Tensor:
        """Turns P of a block into the unnormalised gradient of both losses, in place, and returns its rows' factors.

        The KL's own gradient is λ w (p_student - p_teacher) / T.
        """
        weight = self.distill.weight * self.scale / self.distill.temperature
        factor_kl_n1 = self.weight_N[block, None] * weight
        if self.distill.temperature == 1:
            factor_n1 = ((1 + factor_kl_n1) if self.cross_entropy else factor_kl_n1) / sum_n1
            soft_sum_n1 = sum_n1
        else:
            soft_sum_n1, factor_n1 = self._soft_nI.exp2_().sum(1, keepdim=True), 1 / sum_n1
            if not self.cross_entropy:
                power_nI.zero_()
            power_nI.addcmul_(self._soft_nI, factor_kl_n1 / (soft_sum_n1 * factor_n1))
        ratio_n1 = -factor_kl_n1 / (self._sum_n1 * factor_n1)
        if not self.cross_entropy:  # a sample of no weight has no gradient at all, and 0 / 0 would spoil it
            ratio_n1 = torch.where(factor_kl_n1 > 0, ratio_n1, 0)
        power_nI.addcmul_(self._power_nI, ratio_n1)
        kl_n = (self._partial_kl_n1 + soft_sum_n1.log2())[:, 0].double() * _LN2
        self.kl += torch.dot(self.weight_N[block].double(), kl_n) * self.scale
        return factor_n1


def _counted(above_nI: Tensor, bias_I: Tensor | None) -> Tensor:
    """Ranks from who scores at least as high; with sampled candidates each counts for the items it stands for."""
    if bias_I is None:
        return above_nI.sum(1).long()
    return (above_nI @ bias_I.exp().to(above_nI.dtype)).round().long().clamp(min=1)
