"""The learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.progress import Validation

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer

#: A plateau: so many epochs in a row of which none makes validation better by such a share of what was best before.
EPOCHS, GAIN = 2, 0.01


class Schedule(Callback):
    """Warm-up, then constant, cosine, or halved on a plateau of validation.

    (That is torch's ReduceLROnPlateau, which cannot repeat in a refit what validation chose before.)

    Args:
        halved_after: for a plateau, behind which epochs the rate is halved, where that is known; None: as validation
            will have it.

    Attributes:
        halved_after: behind which epochs it has been, or is to be, halved.
    """

    def __init__(self, halved_after: Sequence[int] | None = None) -> None:
        self._known = halved_after is not None
        self.halved_after = list(halved_after or ())
        self._best: float | None = None
        self._idle = 0

    def on_step_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        rate = trainer.settings.peak_rate(trainer.model.dim) * self._share(trainer)
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if trainer.settings.schedule != "plateau" or self._known or not (found.epoch and trainer.validates):
            return
        if self._best is None or found.value > self._best + GAIN * abs(self._best):
            self._best, self._idle = found.value, 0
            return
        self._idle += 1
        if self._idle == EPOCHS:
            self.halved_after.append(found.epoch)
            self._idle = 0

    def state_dict(self) -> Mapping[str, Any]:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        return {"halved_after": self.halved_after, "best": self._best, "idle": self._idle}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        self.halved_after, self._best, self._idle = list(state["halved_after"]), state["best"], state["idle"]

    def _share(self, trainer: Trainer) -> float:
        """The learning rate of the step that comes, as a share of its peak."""
        settings, planned, step = trainer.settings, trainer.planned_steps, trainer.progress.total_steps
        warmup = min(settings.warmup, planned // 10)
        if step < warmup:
            return (step + 1) / warmup
        if settings.schedule == "cosine":
            done = (step - warmup) / max(1, planned - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if settings.schedule == "plateau":
            return 0.5 ** sum(epoch < trainer.progress.epoch for epoch in self.halved_after)
        return 1.0
