"""Several processes that train one model: each takes its part of every batch, all take the same step.

    torchrun --nproc-per-node 2 -m llmd4rec train ...

Started alone, a process is the first of one, and nothing here does anything. The first one alone writes files; the
others read them, so the run folder must be one that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")
#: The others wait while the first one validates, fills a teacher cache or encodes texts.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """The processes that :func:`init_distributed` has brought together, or this one alone."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Whether it is for this process to write, and to speak."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all have come here."""
        if self.count > 1:
            dist.barrier()

    def sum_(self, tensor: Tensor) -> None:
        """The sum over all processes, in place; the same bits in each."""
        if self.count > 1:
            dist.all_reduce(tensor)

    def share_gradients(self, parameters: Sequence[Tensor], share: Tensor) -> None:
        """Gives every process the gradient of the whole batch's mean loss.

        Args:
            parameters: those that are trained; a missing gradient is 0.
            share: of the batch's positions that are this process's: its gradient is of the mean over its own.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        share = share.float()
        flat = torch.cat([(parameter.grad * share).flatten() for parameter in parameters])  # type: ignore[operator]
        self.sum_(flat)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def from_first(self, value: T) -> T:
        """What the first process gives, a plain value."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in their order."""
        if self.count == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor)
        return parts


def init_distributed() -> Processes:
    """Brings the processes together that `torchrun` has started; does nothing where it has not."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return Processes.current()
