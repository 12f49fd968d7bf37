"""Fitting one student to one objective: epochs chosen by validation, interruptible anywhere, resumable exactly.

The loop knows no model and no method: it asks a Ranker for states, hands them with its item table to an objective,
and keeps the weights with the best validation NDCG@10. Everything random depends on the run's seed and on names
(phase, epoch, step), or is saved with the checkpoint, so a resumed training continues to the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from llmd4rec.data.batches import Batch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError, RunError
from llmd4rec.models.ranker import Ranker
from llmd4rec.progress import bar
from llmd4rec.training import checkpoint
from llmd4rec.training.runtime import StopRequest, deferred_signals, derive_seed, keep_freed_memory
from llmd4rec.training.tracking import MetricsLog

#: An epoch has at least so many steps where the data allow it.
MIN_STEPS = 32
#: Bins of the weights' histogram in the log, over [0, 2].
WEIGHT_BINS = 20


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
    checkpoint_seconds: float = Field(60, ge=0, description="save at the first step after so many seconds")


@dataclass(frozen=True)
class LossParts:
    """The loss of one step (differentiable) and what it is made of (detached).

    Attributes:
        total: scalar, `ce + λ · kl`.
        ce: scalar, mean cross-entropy in nats.
        kl: scalar, mean weighted KL in nats (0 without a teacher).
        weight_N: the weights w(s); None without a teacher.
        rank_N: the student's ranks of the true items, ties counted against them; None where no weight asks for them.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    weight_N: Tensor | None
    rank_N: Tensor | None


class Objective(Protocol):
    """What a student is trained towards; a new method is a new one of these."""

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
    sums: dict[str, float] = field(default_factory=dict)
    weight_counts: list[int] = field(default_factory=lambda: [0] * WEIGHT_BINS)


def fit(
    ranker: Ranker,
    dataset: Dataset,
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
    """Trains `ranker` in place and leaves it with its best weights, which are also in `folder`/best.safetensors.

    Args:
        ranker: the student, on its device.
        dataset: its training positions are the samples.
        settings: optimiser, schedule, stopping.
        folder: checkpoints; an unfinished training found there is continued.
        phase: name of this training in the log and in seeds.
        seed: the run's seed.
        validate: gives the validation NDCG@10 of the ranker.
        log: where each epoch's figures go.
        objective: what to train it towards.
        trained_before: the state it comes in is a candidate for the best one, so that training on never makes it
            worse on validation. Random weights are no candidate, however lucky.

    Raises:
        DataError: there is nothing to train on.
        RunError: the loss is not a finite number; the best checkpoint so far is kept.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    windows = TrainingWindows(dataset, ranker.max_length)
    if not windows.num_positions:
        raise DataError(
            "there is nothing to train on: no user has two interactions in the training part",
            "Prepare a data set with longer histories (leave-one-out needs 4 interactions of some users).",
        )
    keep_freed_memory()
    parameters = {name: p for name, p in ranker.named_parameters() if p.requires_grad}
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
        self.at = _Progress(log_size=log.size)
        # Reading a loss makes the host wait for a GPU, which would then wait for the host's next step.
        self._read_every = 1 if self.device.type == "cpu" else 32
        self._unread: list[tuple[LossParts, int]] = []
        trained = dict(zip(names, self._parameters(), strict=True)) if settings.average else {}
        #: Parameters with their running averages, by name; empty where none are wanted.
        self._averages = {name: (parameter, parameter.detach().clone()) for name, parameter in trained.items()}
        self.last, self.best = folder / "last.safetensors", folder / "best.safetensors"
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
        if self.last.exists():
            self._resume()
        else:
            torch.manual_seed(derive_seed(self.seed, self.phase))
            self._judge(validate(self.ranker), epoch=0)
            self.at.log_size = self.log.size
            if not trained_before and self.settings.epochs:
                self.at.best_value = -1.0
        started = clock - self.at.seconds
        self._saved_at = time.perf_counter()
        with deferred_signals() as stop:
            while self.at.epoch <= self.settings.epochs and not self._out_of_patience():
                self._epoch(started, stop)
                with self._averaged():
                    value = validate(self.ranker)
                    self.at.seconds = time.perf_counter() - started
                    self._judge(value, self.at.epoch)
                self.at.epoch, self.at.step, self.at.sums = self.at.epoch + 1, 0, {}
                self.at.weight_counts = [0] * WEIGHT_BINS
                self.at.log_size = self.log.size
                if stop or self._overdue():
                    self._save()
                stop.raise_if_set()
        self.ranker.load_saved_state(checkpoint.load(self.best, self.device)[0])
        self.last.unlink(missing_ok=True)
        return Fitted(self.at.best_value, self.at.best_epoch, self.at.epoch - 1, self.at.seconds)

    def _overdue(self) -> bool:
        return time.perf_counter() - self._saved_at > self.settings.checkpoint_seconds

    def _out_of_patience(self) -> bool:
        return self.at.epoch - 1 - self.at.best_epoch >= self.settings.patience

    # ---- one epoch ----------------------------------------------------------------------------------------------
    def _epoch(self, started: float, stop: StopRequest) -> None:
        at, settings = self.at, self.settings
        rng = np.random.default_rng(derive_seed(self.seed, self.phase, at.epoch))
        batches = self.windows.shuffled(self.batch, rng, settings.epoch_positions)
        self.ranker.train()
        loss = math.nan
        with bar(f"{self.phase} epoch {at.epoch}", len(batches), "steps", start=at.step) as progress:
            for chosen in batches[at.step :]:
                batch = self.windows.batch(chosen)
                self._unread.append((self._step(batch), len(batch.target_N)))
                at.step, at.total_steps = at.step + 1, at.total_steps + 1
                saving = bool(stop) or (self._overdue() and at.step < len(batches))
                if saving or at.step == len(batches) or len(self._unread) >= self._read_every:
                    loss = self._read()
                progress.advance(note=f"loss {loss:.3f}  best {max(at.best_value, 0):.4f}")
                if saving:
                    at.seconds = time.perf_counter() - started
                    self._save()
                stop.raise_if_set()

    def _step(self, batch: Batch) -> LossParts:
        batch = batch.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._rate(self.at.total_steps)
        states_ND = batch.trained(self.ranker.states(batch.items_BL, batch.lengths_B))
        seed = derive_seed(self.seed, self.phase, "draw", self.at.total_steps)
        parts = self.objective(states_ND, self.ranker, batch, seed)
        self.optimizer.zero_grad(set_to_none=True)
        parts.total.backward()  # type: ignore[no-untyped-call]
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.settings.clip)
        self.optimizer.step()
        if self._averages:
            # Early on the average must not hold on to where training started.
            step = self.at.total_steps
            decay = min(self.settings.average, (1 + step) / (10 + step))
            with torch.no_grad():
                parameters, averages = zip(*self._averages.values(), strict=True)
                torch._foreach_lerp_(averages, parameters, 1 - decay)
        return parts

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
        sums, loss = self.at.sums, math.nan
        for number, (parts, positions) in enumerate(self._unread, self.at.step - len(self._unread) + 1):
            loss = float(parts.total.detach())
            if not math.isfinite(loss):
                raise RunError(
                    f"{self.phase}: the loss is {loss} in epoch {self.at.epoch}, step {number}",
                    f"The best weights so far are in {self.best}. Lower the learning rate and train again.",
                )
            sums["positions"] = sums.get("positions", 0.0) + positions
            sums["ce"] = sums.get("ce", 0.0) + float(parts.ce) * positions
            sums["kl"] = sums.get("kl", 0.0) + float(parts.kl) * positions
            if parts.weight_N is not None:
                counts = torch.histc(parts.weight_N.float().cpu(), WEIGHT_BINS, 0, 2)
                self.at.weight_counts = [a + int(b) for a, b in zip(self.at.weight_counts, counts, strict=True)]
                sums["weight"] = sums.get("weight", 0.0) + float(parts.weight_N.sum())
        self._unread.clear()
        return loss

    # ---- validation and checkpoints -----------------------------------------------------------------------------
    def _judge(self, value: float, epoch: int) -> None:
        at = self.at
        # Where nothing has been found yet, later weights are the better guess, and patience has nothing to wait for.
        improved = value > at.best_value or (value == at.best_value == 0)
        if improved:
            at.best_value, at.best_epoch = value, epoch
            checkpoint.save(self.best, self.ranker.saved_state(), {"phase": self.phase, "epoch": epoch, "value": value})
        positions = max(1.0, at.sums.get("positions", 0.0))
        self.log.append(
            phase=self.phase,
            epoch=epoch,
            validation_ndcg=value,
            best=improved,
            seconds=round(at.seconds, 3),
            **({"ce": at.sums["ce"] / positions} if epoch else {}),
            **(
                {
                    "kl": at.sums["kl"] / positions,
                    "weight_mean": at.sums["weight"] / positions,
                    "weight_counts": at.weight_counts,
                }
                if "weight" in at.sums
                else {}
            ),
        )

    def _save(self) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.ranker.saved_state().items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer, self.names)
        tensors |= {f"average/{name}": average for name, (_, average) in self._averages.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint.save(self.last, tensors, {"phase": self.phase, "progress": vars(self.at)})
        self._saved_at = time.perf_counter()

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self.last)
        self.at = _Progress(**state["progress"])
        model = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        self.ranker.load_saved_state(model)
        checkpoint.load_optimizer(self.optimizer, self.names, tensors)
        for name, (_, average) in self._averages.items():
            average.copy_(tensors[f"average/{name}"])
        torch.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
        self.log.rewind(self.at.log_size)
