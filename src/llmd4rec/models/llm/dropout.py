"""Dropout that costs little on a CPU.

PyTorch draws one floating-point number per element there, one thread after the other, which for the adapters of a
decoder took as long as a tenth of all else. Here 64 random bits decide four elements, 16 bits each, so a rate is met to
within 1/65536. The bits come from PyTorch's global generator and nowhere else: its state is what a checkpoint restores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kept(like: Tensor, rate: float) -> Tensor:
    """1 with probability 1 - `rate`, else 0, independently; shape and type of `like`."""
    if like.device.type != "cpu":
        return torch.empty_like(like).bernoulli_(1 - rate)
    count = like.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(like.shape)
    # Straight into floating-point numbers: making Booleans, and multiplying by them, takes many times as long.
    return torch.ge(bits, min(round(rate * 65536), 65535) - 32768, out=torch.empty(like.shape, dtype=like.dtype))


class Dropout(nn.Module):
    """`torch.nn.Dropout` with cheaper random numbers (and others than it draws)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself outside training, else each element 0 or `1 / (1 - rate)` times as large; any shape."""
        if not self.training or self.rate == 0:
            return x
        return x * kept(x, self.rate).div_(1 - self.rate)
