"""What a distillation method is: a loss by which a student learns from teachers that others have chosen for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from llmd4rec.losses.base import Objective
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training

if TYPE_CHECKING:
    from llmd4rec.distillation.cache import TeacherCache


class Method(BaseModel, ABC):
    """Settings of a distillation method; derive from it to add one.

    All methods have the same teachers, student, samples and schedule. This one lets the student's best item be that of
    the teacher:

        class FirstItem(Method):
            weight: float = Field(1.0, ge=0, description="of the term")

            def objective(self, training, teacher, term, student, seed):
                base = training.loss.objective(training)

                def loss(states_ND, model, batch, seed):
                    scores = teacher.batch(batch.position_N).scores
                    best_N = torch.cat([block_nI.argmax(1) for block_nI in score_blocks(scores)])
                    first = F.cross_entropy(states_ND @ model.item_table().T, best_N)
                    step = base(states_ND, model, batch, seed)
                    return StepLoss(step.loss + self.weight * first, {**step.figures, "first": first.detach()})

                return loss

    `distill: {method: my_package.methods:FirstItem}` then teaches the served model by it.
    """

    model_config = ConfigDict(extra="forbid")

    #: Whether it reads `distill.sample_weights`, for which the ranks at the start of a round may have to be kept.
    weights_samples: ClassVar[bool] = False
    #: Whether it adds `distill.logit_adjustment` to the student's scores.
    adjusts_logits: ClassVar[bool] = False

    def uses_teachers(self, term: DistillationTerm) -> bool:
        """Whether teachers change anything; where not, none is computed.

        Args:
            term: λ, T and sample weights, as `distill` says.
        """
        return True

    def check(self, training: Training, num_items: int) -> None:
        """Before anything is trained, refuses what the method cannot do.

        Raises:
            ConfigError: it cannot do that.
        """

    @abstractmethod
    def objective(
        self, training: Training, teacher: TeacherCache, term: DistillationTerm, student: SequenceEncoder, seed: int
    ) -> Objective:
        """What a student is trained towards.

        Args:
            training: its loss, label smoothing, and how a large catalogue is drawn from.
            teacher: its cached scores of all items, and ranks of the true ones.
            term: λ, T and sample weights.
            student: the model that will be trained, for its width.
            seed: of parameters that the method has of its own. An objective that is a `torch.nn.Module` may have some:
                they are trained, resumed and never served.
        """
