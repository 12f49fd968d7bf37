"""Several processes that torch.distributed has brought together.

    torchrun --nproc-per-node 2 -m llmd4rec train ...

The run folder must be one that all of them see.

Gradients are added up behind the backward pass, all in one tensor, by default. DistributedDataParallel (DDP) does it
during the pass, in buckets, which it makes anew behind the first step: with three processes and more a training that
was stopped would then add in another order than one that was not, and its numbers would differ in their last digits.
On two CPUs (gloo, SASRec over 2,000 items) both took the same time, and their weights agreed to nine digits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from llmd4rec.losses.base import StepLoss
from llmd4rec.training.backends.base import Backend
from llmd4rec.training.backends.local import LocalBackend

T = TypeVar("T")
#: The others wait while the first one validates, fills a teacher cache or encodes texts.
_PATIENCE = timedelta(days=1)


class TorchDistributedBackend:
    """The process group that is initialised; see :class:`~llmd4rec.training.backends.base.Backend`.

    Args:
        ddp: leave gradients to DistributedDataParallel; see above.
    """

    def __init__(self, ddp: bool = False) -> None:
        self.rank, self.count, self._ddp = dist.get_rank(), dist.get_world_size(), ddp

    @property
    def first(self) -> bool:
        """Whether it is for this process to write, and to speak."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all have come here."""
        dist.barrier()

    def sum_(self, tensor: Tensor) -> None:
        """The sum over all processes, in place; the same bits in each."""
        dist.all_reduce(tensor)

    def from_first(self, value: T) -> T:
        """What the first process gives, a plain value."""
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in their order."""
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor)
        return parts

    def prepared(self, forward: nn.Module) -> Callable[..., StepLoss]:
        """The module itself, or DDP around it."""
        # Every process has the same buffers; a step may leave a parameter out.
        return DistributedDataParallel(forward, None, find_unused_parameters=True) if self._ddp else forward

    def backward(self, loss: Tensor, numbers: Tensor, parameters: Sequence[Tensor]) -> None:
        """The exact mean over shares of different size; without DDP a missing gradient is 0."""
        own = numbers[0].clone()
        self.sum_(numbers)
        share = (own / numbers[0]).float()
        if self._ddp:  # which gives the mean over processes
            (loss * share * self.count).backward()
            return
        loss.backward()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([(parameter.grad * share).flatten() for parameter in parameters])  # type: ignore[operator]
        self.sum_(flat)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)


def current_backend() -> Backend:
    """The processes that :func:`init_distributed` has brought together, or this one alone."""
    return TorchDistributedBackend() if dist.is_initialized() else LocalBackend()


def init_distributed() -> Backend:
    """Brings the processes together that `torchrun` has started; does nothing where it has not."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return current_backend()
