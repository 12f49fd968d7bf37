"""Where a training stands, and what validation found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmd4rec.training.figures import EpochFigures


@dataclass
class Progress:
    """Where a training stands; saved as JSON with each checkpoint."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    total_steps: int = 0
    best_value: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    #: Why there is no further epoch; empty: there is, as far as settings allow.
    stopped_because: str = ""
    #: Of this epoch.
    figures: EpochFigures = field(default_factory=EpochFigures)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Progress:
        """What :meth:`to_dict` gave."""
        return cls(**{**saved, "figures": EpochFigures(**saved["figures"])})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def next_epoch(self) -> None:
        """To the first step of the next epoch."""
        self.epoch, self.step, self.figures = self.epoch + 1, 0, EpochFigures()


@dataclass(frozen=True)
class Validation:
    """What one validation found.

    Attributes:
        epoch: behind which it was; 0: before the first.
        value: of the selection criterion; NaN where nothing is held out, and the last epoch is kept.
        best: whether it is the best so far.
        seconds: of training and validation so far.
        figures: of the epoch: means of the loss's figures, and histograms.
    """

    epoch: int
    value: float
    best: bool
    seconds: float
    figures: Mapping[str, Any]

    def record(self, stage: str) -> dict[str, Any]:
        """As a log has it."""
        return {
            "stage": stage,
            "epoch": self.epoch,
            **({} if math.isnan(self.value) else {"validation": self.value}),
            "best": self.best,
            "seconds": round(self.seconds, 3),
            **self.figures,
        }
