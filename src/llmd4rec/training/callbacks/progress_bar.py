"""How far a training is."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

from llmd4rec.log import Bar, bar, duration
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.figures import ReadFigures

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class ProgressBar(Callback):
    """A bar for each epoch on a terminal; elsewhere a line now and then.

    Args:
        line_seconds: from one line to the next; None: a minute.
    """

    def __init__(self, line_seconds: float | None = None) -> None:
        self._line_seconds = line_seconds
        self._open = contextlib.ExitStack()
        self._bar: Bar | None = None

    def on_epoch_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        at = trainer.progress
        if at.epoch == trainer.first_epoch:
            self._since = at.epoch - 1, time.perf_counter()
        self._loss = math.nan
        what = f"{trainer.stage} epoch {at.epoch} of at most {trainer.settings.epochs}"
        self._bar = self._open.enter_context(
            bar(what, trainer.epoch_steps, "steps", start=at.step, line_seconds=self._line_seconds)
        )

    def on_figures(self, trainer: Trainer, step: int, figures: ReadFigures) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        self._loss = figures.loss

    def on_step_end(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        assert self._bar is not None
        value = trainer.progress.best_value
        best = f", best {value if math.isfinite(value) else 0.0:.4f}" if trainer.validates else ""
        self._bar.advance(note=f"loss {self._loss:.3f}{best}, {self._left(trainer)}")

    def _left(self, trainer: Trainer) -> str:
        """How long the stage may still take, validations included as far as they have been seen."""
        at, (epochs, since) = trainer.progress, self._since
        done = at.epoch - 1 + at.step / trainer.epoch_steps
        pace = (time.perf_counter() - since) / max(done - epochs, 1e-9)
        return f"stage at most {duration(pace * (trainer.settings.epochs - done))}"

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Validation has a bar of its own."""
        self._open.close()

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Also where an epoch was not ended."""
        self._open.close()
