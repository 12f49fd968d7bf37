"""Where a training stands."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from llmd4rec.training.figures import EpochFigures


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
