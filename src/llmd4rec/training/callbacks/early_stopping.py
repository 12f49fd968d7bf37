"""Ends a training that no longer gets better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.progress import Validation

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class EarlyStopping(Callback):
    """Stops after so many epochs without a better validation value.

    Args:
        patience: how many; None: as the settings of the training say.
    """

    def __init__(self, patience: int | None = None) -> None:
        self._patience = patience

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        patience = trainer.settings.patience if self._patience is None else self._patience
        if found.epoch - trainer.progress.best_epoch >= patience:
            trainer.stop(f"{patience} epochs without a better {trainer.selection}")
