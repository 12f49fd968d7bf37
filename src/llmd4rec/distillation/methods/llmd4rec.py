"""LLMD4Rec: cross-entropy and a weighted KL over the whole catalogue (arXiv 2505.18120), the default.

    L = CE + λ · mean_s( w(s) · KL( p_teacher(s; T) ‖ p_student(s; T) ) )

The loss is :mod:`llmd4rec.losses.softmax`, its weights w are :mod:`llmd4rec.losses.sample_weights`. λ, T and the
sample weights are settings of `distill` (`weight`, `temperature`, `sample_weights`): the language model is taught in
this way too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmd4rec.losses.base import Objective
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training

if TYPE_CHECKING:
    from llmd4rec.distillation.cache import TeacherCache


class LLMD4Rec(BaseModel):
    """Settings of the method: none of its own."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["llmd4rec"] = Field(
        "llmd4rec",
        description="the loss by which the model is taught: llmd4rec, with weight, temperature and sample_weights as "
        "set above; or, to compare, that of others: dllm2rec or leader, with settings of their own (docs/paper.md)",
    )

    def uses_teachers(self, term: DistillationTerm) -> bool:
        """Whether teachers change anything; where not, none is computed."""
        return term.weight > 0

    def check(self, training: Training, num_items: int) -> None:
        """Refuses, before anything is trained, what the method cannot do: nothing."""

    def objective(
        self, training: Training, teacher: TeacherCache, term: DistillationTerm, student: SequenceEncoder, seed: int
    ) -> Objective:
        """What a student is trained towards.

        Args:
            training: label smoothing, and how a large catalogue is drawn from.
            teacher: its cached states, item table and ranks.
            term: λ, T and sample weights.
            student: the model that will be trained, for its width.
            seed: of parameters that the method has of its own.
        """
        return RankingObjective(training, teacher, term)
