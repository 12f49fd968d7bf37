"""What a training needs of a loss, and what a loss needs of settings and of a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llmd4rec.data.batching import TrainingBatch
from llmd4rec.losses.int8 import Int8Rows
from llmd4rec.models.base import SequenceEncoder


@dataclass(frozen=True)
class LossParts:
    """The loss of one step (differentiable) and what it is made of (detached).

    Attributes:
        total: scalar, `ce + λ · kl`.
        ce: scalar, mean cross-entropy in nats.
        kl: scalar, mean weighted KL in nats, or another method's distillation loss (0 without a teacher).
        weight_N: the sample weights w(s); None without a teacher.
        rank_N: the student's ranks of the true items, ties counted against them; None where no weight needs them.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    weight_N: Tensor | None
    rank_N: Tensor | None


class Objective(Protocol):
    """What a model is trained towards; a new distillation method is a new one of these.

    One that is a `torch.nn.Module` may have parameters of its own, such as a projection of the student's states to
    the teacher's: they are trained with the student's, saved in checkpoints, and no part of the result.
    """

    def __call__(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> LossParts:
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
        states_NK: the teacher's states, any float type.
        table_IK: the teacher's item table, or its rows of the sampled candidates. Where it is rounded to 8 bits, the
            states are rounded alike.
        rank_N: the teacher's rank of each true item over the whole catalogue.
        student_rank_N: the student's rank at the start of the stage; None to use its current one.
    """

    states_NK: Tensor
    table_IK: Tensor | Int8Rows
    rank_N: Tensor
    student_rank_N: Tensor | None = None


class BatchTeacher(Protocol):
    """Whoever can give the teacher's side of any training positions, such as a teacher cache."""

    def batch(self, position_N: Tensor, candidate_C: Tensor | None = None) -> TeacherBatch:
        """States, item table and ranks at these positions.

        Args:
            position_N: numbers of training positions, on the CPU.
            candidate_C: the item table's rows to give; None: all.
        """
        ...
