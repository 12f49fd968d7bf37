"""What a training needs of a loss, and what a loss needs of settings and of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from llmd4rec.data.batching import TrainingBatch
from llmd4rec.losses.scores import AddedScores, BlockScores
from llmd4rec.models.base import SequenceEncoder


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step, and figures of it for the log.

    Attributes:
        loss: scalar, differentiable: the mean over the step's positions.
        figures: by name, detached, on the loss's device. One number is a mean over the step's positions; the log has
            its mean over the epoch. Several numbers are counts of a histogram; the log has their sums. Steps may have
            different figures.
    """

    loss: Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What a model is trained towards; a new distillation method is a new one of these.

    One that is a `torch.nn.Module` may have parameters of its own, such as a projection of the student's states to
    the teacher's: they are trained with the student's, saved in checkpoints, and no part of the result.
    """

    def __call__(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int, /) -> StepLoss:
        """The loss of a batch's N positions.

        Args:
            states_ND: the student's states where a next item is to be predicted.
            ranker: the student, for its item table.
            batch: the true next items and the numbers of the positions.
            seed: of this step, for objectives that draw random numbers.
        """
        ...


class LossSettings(Protocol):
    """The settings that the softmax over the catalogue reads; those of a training have them."""

    @property
    def full_softmax_items(self) -> int:
        """Larger catalogues are trained on sampled candidates."""
        ...

    @property
    def num_candidates(self) -> int:
        """Candidates sampled per step."""
        ...

    @property
    def label_smoothing(self) -> float:
        """ε of the cross-entropy."""
        ...


@dataclass(frozen=True)
class TeacherBatch:
    """The teacher's side of N positions.

    Attributes:
        scores: the teacher's, of the catalogue or of the sampled candidates.
        rank_N: the teacher's rank of each true item over the whole catalogue.
        student_rank_N: the student's rank at the start of the stage; None to use its current one.
        memory: what of the teacher's scores is the memory's; None: it does not teach.
    """

    scores: BlockScores
    rank_N: Tensor
    student_rank_N: Tensor | None = None
    memory: AddedScores | None = None


class BatchTeacher(Protocol):
    """Whoever can give the teacher's side of any training positions, such as a teacher cache."""

    def batch(self, position_N: Tensor, candidate_C: Tensor | None = None) -> TeacherBatch:
        """Scores and ranks at these positions.

        Args:
            position_N: numbers of training positions, on the CPU.
            candidate_C: the items to give scores of; None: all.
        """
        ...
