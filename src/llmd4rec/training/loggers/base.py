"""What a logger is: a callback that writes down what validation found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.progress import Validation

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class Logger(Callback, ABC):
    """Writes one record for each epoch; only the first of several processes does.

    An epoch may come twice: where a training goes on from a checkpoint that was written before it. A logger overwrites
    it or leaves it out. Its settings are the fields of a dataclass, as for all that settings name; each training has a
    copy of it.

    class Printer(Logger):
        "Prints what the other loggers write down."

        def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
            print(record)

    loggers: [json, my_package.loggers:Printer]
    """

    def __eq__(self, other: object) -> bool:
        """A logger without settings is its class; one with settings is a dataclass, which compares them."""
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def check(self) -> None:
        """Before anything is trained: whether what it needs is there.

        Raises:
            MissingExtraError: a package is not installed.
        """

    @abstractmethod
    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Takes the record of an epoch.

        Args:
            trainer: with its `stage`, and `log_folder`, which stays when the training is over.
            record: `stage`, `epoch` (0: before the first), `validation`, `best`, `seconds`, and what the loss returned:
                a number, or the counts of a histogram.
        """

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if trainer.backend.first:
            self.write(trainer, found.record(trainer.stage))
