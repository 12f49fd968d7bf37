"""Ends a training after a number of epochs, though its schedule is planned for more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.progress import Validation

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class StopAfter(Callback):
    """Stops after so many epochs.

    Args:
        epochs: how many.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if found.epoch >= self._epochs:
            trainer.stop(f"{self._epochs} epochs")
