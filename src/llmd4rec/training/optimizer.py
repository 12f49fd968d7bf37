"""The optimiser of a training."""

from __future__ import annotations

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
