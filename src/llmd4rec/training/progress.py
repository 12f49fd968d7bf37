"""Where a training stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmd4rec.losses.base import LossParts

#: Bins of the sample weights' histogram in the log, over [0, 2].
WEIGHT_BINS = 20
#: Numbers that :func:`step_figures` gives.
FIGURES = 5 + WEIGHT_BINS


@dataclass
class Progress:
    """Where a training stands; saved as JSON with each checkpoint."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    total_steps: int = 0
    best_value: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    log_size: int = 0
    #: Checksum of the best weights' file, which the checkpoint needs to be of use.
    best_checksum: str = ""
    #: Cross-entropy of the first step, and averaged over the last.
    first_ce: float = math.nan
    ce_level: float = math.nan
    sums: dict[str, float] = field(default_factory=dict)
    weight_counts: list[int] = field(default_factory=lambda: [0] * WEIGHT_BINS)

    def add(self, figures: Sequence[float]) -> None:
        """Adds the figures of a step to the epoch's sums."""
        positions, _, ce, kl, weight, *counts = figures
        for name, value in (("positions", positions), ("ce", ce), ("kl", kl), ("weight", weight)):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.weight_counts = [a + int(b) for a, b in zip(self.weight_counts, counts, strict=True)]

    def means(self) -> dict[str, Any]:
        """The epoch's means per position, for the log: those that there are."""
        positions = max(1.0, self.sums.get("positions", 0.0))
        weighted = sum(self.weight_counts) > 0
        found: dict[str, Any] = {}
        if "ce" in self.sums:
            found["ce"] = self.sums["ce"] / positions
        if weighted or self.sums.get("kl"):
            found["kl"] = self.sums["kl"] / positions
        if weighted:
            found |= {"weight_mean": self.sums["weight"] / positions, "weight_counts": self.weight_counts}
        return found

    def next_epoch(self) -> None:
        """To the first step of the next epoch."""
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        self.weight_counts = [0] * WEIGHT_BINS


def step_figures(parts: LossParts, positions: int) -> Tensor:
    """The figures of a step, left on its device: float64, [FIGURES].

    Positions; loss, cross-entropy and KL times positions; sum of the sample weights, and their histogram.
    """
    losses = torch.stack([part.detach().double() * positions for part in (parts.total, parts.ce, parts.kl)])
    counts, weight_sum = losses.new_zeros(WEIGHT_BINS), losses.new_zeros(1)
    if parts.weight_N is not None:
        counts, weight_sum = torch.histc(parts.weight_N.float(), WEIGHT_BINS, 0, 2), parts.weight_N.sum()[None]
    return torch.cat([losses.new_full((1,), positions), losses, weight_sum.double(), counts.double()])
