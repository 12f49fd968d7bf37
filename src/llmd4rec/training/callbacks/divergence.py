"""Notices a training that diverges, long before its loss overflows, and says which setting to lower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from llmd4rec.errors import Diverged, ModelError
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.figures import ReadFigures

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class Divergence(Callback):
    """Raises `Diverged` where loss, weights or scores are no longer numbers, or the loss climbs.

    The cross-entropy is watched where the loss gives one as its figure `ce`, otherwise the loss itself.

    Args:
        times: a training has diverged when what is watched is so many times worse than where it started and, for a
            cross-entropy, than a uniform guess;
        steps: averaged over about so many steps.
    """

    def __init__(self, times: float = 3.0, steps: int = 50) -> None:
        self._times, self._steps = times, steps
        self._first = self._level = math.nan

    def on_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if not trainer.resumed:
            self._first = self._level = math.nan

    def on_figures(self, trainer: Trainer, step: int, figures: ReadFigures) -> None:
        """Takes the loss of a step into account."""
        loss, ce = figures.loss, figures.mean("ce")
        if not math.isfinite(loss):
            raise _error(trainer, f"the loss is {loss}", step)
        value = loss if ce is None else ce
        if math.isnan(self._first):
            self._first = self._level = value
        self._level += (value - self._level) / self._steps
        uniform = math.log(trainer.model.num_items)
        if trainer.progress.total_steps > self._steps:
            if ce is not None and self._level > self._times * max(1.0, uniform, self._first):
                cost = f"where a uniform guess costs {uniform:.1f}"
                raise _error(trainer, f"the cross-entropy rose to {self._level:.1f} nats, {cost},", step)
            if ce is None and self._level > self._times * max(1.0, self._first):
                raise _error(trainer, f"the loss rose to {self._level:.3g} from {self._first:.3g}", step)

    def on_validation_start(self, trainer: Trainer) -> None:
        """Weights can be lost in the step behind a loss that was still a number."""
        self.on_save(trainer)

    def on_save(self, trainer: Trainer) -> None:
        """See :meth:`on_validation_start`."""
        for name, parameter in trainer.parameters.items():
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise _error(trainer, f"{name} holds numbers that are not finite", trainer.progress.step)

    def on_model_error(self, trainer: Trainer, error: Exception) -> None:
        """Scores that are no numbers are divergence, too."""
        if isinstance(error, ModelError):
            raise _error(trainer, error.what, trainer.progress.step) from error

    def state_dict(self) -> dict[str, Any]:
        """The first value, and the average over the last."""
        return {"first": self._first, "level": self._level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._first, self._level = state["first"], state["level"]


def _error(trainer: Trainer, what: str, step: int) -> Diverged:
    """The error to raise: what was found in which step of the epoch."""
    settings, where = trainer.settings, trainer.settings_name
    rate = float(trainer.optimizer.param_groups[0]["lr"])
    clip = "" if settings.clip else f", or set {where}.clip to 1"
    return Diverged(
        f"{trainer.stage}: training diverged: {what} in epoch {trainer.progress.epoch}, step {step}, at learning rate "
        f"{rate:.2g}",
        f"Lower {where}.{settings.learning_rate_name}{clip}, in a new run folder; or, where no finished training "
        f"depends on it, in this one after {trainer.folder} is gone. The best weights before are kept in "
        f"{trainer.checkpoints.best(trainer.progress.best_epoch)}.",
    )
