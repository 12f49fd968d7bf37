"""What tests of whole runs have in common."""

from __future__ import annotations

from typing import Any

import torch
from settings_of import changed
from torch import Tensor

from llmd4rec.runs.run import Run


def untrained(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """No epochs: each stage ends where it starts, which shows what it starts from."""
    return changed(settings, training__model__epochs=0, training__llm__epochs=0, **changes)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_stages(a: Run, b: Run) -> bool:
    """Whether two runs have the same stages with the same weights."""
    stages = list(a.record.stages)
    return stages == list(b.record.stages) and all(same(a.weights_of(stage), b.weights_of(stage)) for stage in stages)


def taught_by(run: Run) -> dict[str, tuple[str, ...]]:
    """The teachers of each finished stage, as they were recorded."""
    return {stage: tuple(record["teachers"]) for stage, record in run.record.stages.items()}
