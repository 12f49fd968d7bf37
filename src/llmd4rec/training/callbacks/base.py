"""What may be done while a model is trained, without a change to the loop.

class StopAt(Callback):
    "Ends a training once validation is good enough."

    def __init__(self, value: float) -> None:
        self.value = value

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        if found.value >= self.value:
            trainer.stop(f"validation reached {self.value}")

Distillation(model=SASRec(), rounds=0).fit(data, callbacks=[StopAt(0.1)])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmd4rec.training.figures import ReadFigures
from llmd4rec.training.progress import Validation

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class Callback:
    """Is called at points of a training; every method does nothing unless it is overridden.

    One object may see several trainings, one after the other; each begins with :meth:`on_start`. Where several
    processes train one model, each has its own and calls it; `trainer.backend.first` says whose turn it is to write.
    A step can end in an error or in a signal to stop anywhere; :meth:`on_end` comes all the same.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before anything is validated or trained. `trainer.resumed` says whether a checkpoint was loaded."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the steps of an epoch, or what is left of them after an interruption."""

    def on_step_start(self, trainer: Trainer) -> None:
        """Before a step; the learning rate may be set here."""

    def on_figures(self, trainer: Trainer, step: int, figures: ReadFigures) -> None:
        """Loss and figures of a step of this epoch. On a GPU they are read of several steps at once."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After the optimiser's step, which `trainer.progress` counts already."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After the steps of an epoch, before it is validated."""

    def on_validation_start(self, trainer: Trainer) -> None:
        """Before the model is validated; it may be given other weights here."""

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        """What validation has found; the model still has the weights that were validated."""

    def on_validation_end(self, trainer: Trainer) -> None:
        """After validation, also where it failed or was interrupted."""

    def on_model_error(self, trainer: Trainer, error: Exception) -> None:
        """Validation found that the model's scores are no numbers; a more helpful error may be raised here."""

    def on_save(self, trainer: Trainer) -> None:
        """Before a checkpoint is written."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """The training is over: its end, an error, or `Interrupted`."""

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint is to keep: tensors, and anything that is JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave; called before :meth:`on_start`, tensors on the CPU."""
