"""Training one model as runs do: with the callbacks that every training has, and those that are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from llmd4rec.data.arrays import Int64Array
from llmd4rec.data.batching import Histories, TrainingWindows
from llmd4rec.errors import DataError
from llmd4rec.losses.base import Objective
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.backends.base import Backend
from llmd4rec.training.backends.torch_distributed import current_backend
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.checkpoints import Checkpoints
from llmd4rec.training.callbacks.divergence import Divergence
from llmd4rec.training.callbacks.early_stopping import EarlyStopping
from llmd4rec.training.callbacks.ema import EMA
from llmd4rec.training.callbacks.progress_bar import ProgressBar
from llmd4rec.training.callbacks.schedule import Schedule
from llmd4rec.training.callbacks.spare_memory import SpareMemory
from llmd4rec.training.runtime import keep_freed_memory
from llmd4rec.training.settings import Training
from llmd4rec.training.trainer import Fitted, Trainer

#: What every training has, in the order in which it is called: weights are looked at before averages take their place.
DEFAULTS: tuple[type[Callback], ...] = (
    *(Divergence, Schedule, EMA, Checkpoints, EarlyStopping, SpareMemory, ProgressBar),
)


def fit(
    model: SequenceEncoder,
    histories: Histories,
    settings: Training,
    folder: Path,
    *,
    stage: str,
    seed: int,
    validate: Callable[[SequenceEncoder], float] | None,
    objective: Objective,
    callbacks: Sequence[Callback] = (),
    log_folder: Path | None = None,
    trained_before: bool = False,
    seed_key: str | None = None,
    selection: str = "ndcg@10",
    settings_name: str = "training",
    backend: Backend | None = None,
    candidates: Int64Array | None = None,
    preference: NDArray[np.float64] | None = None,
) -> Fitted:
    """Trains `model` in place and leaves it with its best weights.

    Args:
        model: on its device.
        histories: a data set, or others made of it; its training positions are the samples.
        settings: optimiser, schedule, stopping.
        folder: checkpoints; a training found there is continued. To be removed when the result is saved elsewhere.
        stage: id of this training in logs, in checkpoints and in messages.
        seed: the run's seed.
        validate: gives the value by which epochs are chosen, such as validation NDCG@10; larger is better. None:
            nothing is held out, and the last epoch is kept.
        objective: what to train it towards.
        callbacks: beside those of :data:`DEFAULTS`; one of the same class takes the place of the default.
        log_folder: where loggers write; None: `folder`.
        trained_before: the state it comes in is a candidate for the best one, so that training on never makes it
            worse on validation. Random weights are no candidate, however lucky.
        seed_key: with `seed` and the step, what all random numbers are derived from; None: `stage`.
        selection: the name of what `validate` gives.
        settings_name: where `settings` stand in the run's settings, such as `training.llm`; for error messages.
        backend: the processes that train together; None: those that there are.
        candidates: the items that could have been chosen, ascending; others are no negatives. None: all.
        preference: which of the histories' items are rather trained on than others, where `epoch_positions` leaves some
            out; see :class:`~llmd4rec.data.batching.TrainingWindows`.

    Raises:
        DataError: there is nothing to train on.
        Diverged: the training diverged; the checkpoints before that are kept.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written, unless it came twice.
    """
    windows = TrainingWindows(histories, model.max_length, model.reads, candidates, preference)
    if not windows.num_positions:
        raise DataError(
            "there is nothing to train on: no user has two interactions in the training part",
            "Prepare a data set with longer histories (leave-one-out needs 4 interactions of some users).",
        )
    keep_freed_memory()
    if isinstance(objective, nn.Module):
        objective.to(next(model.parameters()).device).train()
    return Trainer(
        model,
        windows,
        objective,
        settings,
        validate,
        with_defaults(callbacks),
        backend or current_backend(),
        folder=folder,
        log_folder=log_folder or folder,
        stage=stage,
        seed=seed,
        seed_key=seed_key or stage,
        selection=selection,
        settings_name=settings_name,
        trained_before=trained_before,
    ).run()


def with_defaults(callbacks: Sequence[Callback]) -> list[Callback]:
    """Those of :data:`DEFAULTS`, each replaced where one of its class is given, then the others."""
    found = [next((own for own in callbacks if isinstance(own, kind)), None) or kind() for kind in DEFAULTS]
    return [*found, *(own for own in callbacks if not any(own is callback for callback in found))]
