"""The figures of steps and of epochs: what a loss returns beside its value, without knowing any name of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmd4rec.errors import ConfigError
from llmd4rec.losses.base import StepLoss

#: What the log says of an epoch besides figures.
RESERVED = frozenset({"stage", "epoch", "validation", "best", "seconds"})


@dataclass(frozen=True)
class StepFigures:
    """The loss and the figures of one step in one tensor, left on its device: reading it there waits for the GPU.

    Attributes:
        names: of the figures, each with how many numbers it has; 0: one number, a mean.
        numbers: float64: positions, loss times positions, then each figure, means times positions.
    """

    names: tuple[tuple[str, int], ...]
    numbers: Tensor

    @classmethod
    def of(cls, step: StepLoss, positions: int) -> StepFigures:
        """The figures of a step over so many positions; over none, they weigh nothing."""
        parts = [step.loss.new_full((1,), positions, dtype=torch.float64), _weighted(step.loss, positions)]
        names = []
        for name, figure in step.figures.items():
            names.append((name, figure.numel() if figure.ndim else 0))
            if figure.ndim:
                parts.append(figure.detach().double().flatten() if positions else torch.zeros_like(figure).double())
            else:
                parts.append(_weighted(figure, positions))
        return cls(tuple(names), torch.cat(parts))

    def read(self) -> ReadFigures:
        """The same as plain numbers."""
        return ReadFigures(self.names, self.numbers.tolist())


def _weighted(mean: Tensor, positions: int) -> Tensor:
    return (mean.detach().double() * positions)[None]


@dataclass(frozen=True)
class ReadFigures:
    """The figures of one step, as :class:`StepFigures` has them, in plain numbers."""

    names: tuple[tuple[str, int], ...]
    numbers: Sequence[float]

    @property
    def positions(self) -> float:
        """How many training positions the step had."""
        return self.numbers[0]

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.numbers[1] / self.positions

    def mean(self, name: str) -> float | None:
        """A figure of one number; None where the step has no such figure."""
        return next((numbers[0] / self.positions for own, size, numbers in self if own == name and not size), None)

    def __iter__(self) -> Iterator[tuple[str, int, Sequence[float]]]:
        """Name, size and numbers of each figure."""
        start = 2
        for name, size in self.names:
            yield name, size, self.numbers[start : start + max(1, size)]
            start += max(1, size)


@dataclass
class EpochFigures:
    """The figures of an epoch so far, as a checkpoint has them.

    Attributes:
        sums: of each figure of one number: the sum over positions, and how many positions had it.
        counts: of each histogram.
    """

    sums: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, step: ReadFigures) -> None:
        """Adds those of a step.

        Raises:
            ConfigError: the log calls something else by the name of a figure.
        """
        for name, size, numbers in step:
            if name in RESERVED:
                raise ConfigError(
                    f"the loss returns a figure named {name!r}, which the log has already", "Give it another name."
                )
            if size:
                before = self.counts.get(name, [0] * size)
                self.counts[name] = [a + int(b) for a, b in zip(before, numbers, strict=True)]
            else:
                value, positions = self.sums.get(name, (0.0, 0.0))
                self.sums[name] = [value + numbers[0], positions + step.positions]

    def values(self) -> dict[str, Any]:
        """The mean of each figure per position and the sum of each histogram, for the log."""
        means = {name: value / max(1.0, positions) for name, (value, positions) in self.sums.items()}
        return {**means, **self.counts}
