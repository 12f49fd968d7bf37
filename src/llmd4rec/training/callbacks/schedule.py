"""The learning rate at every step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmd4rec.training.callbacks.base import Callback

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class Schedule(Callback):
    """Warm-up, then constant or cosine. A function of the step alone, so a resumed training needs no state of it.

    (A torch scheduler has state of its own to save and restore; this is shorter.)
    """

    def on_step_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        rate = trainer.settings.peak_rate(trainer.model.dim) * self._share(trainer)
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate

    @staticmethod
    def _share(trainer: Trainer) -> float:
        """The learning rate of the step that comes, as a share of its peak."""
        settings, planned, step = trainer.settings, trainer.planned_steps, trainer.progress.total_steps
        warmup = min(settings.warmup, planned // 10)
        if step < warmup:
            return (step + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(1, planned - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
