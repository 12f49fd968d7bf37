"""The optimiser of a training."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from llmd4rec.losses.base import Objective
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.settings import Training


class _AdamW(torch.optim.AdamW):
    """PyTorch's, without its compiler.

    The methods of PyTorch's optimisers load the compiler, which takes two seconds of each process, to have it leave
    them alone. Nothing is compiled here; so they are called as they are below that.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def adamw(
    ranker: SequenceEncoder, objective: Objective, settings: Training
) -> tuple[torch.optim.Optimizer, dict[str, Tensor]]:
    """AdamW over the trainable parameters of a model and of its objective; and these, by name, in its order."""
    parameters = {name: p for name, p in ranker.named_parameters() if p.requires_grad}
    if isinstance(objective, nn.Module):
        parameters |= {f"objective.{name}": p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = _AdamW(
        parameters.values(),
        settings.peak_rate(ranker.dim),
        weight_decay=settings.weight_decay,
        # One pass over parameters, moments and gradients in place of a dozen.
        fused=next(iter(parameters.values())).device.type in ("cpu", "cuda"),
    )
    return optimizer, dict(parameters)
