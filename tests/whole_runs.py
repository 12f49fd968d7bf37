"""What tests of whole runs have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from settings_of import changed
from torch import Tensor

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.runs.pipeline import Pipeline
from llmd4rec.runs.run import Run
from llmd4rec.runs.teachers import Teachers
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.runtime import select_device
from llmd4rec.training.trainer import Trainer


def untrained(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """No epochs: each stage ends where it starts, which shows what it starts from."""
    return changed(settings, training__model__epochs=0, training__llm__epochs=0, **changes)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_stages(a: Run, b: Run) -> bool:
    """Whether two runs have the same stages with the same weights."""
    stages = list(a.record.stages)
    return stages == list(b.record.stages) and all(same(a.weights_of(stage), b.weights_of(stage)) for stage in stages)


def chosen_by(settings: DistillationSettings, data: Dataset, folder: Path, **choosers: Any) -> Run:
    """A run whose ensemble weights (`choose_weights`) or logit adjustment (`choose_tau`) are not left to validation."""
    run = Run.start(folder, settings, data)
    Pipeline(run, data, teachers=Teachers(run, data, select_device(settings.device), **choosers)).run()
    return run


class LooksAt(Callback):
    """Notes what there is where each training begins: `found`, by stage."""

    def __init__(self, look: Callable[[Trainer], Any]) -> None:
        self.look = look
        self.found: dict[str, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        self.found[trainer.stage] = self.look(trainer)


class StopsBefore(Callback):
    """Ends a run with an error where the training of a stage would begin."""

    def __init__(self, stage: str, error: BaseException | None = None) -> None:
        self.stage, self.error = stage, error or KeyboardInterrupt()

    def on_start(self, trainer: Trainer) -> None:
        if trainer.stage == self.stage:
            raise self.error


def taught_by(run: Run) -> dict[str, tuple[str, ...]]:
    """The teachers of each finished stage, as they were recorded."""
    return {stage: tuple(record["teachers"]) for stage, record in run.record.stages.items()}
