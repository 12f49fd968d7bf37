"""The folder of a training in progress; its caller removes it when the result is where it belongs.

last.safetensors          where it stands: model, optimiser, EMA, random states, progress
before-last.safetensors   the one before, for the case that `last` is damaged
best-EPOCH.safetensors    the model alone, at its best validation; one for each of the two above, and the newest
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from llmd4rec.log import logger
from llmd4rec.training import checkpoint
from llmd4rec.training.checkpoint import DamagedCheckpoint
from llmd4rec.training.progress import Progress


class TrainingFolder:
    """Checkpoints and best weights of one training."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self._stage = path, stage
        self.last, self.before_last = path / "last.safetensors", path / "before-last.safetensors"
        #: The best epochs that the two checkpoints name.
        self._needed: list[int] = []

    def best(self, epoch: int) -> Path:
        """The file of the best weights, when they were reached in this epoch."""
        return self.path / f"best-{epoch}.safetensors"

    def save_best(self, epoch: int, value: float, tensors: dict[str, Tensor]) -> str:
        """Writes the best weights so far; their checksum."""
        head = {"stage": self._stage, "epoch": epoch, "value": value}
        checksum = checkpoint.save(self.best(epoch), tensors, head)
        self._tidy(epoch)
        return checksum

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any], best_epoch: int) -> None:
        """Writes a checkpoint and keeps the one before it."""
        checkpoint.save(self.last, tensors, {"stage": self._stage, **state}, keep=self.before_last)
        self._needed = [*self._needed[-1:], best_epoch]
        self._tidy(best_epoch)

    def _tidy(self, best_epoch: int) -> None:
        """Removes best weights that no checkpoint names any more."""
        wanted = {self.best(epoch) for epoch in (*self._needed, best_epoch)}
        for path in set(self.path.glob("best-*.safetensors")) - wanted:
            path.unlink()

    def newest(self, warns: bool) -> tuple[dict[str, Tensor], dict[str, Any], Progress] | None:
        """The newest checkpoint that is whole and whose best weights are: tensors, state, progress; None without one.

        Args:
            warns: whether to say so where that is not the last one.
        """
        for path in (self.last, self.before_last):
            if path.exists():
                try:
                    tensors, state = checkpoint.load(path)
                    at = Progress.from_dict(state["progress"])
                    self._require_best(at)
                except DamagedCheckpoint as error:
                    if warns:
                        logger.warning(f"{error.what}; going back to the checkpoint before it")
                else:
                    self._needed = [at.best_epoch]
                    return tensors, state, at
        return None

    def _require_best(self, at: Progress) -> None:
        path = self.best(at.best_epoch)
        if not path.exists():
            raise DamagedCheckpoint(f"{path} is missing")
        checkpoint.load(path)
        if checkpoint.checksum_of(path) != at.best_checksum:
            raise DamagedCheckpoint(f"{path} is not the one that the checkpoint names")
