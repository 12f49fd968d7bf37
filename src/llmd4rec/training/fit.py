"""Fitting one student to one objective: epochs chosen by validation, interruptible anywhere, resumable exactly.

The loop knows no model and no method: it asks a Ranker for states, hands them with its item table to an objective,
and keeps the weights with the best validation NDCG@10. Everything random depends on the run's seed and on names
(phase, epoch, step), or is saved with the checkpoint, so a resumed training continues to the same numbers.

The folder of a training holds, until its caller has put the result where it belongs:

    last.safetensors          where it stands: model, optimiser, averages, random states, progress
    before-last.safetensors   the one before, for the case that `last` is damaged
    best-EPOCH.safetensors    the model alone, at its best validation; one for each of the two above, and the newest
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from llmd4rec.data.batching import Batch, Histories, TrainingWindows
from llmd4rec.data.dataset import Int64Array
from llmd4rec.errors import DataError, Diverged, ModelError
from llmd4rec.log import bar, duration, logger
from llmd4rec.models.base import Ranker
from llmd4rec.training import checkpoint
from llmd4rec.training.checkpoint import DamagedCheckpoint
from llmd4rec.training.processes import Processes
from llmd4rec.training.runtime import (
    Interrupted,
    Precision,
    SpareMemory,
    StopRequest,
    autocast,
    deferred_signals,
    derive_seed,
    keep_freed_memory,
)
from llmd4rec.training.tracking import MetricsLog

#: An epoch has at least so many steps where the data allow it.
MIN_STEPS = 32
#: Bins of the weights' histogram in the log, over [0, 2].
WEIGHT_BINS = 20
#: Saving takes at most about this share of the time, whatever `checkpoint_seconds` asks for (0: every step).
SAVING_SHARE = 0.05
#: A training has diverged when its cross-entropy, averaged over about so many steps, is so many times worse than
#: where it started and than a blind guess.
DIVERGED_STEPS, DIVERGED_TIMES = 50, 3.0


class Training(BaseModel):
    """How one model is trained."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epochs: int = Field(100, ge=0, description="at most so many epochs")
    round_epochs: int | None = Field(
        None, ge=0, description="at most so many epochs in a round of distillation (null: as many as alone)"
    )
    patience: int = Field(5, ge=1, description="stop after so many epochs without a better validation NDCG@10")
    batch: int = Field(
        256, ge=1, description="training positions per step, about; fewer on small data, for at least 32 steps an epoch"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    round_learning_rate: float | None = Field(
        None, gt=0, description="the same in a round of distillation (null: as alone)"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    warmup: int = Field(
        100, ge=0, description="steps over which the learning rate rises from 0; at most a tenth of all steps"
    )
    schedule: Literal["constant", "cosine"] = Field("constant", description="what the rate does afterwards")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; longer gradients are scaled down")
    average: float = Field(
        0.0, ge=0, lt=1, description="validate and keep a running average of the weights with this decay per step"
    )
    epoch_positions: int | None = Field(
        None, ge=1, description="train only about so many positions, drawn anew, in each epoch (null: all)"
    )
    full_softmax_items: int = Field(
        200_000, ge=1, description="larger catalogues are trained on drawn candidates with a log-Q correction"
    )
    large_catalogue_batch: int = Field(
        1, ge=1, description="so many times more positions per step where candidates are drawn"
    )
    candidates: int = Field(16_384, ge=1, description="items drawn per step when the catalogue is larger than that")
    precision: Precision = Field(
        "auto", description="of the forward pass: fp32, bf16, fp16; auto: fp32 on a CPU, bf16 on a GPU that has it"
    )
    checkpoint_seconds: float = Field(
        60, ge=0, description="save at the first step after so many seconds, less often where saving takes long"
    )

    def in_round(self) -> Self:
        """The same for a model that is taught in a round of distillation."""
        epochs, rate = self.round_epochs, self.round_learning_rate
        changes = {
            "epochs": self.epochs if epochs is None else min(self.epochs, epochs),
            "learning_rate": self.learning_rate if rate is None else rate,
        }
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class LossParts:
    """The loss of one step (differentiable) and what it is made of (detached).

    Attributes:
        total: scalar, `ce + λ · kl`.
        ce: scalar, mean cross-entropy in nats.
        kl: scalar, mean weighted KL in nats, or what another method has in its place (0 without a teacher).
        weight_N: the weights w(s); None without a teacher.
        rank_N: the student's ranks of the true items, ties counted against them; None where no weight asks for them.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    weight_N: Tensor | None
    rank_N: Tensor | None


class Objective(Protocol):
    """What a student is trained towards; a new method is a new one of these.

    One that is a `torch.nn.Module` may have parameters of its own, such as a projection of the student's states to
    the teacher's: they are trained with the student's, go on with an interrupted training, and are no part of its
    result.
    """

    def __call__(self, states_ND: Tensor, ranker: Ranker, batch: Batch, seed: int) -> LossParts:
        """The loss of a batch's N positions.

        Args:
            states_ND: the student's states where a next item is to be predicted.
            ranker: the student, for its item table.
            batch: the true next items and the numbers of the positions.
            seed: of this step, for objectives that draw.
        """
        ...


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


@dataclass
class _Progress:
    """Where a training stands; saved as JSON with each checkpoint."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    total_steps: int = 0
    best_value: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    log_size: int = 0
    #: Checksum of the best weights' file, which the checkpoint needs to be of use.
    best_checksum: str = ""
    #: Cross-entropy of the first step, and averaged over the last.
    first_ce: float = math.nan
    ce_level: float = math.nan
    sums: dict[str, float] = field(default_factory=dict)
    weight_counts: list[int] = field(default_factory=lambda: [0] * WEIGHT_BINS)


def fit(
    ranker: Ranker,
    histories: Histories,
    settings: Training,
    folder: Path,
    *,
    phase: str,
    seed: int,
    validate: Callable[[Ranker], float],
    log: MetricsLog,
    objective: Objective,
    trained_before: bool = False,
) -> Fitted:
    """Trains `ranker` in place and leaves it with its best weights.

    Args:
        ranker: the student, on its device.
        histories: a data set, or others made of it; its training positions are the samples.
        settings: optimiser, schedule, stopping.
        folder: checkpoints; a training found there is continued. To be removed when the result is in safety.
        phase: name of this training in the log and in seeds.
        seed: the run's seed.
        validate: gives the validation NDCG@10 of the ranker.
        log: where each epoch's figures go.
        objective: what to train it towards.
        trained_before: the state it comes in is a candidate for the best one, so that training on never makes it
            worse on validation. Random weights are no candidate, however lucky.

    Raises:
        DataError: there is nothing to train on.
        Diverged: the training diverged; the checkpoints before that are kept.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written, unless it came twice.
    """
    windows = TrainingWindows(histories, ranker.max_length)
    if not windows.num_positions:
        raise DataError(
            "there is nothing to train on: no user has two interactions in the training part",
            "Prepare a data set with longer histories (leave-one-out needs 4 interactions of some users).",
        )
    keep_freed_memory()
    parameters = {name: p for name, p in ranker.named_parameters() if p.requires_grad}
    if isinstance(objective, nn.Module):
        objective.to(next(ranker.parameters()).device).train()
        parameters |= {f"objective.{name}": p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        # One pass over parameters, moments and gradients in place of a dozen.
        fused=next(iter(parameters.values())).device.type in ("cpu", "cuda"),
    )
    trainer = _Trainer(ranker, windows, settings, optimizer, list(parameters), objective, folder, phase, seed, log)
    return trainer.run(validate, trained_before)


class _Trainer:
    def __init__(
        self,
        ranker: Ranker,
        windows: TrainingWindows,
        settings: Training,
        optimizer: torch.optim.Optimizer,
        names: list[str],
        objective: Objective,
        folder: Path,
        phase: str,
        seed: int,
        log: MetricsLog,
    ) -> None:
        self.ranker, self.windows, self.settings = ranker, windows, settings
        self.optimizer, self.names, self.objective, self.folder = optimizer, names, objective, folder
        self.phase, self.seed, self.log = phase, seed, log
        self.device = next(ranker.parameters()).device
        self.processes = Processes.current()
        self.autocast, half = autocast(settings.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.scaler.scale(torch.zeros((), device=self.device))  # has its scale from now on, whoever has the first batch
        self.at = _Progress()
        # Reading a loss makes the host wait for a GPU, which would then wait for the host's next step.
        self._read_every = 1 if self.device.type == "cpu" else 32
        self._give_back_spare = SpareMemory()
        #: Of each step not read yet: positions; total, cross-entropy and KL times positions; sum of the weights, and
        #: their histogram.
        self._unread: list[Tensor] = []
        trained = dict(zip(names, self._parameters(), strict=True)) if settings.average else {}
        #: Parameters with their running averages, by name; empty where none are wanted.
        self._averages = {name: (parameter, parameter.detach().clone()) for name, parameter in trained.items()}
        self.last, self.before_last = folder / "last.safetensors", folder / "before-last.safetensors"
        #: The best epochs that the two checkpoints name.
        self._needed: list[int] = []
        per_epoch = min(settings.epoch_positions or windows.num_positions, windows.num_positions)
        # A small log would see too few steps before patience runs out, and a noisier step does it no harm.
        drawn = ranker.num_items > settings.full_softmax_items
        wanted = settings.batch * (settings.large_catalogue_batch if drawn else 1)
        self.batch = min(wanted, max(1, per_epoch // MIN_STEPS))
        first = windows.shuffled(self.batch, np.random.default_rng(0), settings.epoch_positions)
        self.planned_steps = len(first) * settings.epochs
        self.warmup = min(settings.warmup, self.planned_steps // 10)

    def run(self, validate: Callable[[Ranker], float], trained_before: bool) -> Fitted:
        clock = time.perf_counter()
        if not self._resume():
            self._seed_dropout()
            if self.processes.first:
                self.log.forget(self.phase)
            self._judge(self._validated(validate), epoch=0)
            self.at.log_size = self.log.size
            if not trained_before and self.settings.epochs:
                self.at.best_value = -1.0
        self.processes.wait()  # all have read what the first one is about to replace
        self._started = clock - self.at.seconds
        self._resumed_at = self.at.epoch - 1.0, time.perf_counter()
        self._saved_at, self._saving_took = time.perf_counter(), 0.0
        with deferred_signals() as stop:
            while self.at.epoch <= self.settings.epochs and not self._out_of_patience():
                self._epoch(stop)
                self._choose(validate, stop)
                self.at.epoch, self.at.step, self.at.sums = self.at.epoch + 1, 0, {}
                self.at.weight_counts = [0] * WEIGHT_BINS
                self.at.log_size = self.log.size
                stopping, overdue = self._agreed(bool(stop), self._overdue())
                if stopping or overdue:
                    self._save()
                if stopping:
                    self._stop(stop)
        self.processes.wait()  # until the best weights are there
        self.ranker.load_saved_state(checkpoint.load(self._best(self.at.best_epoch), self.device)[0])
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
        if self.processes.count > 1:
            flags = torch.tensor([float(stopping), float(overdue and self.processes.first)], device=self.device)
            self.processes.sum_(flags)
            stopping, overdue = bool(flags[0] > 0), bool(flags[1] > 0)
        return stopping, overdue

    # ---- one epoch ----------------------------------------------------------------------------------------------
    def _epoch(self, stop: StopRequest) -> None:
        at, settings = self.at, self.settings
        rng = np.random.default_rng(derive_seed(self.seed, self.phase, at.epoch))
        batches = self.windows.shuffled(self.batch, rng, settings.epoch_positions)
        self.ranker.train()
        loss = math.nan
        what = f"{self.phase} epoch {at.epoch} of at most {settings.epochs}"
        with bar(what, len(batches), "steps", start=at.step) as progress:
            for chosen in batches[at.step :]:
                self._unread.append(self._step(chosen))
                at.step, at.total_steps = at.step + 1, at.total_steps + 1
                self._give_back_spare()
                reading = at.step == len(batches) or len(self._unread) >= self._read_every
                stopping, overdue = bool(stop), self._overdue()
                if self.processes.count > 1:  # which ask each other only when they wait anyway
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

    def _step(self, chosen: Int64Array) -> Tensor:
        """One step of the optimiser; its figures, see `_unread`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._rate(self.at.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        mine = chosen[self.processes.rank :: self.processes.count]
        if len(mine):
            batch = self.windows.batch(mine).to(self.device)
            with self.autocast():
                states_ND = batch.trained(self.ranker.states(batch.items_BL, batch.lengths_B))
            seed = derive_seed(self.seed, self.phase, "draw", self.at.total_steps)
            parts = self.objective(states_ND.float(), self.ranker, batch, seed)
            self.scaler.scale(parts.total).backward()  # type: ignore[no-untyped-call]
            figures = self._figures(parts, len(batch.target_N))
        else:
            figures = torch.zeros(5 + WEIGHT_BINS, dtype=torch.float64, device=self.device)
        if self.processes.count > 1:
            self._share_gradients(figures)
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._averages:
            # Early on the average must not hold on to where training started.
            step = self.at.total_steps
            decay = min(self.settings.average, (1 + step) / (10 + step))
            with torch.no_grad():
                parameters, averages = zip(*self._averages.values(), strict=True)
                torch._foreach_lerp_(averages, parameters, 1 - decay)
        return figures

    def _figures(self, parts: LossParts, positions: int) -> Tensor:
        losses = torch.stack([part.detach().double() * positions for part in (parts.total, parts.ce, parts.kl)])
        counts, weight_sum = losses.new_zeros(WEIGHT_BINS), losses.new_zeros(1)
        if parts.weight_N is not None:
            counts, weight_sum = torch.histc(parts.weight_N.float(), WEIGHT_BINS, 0, 2), parts.weight_N.sum()[None]
        return torch.cat([losses.new_full((1,), positions), losses, weight_sum.double(), counts.double()])

    def _share_gradients(self, figures: Tensor) -> None:
        """Gives every process the gradient of the whole batch's mean loss, and adds up the figures, in place.

        A process's gradient is of the mean over its own positions, of which some have more than others.
        """
        parameters = self._parameters()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        own = figures[0].clone()
        self.processes.sum_(figures)
        share = (own / figures[0]).float()
        flat = torch.cat([(parameter.grad * share).flatten() for parameter in parameters])  # type: ignore[operator]
        self.processes.sum_(flat)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within the block the model has its averaged weights, where it is to be judged by those."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, average in self._averages.values():
            parameter.data, average.data = average.data, parameter.data

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _rate(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.settings.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, self.planned_steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def _read(self) -> float:
        """Adds up what the steps since the last reading have left on the device; the last loss."""
        at, loss = self.at, math.nan
        for number, figures in enumerate(self._unread, at.step - len(self._unread) + 1):
            positions, total, ce, kl, weight, *counts = figures.tolist()
            loss = total / positions
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}", number)
            for name, value in (("positions", positions), ("ce", ce), ("kl", kl), ("weight", weight)):
                at.sums[name] = at.sums.get(name, 0.0) + value
            at.weight_counts = [a + int(b) for a, b in zip(at.weight_counts, counts, strict=True)]
            self._watch(ce / positions, number)
        self._unread.clear()
        return loss

    # ---- divergence ---------------------------------------------------------------------------------------------
    def _watch(self, ce: float, step: int) -> None:
        """Notices a loss that climbs, long before it overflows."""
        at = self.at
        if math.isnan(at.first_ce):
            at.first_ce = at.ce_level = ce
        at.ce_level += (ce - at.ce_level) / DIVERGED_STEPS
        guess = math.log(self.ranker.num_items)
        if at.total_steps > DIVERGED_STEPS and at.ce_level > DIVERGED_TIMES * max(1.0, guess, at.first_ce):
            raise self._diverged(
                f"the cross-entropy has climbed to {at.ce_level:.1f} nats, where a blind guess costs {guess:.1f},", step
            )

    def _require_finite_weights(self) -> None:
        """Weights can be lost in the step behind a loss that was still a number."""
        for name, parameter in zip(self.names, self._parameters(), strict=True):
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise self._diverged(f"{name} holds numbers that are not finite", self.at.step)

    def _diverged(self, what: str, step: int) -> Diverged:
        rate, model = self.optimizer.param_groups[0]["lr"], "llm" if self.phase.startswith("llm") else "crm"
        in_force = self.settings.learning_rate == self.settings.round_learning_rate and "-round-" in self.phase
        name = f"training.{model}.{'round_' if in_force else ''}learning_rate"
        clip = "" if self.settings.clip else f", or set training.{model}.clip to 1"
        return Diverged(
            f"{self.phase}: training diverged: {what} in epoch {self.at.epoch}, step {step}, "
            f"at learning rate {rate:.2g}",
            f"Lower {name}{clip}, in a new run folder; or, where no finished training depends on it, in this one after "
            f"{self.folder} is gone. The best weights before are kept in {self._best(self.at.best_epoch)}.",
        )

    # ---- validation and checkpoints -----------------------------------------------------------------------------
    def _choose(self, validate: Callable[[Ranker], float], stop: StopRequest) -> None:
        """Validates what an epoch has come to. It may take long and changes nothing, so that a signal may end it."""
        try:
            with self._averaged():
                with stop.at_once() if self.processes.count == 1 else contextlib.nullcontext():
                    value = self._validated(validate)
                self.at.seconds = time.perf_counter() - self._started
                self._judge(value, self.at.epoch)
        except Interrupted as interrupted:
            if stop.again:
                raise
            self._save()
            raise Interrupted(interrupted.signal_number, saved=True) from None

    def _validated(self, validate: Callable[[Ranker], float]) -> float:
        self._require_finite_weights()
        try:
            return self.processes.from_first(validate(self.ranker) if self.processes.first else math.nan)
        except ModelError as error:
            raise self._diverged(error.what, self.at.step) from error

    def _judge(self, value: float, epoch: int) -> None:
        at = self.at
        # Where nothing has been found yet, later weights are the better guess, and patience has nothing to wait for.
        improved = value > at.best_value or (value == at.best_value == 0)
        if improved:
            at.best_value, at.best_epoch = value, epoch
        if not self.processes.first:
            return
        if improved:
            head = {"phase": self.phase, "epoch": epoch, "value": value}
            at.best_checksum = checkpoint.save(self._best(epoch), self.ranker.saved_state(), head)
            self._tidy()
        positions = max(1.0, at.sums.get("positions", 0.0))
        weighted = sum(at.weight_counts) > 0
        self.log.append(
            phase=self.phase,
            epoch=epoch,
            validation_ndcg=value,
            best=improved,
            seconds=round(at.seconds, 3),
            **({"ce": at.sums["ce"] / positions} if epoch else {}),
            **({"kl": at.sums["kl"] / positions} if weighted or at.sums.get("kl") else {}),
            **({"weight_mean": at.sums["weight"] / positions, "weight_counts": at.weight_counts} if weighted else {}),
        )

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.safetensors"

    def _tidy(self) -> None:
        """Removes best weights that no checkpoint names any more."""
        wanted = {self._best(epoch) for epoch in (*self._needed, self.at.best_epoch)}
        for path in set(self.folder.glob("best-*.safetensors")) - wanted:
            path.unlink()

    def _save(self) -> None:
        begun = time.perf_counter()
        self._require_finite_weights()
        tensors = {f"model/{name}": tensor for name, tensor in self.ranker.saved_state().items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer, self.names)
        tensors |= {f"average/{name}": average for name, (_, average) in self._averages.items()}
        if isinstance(self.objective, nn.Module):
            tensors |= {f"objective/{name}": tensor for name, tensor in self.objective.state_dict().items()}
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        for kind, own in generators.items():
            for rank, random in enumerate(self.processes.gathered(own)):
                tensors[f"random/{kind}/{rank}"] = random
        if self.processes.first:
            state = {"phase": self.phase, "progress": vars(self.at), "scaler": self.scaler.state_dict()}
            checkpoint.save(self.last, tensors, state, keep=self.before_last)
            self._needed = [*self._needed[-1:], self.at.best_epoch]
            self._tidy()
        self._saved_at = time.perf_counter()
        self._saving_took = self._saved_at - begun

    def _resume(self) -> bool:
        """Goes back to the newest checkpoint that is whole and whose best weights are; False where there is none."""
        for path in (self.last, self.before_last):
            if path.exists():
                try:
                    tensors, state = checkpoint.load(path)
                    self._require_best(_Progress(**state["progress"]))
                except DamagedCheckpoint as error:
                    if self.processes.first:
                        logger.warning(f"{error.what}; going back to the checkpoint before it")
                else:
                    self._restore(tensors, state)
                    return True
        return False

    def _require_best(self, at: _Progress) -> None:
        path = self._best(at.best_epoch)
        if not path.exists():
            raise DamagedCheckpoint(f"{path} is missing")
        checkpoint.load(path)
        if checkpoint.checksum_of(path) != at.best_checksum:
            raise DamagedCheckpoint(f"{path} is not the one that the checkpoint names")

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.at = _Progress(**state["progress"])
        self._needed = [self.at.best_epoch]
        model = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        self.ranker.load_saved_state(model)
        if isinstance(self.objective, nn.Module):
            own = {n.removeprefix("objective/"): t for n, t in tensors.items() if n.startswith("objective/")}
            self.objective.load_state_dict(own)
        checkpoint.load_optimizer(self.optimizer, self.names, tensors)
        self.scaler.load_state_dict(state["scaler"])
        for name, (_, average) in self._averages.items():
            average.copy_(tensors[f"average/{name}"])
        self._seed_dropout()  # for a process more than there were
        rank = self.processes.rank
        if f"random/cpu/{rank}" in tensors:
            torch.set_rng_state(tensors[f"random/cpu/{rank}"])
        if self.device.type == "cuda" and f"random/cuda/{rank}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/cuda/{rank}"], self.device)
        if self.processes.first:
            if self.log.size < self.at.log_size:
                logger.warning(f"{self.log.path} is shorter than it was: epochs are missing from it")
            self.log.rewind(self.at.log_size)

    def _seed_dropout(self) -> None:
        """Each process draws its own numbers; the first one those of a process alone."""
        rank = self.processes.rank
        torch.manual_seed(derive_seed(self.seed, self.phase, *([rank] if rank else [])))
