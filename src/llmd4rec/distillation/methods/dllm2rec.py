"""DLLM2Rec's importance-aware ranking distillation (Cui et al., RecSys 2024, arXiv 2405.00338).

    L = CE(true item) + β · Σ_k ω_k CE(k)                            k over the teacher's K best items
    ω_k ∝ γ_p position_k + γ_c confidence_k + γ_s consistency_k      Σ_k ω_k = 1

- position: e^-rank, so that the teacher's first item counts most; normalised over the K.
- confidence: how sure the teacher is of the item. The paper's teacher writes a title, and the distance d of that title
  from the item's gives e^-d. A teacher with scores gives it directly: d is how many nats the item lies below its best,
  and normalised over the K that is the teacher's distribution among them.
- consistency: 1 where the item is among the K best of the student too.

Differences from the published files, which train by one drawn negative and a DRO term: CE is over the whole catalogue
here, as for all methods that are compared; and what DLLM2Rec adds to the student's input from the language model's item
vectors is `model.item_features: id+text`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from llmd4rec.data.batching import TrainingBatch
from llmd4rec.distillation.methods.base import Method
from llmd4rec.errors import ConfigError
from llmd4rec.losses.base import Objective, StepLoss
from llmd4rec.losses.loss import Softmax
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.scores import Factors, score_blocks
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training

if TYPE_CHECKING:
    from llmd4rec.distillation.cache import TeacherCache


class DLLM2Rec(Method):
    """Settings of the method; defaults are those of its files."""

    weight: float = Field(0.7, ge=0, description="β, weight of the teacher's items beside the true one")
    items: int = Field(10, ge=1, description="K, how many of the teacher's best items are learned from")
    position: float = Field(0.3, ge=0, description="γ_p, how much the teacher's order counts")
    confidence: float = Field(0.5, ge=0, description="γ_c, how much the teacher's scores count")
    consistency: float = Field(0.1, ge=0, description="γ_s, how much it counts that the student has the item too")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.position + self.confidence == 0:  # no item of the teacher's may be the student's too
            raise ValueError("position and confidence must not both be 0: a sample may have no weight left then")
        return self

    def uses_teachers(self, term: DistillationTerm) -> bool:
        """Where its own weight is not 0; λ2 is not this method's."""
        return self.weight > 0

    def check(self, training: Training, num_items: int) -> None:
        """Before anything is trained.

        Raises:
            ConfigError: the catalogue is too large for a full softmax; the best of drawn items are not the best.
        """
        if num_items > training.full_softmax_items:
            raise ConfigError(
                f"method dllm2rec needs the teacher's best items of the whole catalogue; this one has {num_items:,}, "
                f"and more than training.model.full_softmax_items = {training.full_softmax_items:,} are drawn from",
                "Raise that setting, or choose method llmd4rec.",
            )

    def objective(
        self, training: Training, teacher: TeacherCache, term: DistillationTerm, student: SequenceEncoder, seed: int
    ) -> Objective:
        """See :meth:`~llmd4rec.distillation.methods.base.Method.objective`."""
        return _BestItems(self, training, teacher)


@dataclass(frozen=True)
class _BestItems:
    settings: DLLM2Rec
    training: Training
    teacher: TeacherCache

    def __call__(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        """See :class:`~llmd4rec.losses.base.Objective`."""
        softmax = RankingObjective(self.training)(states_ND, ranker, batch, seed)
        loss = self.training.loss
        base = softmax if isinstance(loss, Softmax) else loss.objective(self.training)(states_ND, ranker, batch, seed)
        table_ID, target_N = ranker.item_table(), batch.target_N
        if batch.candidate_C is not None:
            candidate_C = batch.candidate_C.to(table_ID.device)
            table_ID, target_N = table_ID[candidate_C], torch.searchsorted(candidate_C, target_N)
        best_NK, weight_NK = self._best_of_teacher(states_ND.detach(), table_ID.detach(), batch)
        # CE(k) = log Z - score_k. As the ω sum to 1, Σ ω_k CE(k) is CE(true) + score_true - Σ ω_k score_k: no second
        # walk over the catalogue. Labels are smoothed alike.
        true_N = (states_ND * table_ID[target_N]).sum(1)
        best_scores_NK = torch.einsum("nd,nkd->nk", states_ND, table_ID[best_NK])
        kept = 1 - self.training.label_smoothing
        distilled = softmax.loss + kept * (true_N - (weight_NK * best_scores_NK).sum(1)).mean()
        return StepLoss(base.loss + self.settings.weight * distilled, {**base.figures, "kl": distilled.detach()})

    @torch.no_grad()
    def _best_of_teacher(self, states_ND: Tensor, table_ID: Tensor, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """The teacher's best items and their weights ω, [N, K] each."""
        k = min(self.settings.items, len(table_ID))
        scores = self.teacher.batch(batch.position_N, batch.candidate_C).scores
        parts = [score_nI.topk(k, dim=1) for score_nI in score_blocks(scores)]
        score_NK, best_NK = (torch.cat(blocks) for blocks in zip(*parts, strict=True))
        own = Factors(states_ND, table_ID)
        own_NK = torch.cat([own_nI.topk(k, dim=1).indices for own_nI in score_blocks(own)])
        return best_NK, importance(self.settings, score_NK, best_NK, own_NK)


def importance(settings: DLLM2Rec, score_NK: Tensor, best_NK: Tensor, own_NK: Tensor) -> Tensor:
    """ω of the teacher's best items, [N, K]; see the module's docstring.

    Args:
        settings: the three γ.
        score_NK: the teacher's scores of its best items in nats, best first.
        best_NK: which those are.
        own_NK: the student's best items, in any order.
    """
    rank_K = torch.arange(1, score_NK.shape[1] + 1, device=score_NK.device)
    position_K = torch.softmax(-rank_K.float(), 0)
    confidence_NK = torch.softmax(score_NK, 1)
    consistency_NK = (best_NK[:, :, None] == own_NK[:, None, :]).any(2)
    weight_NK = (
        settings.position * position_K + settings.confidence * confidence_NK + settings.consistency * consistency_NK
    )
    return weight_NK / weight_NK.sum(1, keepdim=True).clamp_min(torch.finfo(weight_NK.dtype).tiny)
