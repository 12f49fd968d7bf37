"""Dropout that costs little on a CPU, alone and inside attention.

PyTorch draws one floating-point number per element there, one thread after the other, which took up to a fifth of the
training of a small network and a tenth of a decoder's with adapters. Here 64 random bits decide four elements, 16 bits
each, so a rate is met to within 1/65536. The bits come from PyTorch's global generator and nowhere else: its state is
what a checkpoint restores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dropout_mask(like: Tensor, rate: float) -> Tensor:
    """1 with probability 1 - `rate`, else 0, independently; shape and type of `like`."""
    mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if like.device.type != "cpu":
        return mask.bernoulli_(1 - rate)
    count = like.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(like.shape)
    # A comparison that writes numbers is several times faster than one that writes booleans.
    return torch.ge(bits, min(round(rate * 65536), 65535) - 32768, out=mask)


class Dropout(nn.Module):
    """`torch.nn.Dropout` with cheaper random numbers (and others than it draws)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself outside training, else each element 0 or `1 / (1 - rate)` times as large; any shape."""
        if not self.training or self.rate == 0:
            return x
        return x * dropout_mask(x, self.rate).div_(1 - self.rate)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
    """Causal attention [B, H, L, D] with dropout on its weights.

    PyTorch's own attention is one fused kernel only without dropout; with it, it is what is written out here.
    """
    if not dropout.training or dropout.rate == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout.rate if dropout.training else 0.0
        )
    future_LL = torch.full((q.shape[-2], q.shape[-2]), -torch.inf, dtype=q.dtype).triu_(1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + future_LL
    attended: Tensor = dropout(scores.softmax(-1)) @ v
    return attended
