"""The folder of a training in progress; its caller removes it when the result is where it belongs.

last.safetensors          where it stands: model, optimiser, random states, progress, what callbacks keep
before-last.safetensors   the one before, for the case that `last` is damaged
best-EPOCH.safetensors    the model alone, at its best validation; one for each of the two above, and the newest
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from llmd4rec.log import logger
from llmd4rec.training import checkpoint
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.checkpoint import DamagedCheckpoint
from llmd4rec.training.progress import Validation

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class Checkpoints(Callback):
    """Writes checkpoints and the best weights, goes back to the newest, and ends with the best weights.

    Args:
        seconds: a checkpoint is due after so many; None: as the settings of the training say.
        share: saving takes at most about this share of the time, however often it is due (with 0 seconds: no limit).
        write: writes a file, as :func:`~llmd4rec.training.checkpoint.save` does.
    """

    def __init__(
        self, seconds: float | None = None, share: float = 0.05, write: Callable[..., str] = checkpoint.save
    ) -> None:
        self._given, self._share, self._write = seconds, share, write

    def resume(self, trainer: Trainer) -> bool:
        """Goes back to the newest whole checkpoint; False where there is none."""
        self._folder, self._stage = trainer.folder, trainer.stage
        self._last, self._before_last = self._folder / "last.safetensors", self._folder / "before-last.safetensors"
        #: The best epochs that the two checkpoints name.
        self._needed: list[int] = []
        self._best_checksum = ""
        found = self._newest(warns=trainer.backend.first)
        if found is not None:
            trainer.restore(*found)
        return found is not None

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Time is counted from the first step."""
        if trainer.progress.epoch == trainer.first_epoch:
            self._saved_at, self._took = time.perf_counter(), 0.0

    def due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is due; never so often that saving takes much of the time."""
        wanted = trainer.settings.checkpoint_seconds if self._given is None else self._given
        elapsed = time.perf_counter() - self._saved_at
        return elapsed > wanted and (not wanted or elapsed * self._share > self._took)

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint and keeps the one before it."""
        begun = time.perf_counter()
        tensors, state = trainer.state_dict()
        if trainer.backend.first:
            best = trainer.progress.best_epoch
            state |= {"stage": self._stage, "best_checksum": self._best_checksum}
            self._write(self._last, tensors, state, keep=self._before_last)
            self._needed = [*self._needed[-1:], best]
            self._tidy(best)
        self._saved_at = time.perf_counter()
        self._took = self._saved_at - begun

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        """Writes the best weights so far."""
        if found.best and trainer.backend.first:
            head = {"stage": self._stage, "epoch": found.epoch, "value": found.value}
            self._best_checksum = self._write(self.best(found.epoch), trainer.model.saved_state(), head)
            self._tidy(found.epoch)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """The model leaves with its best weights."""
        if error is None:
            trainer.backend.wait()  # until they are there
            best, _ = checkpoint.load(self.best(trainer.progress.best_epoch), trainer.device)
            trainer.model.load_saved_state(best)

    def best(self, epoch: int) -> Path:
        """The file of the best weights, when they were reached in this epoch."""
        return self._folder / f"best-{epoch}.safetensors"

    def _tidy(self, best_epoch: int) -> None:
        """Removes best weights that no checkpoint names any more."""
        wanted = {self.best(epoch) for epoch in (*self._needed, best_epoch)}
        for path in set(self._folder.glob("best-*.safetensors")) - wanted:
            path.unlink()

    def _newest(self, warns: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole and whose best weights are: tensors and state; None without one.

        Args:
            warns: whether to say so where that is not the last one.
        """
        for path in (self._last, self._before_last):
            if path.exists():
                try:
                    tensors, state = checkpoint.load(path)
                    best = state["progress"]["best_epoch"]
                    self._require_best(self.best(best), state["best_checksum"])
                except DamagedCheckpoint as error:
                    if warns:
                        logger.warning(f"{error.what}; going back to the checkpoint before it")
                else:
                    self._needed, self._best_checksum = [best], state["best_checksum"]
                    return tensors, state
        return None

    def _require_best(self, path: Path, checksum: str) -> None:
        if not path.exists():
            raise DamagedCheckpoint(f"{path} is missing")
        checkpoint.load(path)
        if checkpoint.checksum_of(path) != checksum:
            raise DamagedCheckpoint(f"{path} is not the one that the checkpoint names")
