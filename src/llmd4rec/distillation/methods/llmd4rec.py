"""LLMD4Rec: cross-entropy and a weighted KL over the whole catalogue (arXiv 2505.18120), the default.

    L = CE + λ · mean_s( w(s) · KL( p_teacher(s; T) ‖ p_student(s; T) ) )

The loss is :mod:`llmd4rec.losses.softmax`, its weights w are :mod:`llmd4rec.losses.sample_weights`. λ, T and the
sample weights are settings of `distill` (`weight`, `temperature`, `sample_weights`): the language model is taught in
this way too. Where `training.model.loss` is another than the softmax, it takes the place of CE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from llmd4rec.distillation.methods.base import Method
from llmd4rec.losses.base import Objective
from llmd4rec.losses.loss import Softmax
from llmd4rec.losses.objective import RankingObjective, SumOfLosses
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training

if TYPE_CHECKING:
    from llmd4rec.distillation.cache import TeacherCache


class LLMD4Rec(Method):
    """Settings of the method: none of its own."""

    weights_samples: ClassVar[bool] = True
    adjusts_logits: ClassVar[bool] = True

    def uses_teachers(self, term: DistillationTerm) -> bool:
        """Where λ is not 0."""
        return term.weight > 0

    def objective(
        self, training: Training, teacher: TeacherCache, term: DistillationTerm, student: SequenceEncoder, seed: int
    ) -> Objective:
        """See :meth:`~llmd4rec.distillation.methods.base.Method.objective`."""
        if isinstance(training.loss, Softmax):  # both in one walk over the catalogue
            return RankingObjective(training, teacher, term)
        return SumOfLosses(
            training.loss.objective(training), RankingObjective(training, teacher, term, cross_entropy=False)
        )
