"""This process alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from llmd4rec.losses.base import StepLoss

T = TypeVar("T")


class LocalBackend:
    """The first process of one; see :class:`~llmd4rec.training.backends.base.Backend`."""

    rank, count, first = 0, 1, True

    def wait(self) -> None:
        """Nobody is waited for."""

    def sum_(self, tensor: Tensor) -> None:
        """It is the sum already."""

    def from_first(self, value: T) -> T:
        """The value itself."""
        return value

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensor alone."""
        return [tensor]

    def prepared(self, forward: nn.Module) -> Callable[..., StepLoss]:
        """The module itself."""
        return forward

    def backward(self, loss: Tensor, numbers: Tensor, parameters: Sequence[Tensor]) -> None:
        """Plain backward."""
        loss.backward()
