"""The optimiser of a training, and its learning rate at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmd4rec.losses.base import Objective
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training


def adamw(
    ranker: SequenceEncoder, objective: Objective, settings: Training
) -> tuple[torch.optim.Optimizer, dict[str, Tensor]]:
    """AdamW over the trainable parameters of a model and of its objective; and these, by name, in its order."""
    parameters = {name: p for name, p in ranker.named_parameters() if p.requires_grad}
    if isinstance(objective, nn.Module):
        parameters |= {f"objective.{name}": p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        # One pass over parameters, moments and gradients in place of a dozen.
        fused=next(iter(parameters.values())).device.type in ("cpu", "cuda"),
    )
    return optimizer, dict(parameters)


class Schedule:
    """Warm-up, then constant or cosine. A function of the step alone, so a resumed training needs no state of it.

    (A torch scheduler has state of its own to save and restore; this is shorter.)
    """

    def __init__(self, settings: Training, planned_steps: int) -> None:
        self._settings, self._planned = settings, planned_steps
        self.warmup = min(settings.warmup, planned_steps // 10)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Sets the learning rate of a step, counted from 0."""
        for group in optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * self.share(step)

    def share(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self._settings.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, self._planned - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
