"""Trains one model towards one objective: epochs chosen by validation, interruptible anywhere, resumable exactly.

The trainer knows no model and no method: it asks a SequenceEncoder for states, gives them with its item table to an
objective, and follows the value that validation gives. What happens beside the steps is done by callbacks, and how many
processes there are is the backend's affair. Everything random depends on the run's seed and on names (seed key, epoch,
step), or is saved with the checkpoint, so a resumed training continues to the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmd4rec.data.batching import TrainingBatch, TrainingWindows
from llmd4rec.data.dataset import Int64Array
from llmd4rec.errors import ConfigError, ModelError, RunError
from llmd4rec.losses.base import Objective, StepLoss
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training import checkpoint
from llmd4rec.training.backends.base import Backend
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.checkpoints import Checkpoints
from llmd4rec.training.figures import StepFigures
from llmd4rec.training.optimizer import adamw
from llmd4rec.training.progress import Progress, Validation
from llmd4rec.training.runtime import Interrupted, StopRequest, autocast, deferred_signals, derive_seed
from llmd4rec.training.settings import Training


@dataclass(frozen=True)
class Fitted:
    """What came out of a training.

    Attributes:
        best_value: validation value of the weights kept.
        best_epoch: when they were reached; 0 is the state training started from.
        epochs: how many were run.
        seconds: time spent in training steps and validation, interruptions not counted.
    """

    best_value: float
    best_epoch: int
    epochs: int
    seconds: float


class Trainer:
    """One training. What callbacks may read of it are its attributes.

    Args:
        model: on its device; trained in place.
        windows: the training positions.
        objective: what it is trained towards.
        settings: optimiser, batches, precision, how many epochs.
        validate: gives the value by which epochs are chosen; larger is better. None: the last epoch is kept.
        callbacks: in the order in which they are called; one of them is the :class:`Checkpoints`.
        backend: the processes that train together.
        folder: of the checkpoints.
        log_folder: where loggers write.
        stage: id of this training in logs, checkpoints and messages.
        seed: the run's seed.
        seed_key: with `seed` and the step, what all random numbers are derived from.
        selection: the name of what `validate` gives.
        settings_name: where `settings` stand in the run's settings, such as `training.llm`.
        trained_before: the state the model comes in is a candidate for the best one.

    Attributes:
        progress: where the training stands.
        optimizer: with its `param_groups`.
        parameters: those that are trained, by name.
        planned_steps: of all epochs together.
        epoch_steps: of the epoch that runs.
        resumed: whether it goes on from a checkpoint.
        first_epoch: which it began with in this process.
        validates: whether epochs are chosen by validation.
    """

    def __init__(
        self,
        model: SequenceEncoder,
        windows: TrainingWindows,
        objective: Objective,
        settings: Training,
        validate: Callable[[SequenceEncoder], float] | None,
        callbacks: Sequence[Callback],
        backend: Backend,
        *,
        folder: Path,
        log_folder: Path,
        stage: str,
        seed: int,
        seed_key: str,
        selection: str,
        settings_name: str,
        trained_before: bool,
    ) -> None:
        self.model, self.windows, self.objective, self.settings = model, windows, objective, settings
        self.backend, self.callbacks, self.folder, self.log_folder = backend, list(callbacks), folder, log_folder
        self.stage, self.selection, self.settings_name = stage, selection, settings_name
        self._validate, self._seed, self._seed_key, self._trained_before = validate, seed, seed_key, trained_before
        self.checkpoints = next(callback for callback in callbacks if isinstance(callback, Checkpoints))
        self.device = next(model.parameters()).device
        self.optimizer, self.parameters = adamw(model, objective, settings)
        in_precision, half = autocast(settings.precision, self.device)
        self._forward = backend.prepared(_Forward(model, objective, in_precision))
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self._scaler.scale(torch.zeros((), device=self.device))  # has its scale from now on
        # Only methods that a callback overrides: a step is not to call dozens in vain.
        self._hooks: dict[str, list[Callable[..., None]]] = {
            name: [getattr(own, name) for own in self.callbacks if getattr(type(own), name) is not plain]
            for name, plain in vars(Callback).items()
            if name.startswith("on_")
        }
        self.progress, self.resumed, self.first_epoch = Progress(), False, 1
        self.validates = validate is not None
        # Reading a loss makes the host wait for a GPU, which would then wait for the host's next step.
        self._read_every = 1 if self.device.type == "cpu" else 32
        #: The figures of each step that are not read yet.
        self._unread: list[StepFigures] = []
        self._batch = settings.batch_positions(model.num_items, windows.num_positions)
        first = windows.shuffled(self._batch, np.random.default_rng(0), settings.epoch_positions)
        self.epoch_steps, self.planned_steps = len(first), len(first) * settings.epochs

    def run(self) -> Fitted:
        """Trains the model and leaves it with its best weights."""
        error: BaseException | None = None
        try:
            self._run()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._call("on_end", error)
        at = self.progress
        return Fitted(at.best_value, at.best_epoch, at.epoch - 1, at.seconds)

    def stop(self, because: str) -> None:
        """Ends the training after this epoch, for callbacks.

        Args:
            because: why, for the checkpoint.
        """
        self.progress.stopped_because = because

    def _run(self) -> None:
        clock = time.perf_counter()
        self.resumed = self.checkpoints.resume(self)
        at = self.progress
        self._started = clock - at.seconds
        self.first_epoch = at.epoch
        if not self.resumed:
            self._seed_dropout()
        self._call("on_start")
        if not self.resumed:
            with self._validating():
                self._judge(self._validated(contextlib.nullcontext()), epoch=0)
            at.stopped_because = ""  # nothing has been tried yet
            if not self._trained_before and self.settings.epochs:
                at.best_value = -math.inf
        self.backend.wait()  # all have read what the first one is about to replace
        with deferred_signals() as stop:
            while at.epoch <= self.settings.epochs and not at.stopped_because:
                self._epoch(stop)
                self._choose(stop)
                at.next_epoch()
                stopping, overdue = self._agreed(bool(stop), self.checkpoints.due(self))
                if stopping or overdue:
                    self._save()
                if stopping:
                    self._leave(stop)

    def _call(self, hook: str, *arguments: Any) -> None:
        for method in self._hooks[hook]:
            method(self, *arguments)

    def _leave(self, stop: StopRequest) -> None:
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
        at, settings = self.progress, self.settings
        rng = np.random.default_rng(derive_seed(self._seed, self._seed_key, at.epoch))
        batches = self.windows.shuffled(self._batch, rng, settings.epoch_positions)
        self.epoch_steps = len(batches)
        self.model.train()
        self._call("on_epoch_start")
        for chosen in batches[at.step :]:
            self._unread.append(self._step(chosen))
            at.step, at.total_steps = at.step + 1, at.total_steps + 1
            reading = at.step == len(batches) or len(self._unread) >= self._read_every
            stopping, overdue = bool(stop), self.checkpoints.due(self)
            if self.backend.count > 1:  # which ask each other only when they wait anyway
                stopping, overdue = self._agreed(stopping, overdue) if reading else (False, False)
            saving = stopping or (overdue and at.step < len(batches))
            if saving or reading:
                self._read()
            self._call("on_step_end")
            if saving:
                at.seconds = time.perf_counter() - self._started
                self._save()
            if stopping:
                self._leave(stop)
        self._call("on_epoch_end")

    def _step(self, chosen: Int64Array) -> StepFigures:
        """One step of the optimiser; its figures."""
        self._call("on_step_start")
        self.optimizer.zero_grad(set_to_none=True)
        mine = chosen[self.backend.rank :: self.backend.count]
        idle = not len(mine)  # the last batch may have fewer windows than there are processes
        batch = self.windows.batch(chosen[:1] if idle else mine).to(self.device)
        seed = derive_seed(self._seed, self._seed_key, "draw", self.progress.total_steps)
        step = self._forward(batch, seed)
        figures = StepFigures.of(step, 0 if idle else len(batch.target_N))
        parameters = self.parameters.values()
        self.backend.backward(self._scaler.scale(step.loss), figures.numbers, list(parameters))
        self._scaler.unscale_(self.optimizer)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return figures

    def _read(self) -> None:
        """Adds up what the steps since the last reading have left on the device."""
        at = self.progress
        for number, figures in enumerate(self._unread, at.step - len(self._unread) + 1):
            read = figures.read()
            at.figures.add(read)
            self._call("on_figures", number, read)
        self._unread.clear()

    # ---- validation and checkpoints -----------------------------------------------------------------------------
    def _choose(self, stop: StopRequest) -> None:
        """Validates what an epoch has come to. It may take long and changes nothing, so that a signal may end it."""
        try:
            with self._validating():
                alone = self.backend.count == 1
                value = self._validated(stop.at_once() if alone else contextlib.nullcontext())
                self.progress.seconds = time.perf_counter() - self._started
                self._judge(value, self.progress.epoch)
        except Interrupted as interrupted:
            if stop.again:
                raise
            self._save()
            raise Interrupted(interrupted.signal_number, saved=True) from None

    @contextlib.contextmanager
    def _validating(self) -> Iterator[None]:
        self._call("on_validation_start")
        try:
            yield
        finally:
            self._call("on_validation_end")

    def _validated(self, interruptible: contextlib.AbstractContextManager[None]) -> float:
        if self._validate is None:
            return 0.0  # equal to the best so far, of which the later one is kept
        try:
            with interruptible:
                return self.backend.from_first(self._validate(self.model) if self.backend.first else 0.0)
        except ModelError as error:
            self._call("on_model_error", error)
            raise

    def _judge(self, value: float, epoch: int) -> None:
        at = self.progress
        if math.isnan(value):
            raise ConfigError(f"validation {self.selection} is NaN", "Set evaluation.selection to another metric.")
        # Where nothing has been found yet, later weights are the better guess, and patience has nothing to wait for.
        improved = value > at.best_value or (value == at.best_value == 0)
        if improved:
            at.best_value, at.best_epoch = value, epoch
        found = Validation(epoch, value if self.validates else math.nan, improved, at.seconds, at.figures.values())
        self._call("on_validation", found)

    def _save(self) -> None:
        self._call("on_save")
        self.checkpoints.save(self)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a checkpoint has to hold: tensors by name, and JSON."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.saved_state().items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer, list(self.parameters))
        if isinstance(self.objective, nn.Module):
            tensors |= {f"objective/{name}": tensor for name, tensor in self.objective.state_dict().items()}
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        for kind, own in generators.items():
            for rank, random in enumerate(self.backend.gathered(own)):
                tensors[f"random/{kind}/{rank}"] = random
        plain: dict[str, dict[str, Any]] = {}
        for key, callback in self._keyed_callbacks():
            for name, value in callback.state_dict().items():
                if isinstance(value, Tensor):
                    tensors[f"callback/{key}/{name}"] = value
                else:
                    plain.setdefault(key, {})[name] = value
        state = {"progress": self.progress.to_dict(), "scaler": self._scaler.state_dict(), "callbacks": plain}
        return tensors, state

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Goes back to what :meth:`state_dict` gave."""
        try:
            self.progress = Progress.from_dict(state["progress"])
            plain = state["callbacks"]
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{self.folder} holds checkpoints of an earlier llmd4rec",
                "Finish the run with the version that began it, or remove that folder to begin this training again.",
            ) from error
        self.model.load_saved_state(_named(tensors, "model/"))
        if isinstance(self.objective, nn.Module):
            self.objective.load_state_dict(_named(tensors, "objective/"))
        checkpoint.load_optimizer(self.optimizer, list(self.parameters), dict(tensors))
        self._scaler.load_state_dict(state["scaler"])
        for key, callback in self._keyed_callbacks():
            if own := {**plain.get(key, {}), **_named(tensors, f"callback/{key}/")}:
                callback.load_state_dict(own)
        self._seed_dropout()  # for a process more than there were
        rank = self.backend.rank
        if f"random/cpu/{rank}" in tensors:
            torch.set_rng_state(tensors[f"random/cpu/{rank}"])
        if self.device.type == "cuda" and f"random/cuda/{rank}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/cuda/{rank}"], self.device)

    def _keyed_callbacks(self) -> Iterator[tuple[str, Callback]]:
        """Each callback and what its state is saved under: its class, numbered where there are several of it."""
        seen = Counter[str]()
        for callback in self.callbacks:
            key = f"{type(callback).__module__}:{type(callback).__qualname__}"
            seen[key] += 1
            yield (key if seen[key] == 1 else f"{key}#{seen[key]}"), callback

    def _seed_dropout(self) -> None:
        """Each process draws its own numbers; the first one those of a process alone."""
        rank = self.backend.rank
        seed = derive_seed(self._seed, self._seed_key, *([rank] if rank else []))
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":  # which asks every kind of device, and takes a stack trace for each
            torch.manual_seed(seed)


class _Forward(nn.Module):
    """The loss of a batch, in one call."""

    def __init__(
        self,
        model: SequenceEncoder,
        objective: Objective,
        in_precision: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self.model, self.objective, self.in_precision = model, objective, in_precision

    def forward(self, batch: TrainingBatch, seed: int) -> StepLoss:
        """The loss and its figures."""
        with self.in_precision():
            states_ND = batch.trained(self.model.states(batch))
        return self.objective(states_ND.float(), self.model, batch, seed)


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
