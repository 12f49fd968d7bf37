"""LEADER's feature distillation (Liu et al., 2024, arXiv 2402.02803): come near the teacher's state, not its scores.

    L = CE + α · mean( (W h_student + b - h_teacher)² )

W and b are trained with the student and are gone when it is served. The teacher's state h is what it multiplies with
its item table; of several teachers it is theirs side by side. LEADER's other term aligns patients' profiles, of which
there are none here; its student's state is two joined, ours is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec.data.batching import TrainingBatch
from llmd4rec.distillation.methods.base import Method
from llmd4rec.errors import ConfigError
from llmd4rec.losses.base import Objective, StepLoss
from llmd4rec.losses.scores import Factors
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.seeded import seeded
from llmd4rec.training.settings import Training

if TYPE_CHECKING:
    from llmd4rec.distillation.cache import TeacherCache


class LEADER(Method):
    """Settings of the method; the default is that of its files."""

    weight: float = Field(0.4, ge=0, description="α, weight of the distance to the teacher's state")

    def uses_teachers(self, term: DistillationTerm) -> bool:
        """Where its own weight is not 0; λ2 is not this method's."""
        return self.weight > 0

    def objective(
        self, training: Training, teacher: TeacherCache, term: DistillationTerm, student: SequenceEncoder, seed: int
    ) -> Objective:
        """See :meth:`~llmd4rec.distillation.methods.base.Method.objective`."""
        return _NearState(self.weight, training, teacher, student.dim, seed)


class _NearState(nn.Module):
    def __init__(self, weight: float, training: Training, teacher: TeacherCache, dim: int, seed: int) -> None:
        super().__init__()
        self.weight, self.teacher, self.base = weight, teacher, training.loss.objective(training)
        with seeded(seed):
            self.project = nn.Linear(dim, teacher.states.shape[1])

    def forward(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        """See :class:`~llmd4rec.losses.base.Objective`."""
        base = self.base(states_ND, ranker, batch, seed)
        scores = self.teacher.batch(batch.position_N).scores
        if not isinstance(scores, Factors):
            raise ConfigError(
                "method leader learns from a teacher's states, and this teacher has none", "Choose another method."
            )
        distance = F.mse_loss(self.project(states_ND), scores.states_NK.float())
        return StepLoss(base.loss + self.weight * distance, {**base.figures, "kl": distance.detach()})
