"""What a training, and a run, ask of the processes that train together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor, nn

from llmd4rec.losses.base import StepLoss

T = TypeVar("T")


class Backend(Protocol):
    """The processes that train one model: each takes its part of every batch, all take the same step.

    The first one alone writes files; the others read them. Where a method is called, it is called in all of them.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def count(self) -> int:
        """How many processes there are."""
        ...

    @property
    def first(self) -> bool:
        """Whether it is for this process to write, and to speak."""
        ...

    def wait(self) -> None:
        """Returns when all have come here."""
        ...

    def sum_(self, tensor: Tensor) -> None:
        """The sum over all processes, in place; the same bits in each."""
        ...

    def from_first(self, value: T) -> T:
        """What the first process gives, a plain value."""
        ...

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in their order."""
        ...

    def prepared(self, forward: nn.Module) -> Callable[..., StepLoss]:
        """What is called in place of `forward`, the module that gives the loss of this process's part of a batch."""
        ...

    def backward(self, loss: Tensor, numbers: Tensor, parameters: Sequence[Tensor]) -> None:
        """Leaves at every parameter the gradient of the whole batch's mean loss.

        Args:
            loss: mean over this process's positions, scaled against underflow.
            numbers: the step's figures, of which the first is how many positions those are; added up over all
                processes, in place.
            parameters: those that are trained.
        """
        ...
