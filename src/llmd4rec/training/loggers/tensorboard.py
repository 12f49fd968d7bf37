"""TensorBoard: `tensorboard --logdir RUN/checkpoints` shows the stages of a run side by side."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from llmd4rec.extras import MissingExtraError, install
from llmd4rec.io.files import remove
from llmd4rec.training.loggers.base import Logger

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class TensorBoard(Logger):
    """Events in the folder `tensorboard` of a stage: numbers as scalars, by epoch; histograms are left out."""

    def check(self) -> None:
        """See :class:`~llmd4rec.training.loggers.base.Logger`."""
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError("the logger tensorboard needs the package tensorboard", install("tensorboard"))

    def on_start(self, trainer: Trainer) -> None:
        """Opens the events; those of epochs that will come again are no longer shown."""
        if trainer.backend.first:
            from torch.utils.tensorboard import SummaryWriter

            folder = trainer.log_folder / "tensorboard"
            if not trainer.resumed:
                remove(folder)
            purge = trainer.progress.epoch if trainer.resumed else None
            self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """See :class:`~llmd4rec.training.loggers.base.Logger`."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(name, float(value), record["epoch"])
        self._writer.flush()

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if trainer.backend.first and hasattr(self, "_writer"):
            self._writer.close()
