"""Trains one model towards one objective: epochs chosen by validation, interruptible anywhere, resumable exactly.

The trainer knows no model and no method: it asks a SequenceEncoder for states, gives them with its item table to an
objective, and keeps the weights with the best validation NDCG@10. Everything random depends on the run's seed and on
names (seed key, epoch, step), or is saved with the checkpoint, so a resumed training continues to the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmd4rec.data.batching import Histories, TrainingWindows
from llmd4rec.data.dataset import Int64Array
from llmd4rec.errors import DataError, Diverged, ModelError
from llmd4rec.log import bar, duration, logger
from llmd4rec.losses.base import Objective
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training import checkpoint
from llmd4rec.training.backends.torch_distributed import current_backend
from llmd4rec.training.divergence import Divergence
from llmd4rec.training.ema import EMA
from llmd4rec.training.figures import StepFigures
from llmd4rec.training.optimizer import Schedule, adamw
from llmd4rec.training.progress import Progress
from llmd4rec.training.runtime import (
    Interrupted,
    SpareMemory,
    StopRequest,
    autocast,
    deferred_signals,
    derive_seed,
    keep_freed_memory,
)
from llmd4rec.training.saving import TrainingFolder
from llmd4rec.training.settings import Training
from llmd4rec.training.tracking import MetricsLog

#: An epoch has at least so many steps where the data allow it.
MIN_STEPS = 32
#: Saving takes at most about this share of the time, whatever `checkpoint_seconds` asks for (0: every step).
SAVING_SHARE = 0.05


@dataclass(frozen=True)
class Fitted:
    """What came out of a training.

    Attributes:
        best_value: validation NDCG@10 of the weights kept.
        best_epoch: when they were reached; 0 is the state training started from.
        epochs: how many were run.
        seconds: time spent in training steps and validation, interruptions not counted.
    """

    best_value: float
    best_epoch: int
    epochs: int
    seconds: float


def fit(
    ranker: SequenceEncoder,
    histories: Histories,
    settings: Training,
    folder: Path,
    *,
    stage: str,
    seed: int,
    validate: Callable[[SequenceEncoder], float],
    log: MetricsLog,
    objective: Objective,
    trained_before: bool = False,
    seed_key: str | None = None,
    settings_name: str = "training",
) -> Fitted:
    """Trains `ranker` in place and leaves it with its best weights.

    Args:
        ranker: the model, on its device.
        histories: a data set, or others made of it; its training positions are the samples.
        settings: optimiser, schedule, stopping.
        folder: checkpoints; a training found there is continued. To be removed when the result is saved elsewhere.
        stage: id of this training in the log, in checkpoints and in messages.
        seed: the run's seed.
        validate: gives the validation NDCG@10 of the model.
        log: where each epoch's figures go.
        objective: what to train it towards.
        trained_before: the state it comes in is a candidate for the best one, so that training on never makes it
            worse on validation. Random weights are no candidate, however lucky.
        seed_key: with `seed` and the step, what all random numbers are derived from; None: `stage`.
        settings_name: where `settings` stand in the run's settings, such as `training.llm`; for error messages.

    Raises:
        DataError: there is nothing to train on.
        Diverged: the training diverged; the checkpoints before that are kept.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written, unless it came twice.
    """
    windows = TrainingWindows(histories, ranker.max_length, ranker.reads)
    if not windows.num_positions:
        raise DataError(
            "there is nothing to train on: no user has two interactions in the training part",
            "Prepare a data set with longer histories (leave-one-out needs 4 interactions of some users).",
        )
    keep_freed_memory()
    if isinstance(objective, nn.Module):
        objective.to(next(ranker.parameters()).device).train()
    trainer = _Trainer(ranker, windows, settings, objective, folder, stage, seed, seed_key or stage, log, settings_name)
    return trainer.run(validate, trained_before)


class _Trainer:
    def __init__(
        self,
        ranker: SequenceEncoder,
        windows: TrainingWindows,
        settings: Training,
        objective: Objective,
        folder: Path,
        stage: str,
        seed: int,
        seed_key: str,
        log: MetricsLog,
        settings_name: str,
    ) -> None:
        self.ranker, self.windows, self.settings, self.objective = ranker, windows, settings, objective
        self.stage, self.seed, self.seed_key, self.log = stage, seed, seed_key, log
        self.folder = TrainingFolder(folder, stage)
        self.optimizer, self.parameters = adamw(ranker, objective, settings)
        self.ema = EMA(self.parameters, settings.ema)
        self._divergence = Divergence(stage, settings, settings_name, ranker.num_items, folder)
        self.device = next(ranker.parameters()).device
        self.backend = current_backend()
        self.autocast, half = autocast(settings.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.scaler.scale(torch.zeros((), device=self.device))  # has its scale from now on, whoever has the first batch
        self.at = Progress()
        # Reading a loss makes the host wait for a GPU, which would then wait for the host's next step.
        self._read_every = 1 if self.device.type == "cpu" else 32
        self._give_back_spare = SpareMemory()
        #: The figures of each step that are not read yet.
        self._unread: list[StepFigures] = []
        per_epoch = min(settings.epoch_positions or windows.num_positions, windows.num_positions)
        # A small log would see too few steps before patience runs out, and a noisier step does it no harm.
        sampled = ranker.num_items > settings.full_softmax_items
        wanted = settings.batch * (settings.large_catalogue_batch if sampled else 1)
        self.batch = min(wanted, max(1, per_epoch // MIN_STEPS))
        first = windows.shuffled(self.batch, np.random.default_rng(0), settings.epoch_positions)
        self.schedule = Schedule(settings, len(first) * settings.epochs)

    def run(self, validate: Callable[[SequenceEncoder], float], trained_before: bool) -> Fitted:
        clock = time.perf_counter()
        if not self._resume():
            self._seed_dropout()
            if self.backend.first:
                self.log.forget(self.stage)
            self._judge(self._validated(validate), epoch=0)
            self.at.log_size = self.log.size
            if not trained_before and self.settings.epochs:
                self.at.best_value = -1.0
        self.backend.wait()  # all have read what the first one is about to replace
        self._started = clock - self.at.seconds
        self._resumed_at = self.at.epoch - 1.0, time.perf_counter()
        self._saved_at, self._saving_took = time.perf_counter(), 0.0
        with deferred_signals() as stop:
            while self.at.epoch <= self.settings.epochs and not self._out_of_patience():
                self._epoch(stop)
                self._choose(validate, stop)
                self.at.next_epoch()
                self.at.log_size = self.log.size
                stopping, overdue = self._agreed(bool(stop), self._overdue())
                if stopping or overdue:
                    self._save()
                if stopping:
                    self._stop(stop)
        self.backend.wait()  # until the best weights are there
        self.ranker.load_saved_state(checkpoint.load(self.folder.best(self.at.best_epoch), self.device)[0])
        return Fitted(self.at.best_value, self.at.best_epoch, self.at.epoch - 1, self.at.seconds)

    def _overdue(self) -> bool:
        """Whether a checkpoint is due; never so often that saving takes much of the time."""
        wanted = self.settings.checkpoint_seconds
        elapsed = time.perf_counter() - self._saved_at
        return elapsed > wanted and (not wanted or elapsed * SAVING_SHARE > self._saving_took)

    def _out_of_patience(self) -> bool:
        return self.at.epoch - 1 - self.at.best_epoch >= self.settings.patience

    def _stop(self, stop: StopRequest) -> None:
        """Leaves the training after a checkpoint, also where the signal came to another process."""
        stop.raise_if_set()
        raise Interrupted(signal.SIGTERM, saved=True)

    def _agreed(self, stopping: bool, overdue: bool) -> tuple[bool, bool]:
        """What all processes do next: stop if any was asked to, save when the first one's clock says so."""
        if self.backend.count > 1:
            flags = torch.tensor([float(stopping), float(overdue and self.backend.first)], device=self.device)
            self.backend.sum_(flags)
            stopping, overdue = bool(flags[0] > 0), bool(flags[1] > 0)
        return stopping, overdue

    # ---- one epoch ----------------------------------------------------------------------------------------------
    def _epoch(self, stop: StopRequest) -> None:
        at, settings = self.at, self.settings
        rng = np.random.default_rng(derive_seed(self.seed, self.seed_key, at.epoch))
        batches = self.windows.shuffled(self.batch, rng, settings.epoch_positions)
        self.ranker.train()
        loss = math.nan
        what = f"{self.stage} epoch {at.epoch} of at most {settings.epochs}"
        with bar(what, len(batches), "steps", start=at.step) as progress:
            for chosen in batches[at.step :]:
                self._unread.append(self._step(chosen))
                at.step, at.total_steps = at.step + 1, at.total_steps + 1
                self._give_back_spare()
                reading = at.step == len(batches) or len(self._unread) >= self._read_every
                stopping, overdue = bool(stop), self._overdue()
                if self.backend.count > 1:  # which ask each other only when they wait anyway
                    stopping, overdue = self._agreed(stopping, overdue) if reading else (False, False)
                saving = stopping or (overdue and at.step < len(batches))
                if saving or reading:
                    loss = self._read()
                progress.advance(note=f"loss {loss:.3f}, best {max(at.best_value, 0):.4f}, {self._left(len(batches))}")
                if saving:
                    at.seconds = time.perf_counter() - self._started
                    self._save()
                if stopping:
                    self._stop(stop)

    def _left(self, steps: int) -> str:
        """How long the stage may still take, validations included as far as they have been seen."""
        epochs, since = self._resumed_at
        done = self.at.epoch - 1 + self.at.step / steps
        pace = (time.perf_counter() - since) / max(done - epochs, 1e-9)
        return f"stage at most {duration(pace * (self.settings.epochs - done))}"

    def _step(self, chosen: Int64Array) -> StepFigures:
        """One step of the optimiser; its figures, see `_unread`."""
        self.schedule.apply(self.optimizer, self.at.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        mine = chosen[self.backend.rank :: self.backend.count]
        idle = not len(mine)  # the last batch may have fewer windows than there are processes
        batch = self.windows.batch(chosen[:1] if idle else mine).to(self.device)
        with self.autocast():
            states_ND = batch.trained(self.ranker.states(batch))
        seed = derive_seed(self.seed, self.seed_key, "draw", self.at.total_steps)
        step = self.objective(states_ND.float(), self.ranker, batch, seed)
        own = 0 if idle else len(batch.target_N)
        self.backend.backward(self.scaler.scale(step.loss), own, list(self.parameters.values()))
        figures = StepFigures.of(step, own)
        self.backend.sum_(figures.numbers)
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.at.total_steps)
        return figures

    def _read(self) -> float:
        """Adds up what the steps since the last reading have left on the device; the last loss."""
        at, loss = self.at, math.nan
        for number, figures in enumerate(self._unread, at.step - len(self._unread) + 1):
            read = figures.read()
            loss = read.loss
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}", number)
            at.figures.add(read)
            ce = read.mean("ce")
            self._divergence.watch(
                at, loss if ce is None else ce, number, self._rate(), self.folder.best(at.best_epoch)
            )
        self._unread.clear()
        return loss

    # ---- divergence ---------------------------------------------------------------------------------------------
    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _diverged(self, what: str, step: int) -> Diverged:
        return self._divergence.error(what, self.at, step, self._rate(), self.folder.best(self.at.best_epoch))

    def _require_finite_weights(self) -> None:
        """Weights can be lost in the step behind a loss that was still a number."""
        for name, parameter in self.parameters.items():
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise self._diverged(f"{name} holds numbers that are not finite", self.at.step)

    # ---- validation and checkpoints -----------------------------------------------------------------------------
    def _choose(self, validate: Callable[[SequenceEncoder], float], stop: StopRequest) -> None:
        """Validates what an epoch has come to. It may take long and changes nothing, so that a signal may end it."""
        try:
            with self.ema.in_place():
                with stop.at_once() if self.backend.count == 1 else contextlib.nullcontext():
                    value = self._validated(validate)
                self.at.seconds = time.perf_counter() - self._started
                self._judge(value, self.at.epoch)
        except Interrupted as interrupted:
            if stop.again:
                raise
            self._save()
            raise Interrupted(interrupted.signal_number, saved=True) from None

    def _validated(self, validate: Callable[[SequenceEncoder], float]) -> float:
        self._require_finite_weights()
        try:
            return self.backend.from_first(validate(self.ranker) if self.backend.first else math.nan)
        except ModelError as error:
            raise self._diverged(error.what, self.at.step) from error

    def _judge(self, value: float, epoch: int) -> None:
        at = self.at
        # Where nothing has been found yet, later weights are the better guess, and patience has nothing to wait for.
        improved = value > at.best_value or (value == at.best_value == 0)
        if improved:
            at.best_value, at.best_epoch = value, epoch
        if not self.backend.first:
            return
        if improved:
            at.best_checksum = self.folder.save_best(epoch, value, self.ranker.saved_state())
        self.log.append(
            stage=self.stage,
            epoch=epoch,
            validation=value,
            best=improved,
            seconds=round(at.seconds, 3),
            **at.figures.values(),
        )

    def _save(self) -> None:
        begun = time.perf_counter()
        self._require_finite_weights()
        tensors = {f"model/{name}": tensor for name, tensor in self.ranker.saved_state().items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer, list(self.parameters))
        tensors |= self.ema.tensors()
        if isinstance(self.objective, nn.Module):
            tensors |= {f"objective/{name}": tensor for name, tensor in self.objective.state_dict().items()}
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        for kind, own in generators.items():
            for rank, random in enumerate(self.backend.gathered(own)):
                tensors[f"random/{kind}/{rank}"] = random
        if self.backend.first:
            state = {"progress": self.at.to_dict(), "scaler": self.scaler.state_dict()}
            self.folder.save(tensors, state, self.at.best_epoch)
        self._saved_at = time.perf_counter()
        self._saving_took = self._saved_at - begun

    def _resume(self) -> bool:
        """Goes back to the newest whole checkpoint; False where there is none."""
        found = self.folder.newest(warns=self.backend.first)
        if found is not None:
            self._restore(*found)
        return found is not None

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any], at: Progress) -> None:
        self.at = at
        model = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        self.ranker.load_saved_state(model)
        if isinstance(self.objective, nn.Module):
            own = {n.removeprefix("objective/"): t for n, t in tensors.items() if n.startswith("objective/")}
            self.objective.load_state_dict(own)
        checkpoint.load_optimizer(self.optimizer, list(self.parameters), tensors)
        self.scaler.load_state_dict(state["scaler"])
        self.ema.load(tensors)
        self._seed_dropout()  # for a process more than there were
        rank = self.backend.rank
        if f"random/cpu/{rank}" in tensors:
            torch.set_rng_state(tensors[f"random/cpu/{rank}"])
        if self.device.type == "cuda" and f"random/cuda/{rank}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/cuda/{rank}"], self.device)
        if self.backend.first:
            if self.log.size < self.at.log_size:
                logger.warning(f"{self.log.path} is shorter than it was: epochs are missing from it")
            self.log.rewind(self.at.log_size)

    def _seed_dropout(self) -> None:
        """Each process draws its own numbers; the first one those of a process alone."""
        rank = self.backend.rank
        torch.manual_seed(derive_seed(self.seed, self.seed_key, *([rank] if rank else [])))
