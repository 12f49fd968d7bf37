"""The newest rows, learned last and in order of time: a week at a time, each with a sample of what came before it.

    rows that a model knows   | step 1 | step 2 | ... | step n
                                few passes over the rows of the step and over older ones, which are drawn by their age,
                                at a rate that falls to 0; the weights go on, the optimiser begins anew

An update does so with what came since, and a training where the log changes with time does so with its last weeks.
All of them at once, or among all others, teach less: docs/research/rolling.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from llmd4rec.data.arrays import Int64Array
from llmd4rec.data.dataset import Dataset
from llmd4rec.features.item_features import ItemFeatures
from llmd4rec.io.files import remove
from llmd4rec.losses.base import Objective
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.runs.ageing import DAY, halved
from llmd4rec.training import checkpoint
from llmd4rec.training.backends.base import Backend
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.fit import fit
from llmd4rec.training.loggers.base import Logger
from llmd4rec.training.runtime import derive_seed
from llmd4rec.training.settings import Training
from llmd4rec.training.trainer import Fitted

#: A row that is new is always among those that a pass takes.
_ALWAYS = 1e9
#: So many steps at most: what is older than the others is learned in the first.
MOST_STEPS = 8
#: How many of the newest days are learned last where a log changes with time. Epochs are chosen by the first of them.
NEWEST_DAYS, VALIDATION_DAYS = 28.0, 14.0
#: Fewer targets than these choose no epoch, where those that are held out are more.
LEAST_TARGETS = 200

#: Gives a model without weights, with the item features of some data attached, and these; None: it has none.
Build = Callable[[Dataset], tuple[SequenceEncoder, ItemFeatures | None]]


class Passes(BaseModel):
    """How new rows are learned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step_days: float | None = Field(
        7.0,
        gt=0,
        allow_inf_nan=False,
        description="new rows are learned in order of time, those of so many days at once (null: all at once)",
    )
    epochs: int = Field(6, ge=1, description="passes over the new rows of a step, each with older ones drawn anew")
    replay: float = Field(
        0.02, ge=0, le=1, description="share of the older training positions that a pass takes beside the new ones"
    )
    half_life_days: float | None = Field(
        60.0, gt=0, description="older rows are drawn half as often for each so many days of age (null: all alike)"
    )
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate, which falls to 0 as a cosine")
    ema: float = Field(0.98, ge=0, lt=1, description="decay per step of the moving average of the weights")

    def training(self, settings: Training, new: int, older: int) -> Training:
        """The training of a step: its new positions and a share of the others, in so many epochs.

        Args:
            settings: of the model's training before.
            new, older: how many positions there are.
        """
        return settings.model_copy(
            update={
                "epochs": self.epochs,
                "epoch_positions": max(1, new + round(self.replay * older)),
                "learning_rate": self.learning_rate,
                "schedule": "cosine",
                "ema": self.ema,
            }
        )


class Step(NamedTuple):
    """What is learned at once.

    Attributes:
        data: as they were known at the end of the step; every row is training.
        new: which of them are learned in it, [N].
    """

    data: Dataset
    new: NDArray[np.bool_]


class Newest(NamedTuple):
    """A training part whose newest rows are learned last.

    Attributes:
        days: how many of its days are the newest.
        part: the training part: what is held out is not in it.
        before: the same as it was before these days, with the first two weeks of them as validation.
    """

    days: float
    part: Dataset
    before: Dataset

    def steps(self, step_days: float | None) -> list[Step]:
        """What is learned last, in order."""
        old = np.arange(self.part.num_interactions) < np.repeat(self.before.train_end, np.diff(self.part.offsets))
        return in_order(self.part, ~old, step_days)


def newest_of(data: Dataset, days: float) -> Newest | None:
    """The training part of some data, of which so many of the newest days are learned last.

    None where they hold no row or more than half of them, or nothing can be learned before: there is no past then.

    Raises:
        DataError: the data set has no times.
    """
    part = data.training_part()
    if part.event_times is None or not part.num_interactions:
        return None
    moment = int(part.event_times.max()) + 1 - round(days * DAY)
    before = part.before(moment, min(days, VALIDATION_DAYS))
    known = before.train_end - before.offsets[:-1]
    enough = part.num_interactions / 2 <= known.sum() < part.num_interactions and (known > 1).any()
    return Newest(days, part, before) if enough else None


def in_order(data: Dataset, new: NDArray[np.bool_], days: float | None) -> list[Step]:
    """New rows in steps of so many days, counted back from the end of the log.

    Days without anything to learn are no step: the first row of a history is no target.

    Args:
        data: every row is training.
        new: which rows are new, [N].
        days: of a step; None: one step for all, as where nothing has a time.
    """
    times = data.event_times
    if times is None or days is None:
        return [Step(data, new)]
    length, end = max(1, round(days * DAY)), int(times.max()) + 1
    number = min(MOST_STEPS, max(1, round((end - int(times[new].min())) / length)))
    targets, starts = np.array(new), np.asarray(data.offsets[:-1])
    targets[starts[starts < len(targets)]] = False
    steps, learned = [], np.zeros(data.num_interactions, dtype=np.bool_)
    for left in range(number - 1, -1, -1):
        known = data.known_at(end - left * length)
        if (targets & known & ~learned).any():
            # The split is what it was: it says which items are negatives.
            then = replace(data.until(end - left * length), report=data.report) if left else data
            steps.append(Step(then, (new & ~learned)[known]))
            learned |= known
    return steps or [Step(data, new)]


def preferences(data: Dataset, new: NDArray[np.bool_], half_life_days: float | None) -> NDArray[np.float64]:
    """How much rather each row is trained on: new ones always, older ones by their age; [N]."""
    wanted = np.ones(data.num_interactions)
    times = data.event_times
    if times is not None and half_life_days is not None:
        wanted = halved((times.max() - times) / DAY, half_life_days)
    wanted[new] = _ALWAYS
    return wanted


def learn(
    start: SequenceEncoder,
    features: ItemFeatures | None,
    steps: Sequence[Step],
    how: Passes,
    *,
    settings: Training,
    build: Build,
    objective: Callable[[Dataset, Training], Objective],
    candidates: Callable[[Dataset], Int64Array | None],
    folder: Path,
    log_folder: Path,
    stage: str,
    seed: int,
    backend: Backend,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
) -> tuple[SequenceEncoder, ItemFeatures | None, Fitted]:
    """Trains a model on steps, each from the weights that the one before ended with; goes on where it was stopped.

    Args:
        start: the model as it begins, with its item features attached.
        features: these, of the data of the first step.
        steps: what is learned at once, in order.
        how: passes, replay, learning rate.
        settings: of the model's training before.
        build: gives the same model for a later step, whose weights it is then given.
        objective: of the data of a step and its training.
        candidates: the items of the data of a step that are negatives; None: all.
        folder: of checkpoints; its caller removes it when the result is where it belongs.
        log_folder: where loggers write: itself of a single step, else a folder for each.
        stage: id of this training in logs, checkpoints and messages.
        seed: of the run.
        backend: the processes that train together.
        loggers: each step has copies of them.
        callbacks: called in every step.

    Returns:
        The model, with the features of the last step attached, and these; epochs and seconds of all steps together.
    """
    model, done, epochs, seconds = start, 0, 0, 0.0
    for number in range(len(steps) - 1, 0, -1):
        if _ended(folder, number).exists():
            weights, head = checkpoint.load(_ended(folder, number), next(start.parameters()).device)
            done, epochs, seconds = number, head["epochs"], head["seconds"]
            break
    if backend.first and not done and not (folder / "step-1").exists():
        for path in log_folder.glob("step-*"):  # of a training of the same model that was begun otherwise
            remove(path)
    for number, step in enumerate(steps[done:], done + 1):
        if number > 1:
            model, features = build(step.data)
            model.load_saved_state(weights)
        logs = log_folder if len(steps) == 1 else log_folder / f"step-{number}"
        logs.mkdir(parents=True, exist_ok=True)
        new = int(step.new.sum())
        training = how.training(settings, new, step.data.num_interactions - new)
        fitted = fit(
            model,
            step.data,
            training,
            folder / f"step-{number}",
            stage=stage if len(steps) == 1 else f"{stage}, step {number} of {len(steps)}",
            seed_key="update",
            settings_name="training.model",
            seed=derive_seed(seed, "update", step.data.num_interactions),
            validate=None,
            callbacks=[*map(copy.copy, loggers), *callbacks],
            log_folder=logs,
            backend=backend,
            trained_before=True,
            objective=objective(step.data, training),
            candidates=candidates(step.data),
            preference=preferences(step.data, step.new, how.half_life_days),
        )
        epochs, seconds = epochs + fitted.epochs, seconds + fitted.seconds
        if number < len(steps):
            weights = model.saved_state()
            if backend.first:
                head = {"stage": stage, "epoch": fitted.best_epoch, "epochs": epochs, "seconds": seconds}
                checkpoint.save(_ended(folder, number), weights, head)
                remove(folder / f"step-{number}")
            backend.wait()
    return model, features, replace(fitted, epochs=epochs, seconds=seconds)


def _ended(folder: Path, number: int) -> Path:
    """What a step ended with."""
    return folder / f"step-{number}.safetensors"
