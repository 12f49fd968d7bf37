"""BSARec: self-attention beside a frequency filter (Shin et al., AAAI 2024), over a full softmax.

    x        E[i] + P[position]
    blocks   low = the c // 2 + 1 lowest frequencies of x;   high = x - low
             d   = Norm(x + low + β² * high)                 what attention smooths away is kept, as β decides
             a   = Norm(x + Attention(x))
             h   = α d + (1 - α) a;   x = Norm(h + FFN(h))
    state_t  x_t                                             scores = state_t @ E.T

Where this differs from the authors' code: theirs filters a whole window and trains its last position only, because an
item's filtered state there depends on items behind it. Here the filter looks back only: the state at t is filtered as
the last one of the window that ends at t, with nothing before its start. That is a product with a constant matrix
whose entries depend on the distance alone, so one pass trains every position. In the first block this is exactly
their filter at the last position; in later blocks the states before it are those of their own windows.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.dropout import Dropout, causal_attention
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.models.events import EventEmbedding
from llmd4rec.models.seeded import seeded
from llmd4rec.models.settings import ModelSettings


class BSARec(ModelSettings):
    """Settings of BSARec; :meth:`build` makes the network."""

    layers: int = Field(2, ge=0, description="blocks")
    heads: int = Field(1, ge=1, description="attention heads; must divide dim")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on embeddings, attention weights and branches")
    alpha: float = Field(0.7, ge=0, le=1, description="α, the share of the frequency filter beside attention")
    cutoff: int = Field(5, ge=1, description="c: the c // 2 + 1 lowest frequencies pass the filter unchanged")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> BSARec:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        return self

    def build(self, num_items: int, seed: int) -> BSARecNetwork:
        """A freshly initialised network for a catalogue of `num_items`."""
        with seeded(seed):
            return BSARecNetwork(num_items, self)


def low_pass(length: int, kept: int) -> Tensor:
    """What the `kept` lowest frequencies of a window of `length` items give at its last item, as a matrix [L, L].

    Entry (t, s) is the share of item s in the filtered item t, for windows that end at t: a real Fourier transform cut
    off and turned back has the kernel (1 + 2 Σ_k cos(2π k (t - s) / L)) / L, k from 1 to kept - 1; a frequency of half
    the length counts once. Nothing for s > t.
    """
    lag = torch.arange(length, dtype=torch.float64)
    kernel_L = torch.zeros(length, dtype=torch.float64)
    for k in range(min(kept, length // 2 + 1)):
        times = 1 if k == 0 or 2 * k == length else 2
        kernel_L += times * torch.cos(2 * math.pi * k * lag / length)
    distance_LL = lag[:, None] - lag[None, :]
    matrix_LL = kernel_L[distance_LL.abs().long()] / length
    return torch.where(distance_LL >= 0, matrix_LL, 0.0).float()


class BSARecNetwork(SequenceEncoder):
    """The network; a :class:`~llmd4rec.models.base.SequenceEncoder`."""

    low_LL: Tensor

    def __init__(self, num_items: int, settings: BSARec) -> None:
        super().__init__()
        self.max_length = settings.max_length
        self.items = ItemEmbedding(num_items, settings.dim, settings.id_dropout)
        self.positions = nn.Embedding(settings.max_length, settings.dim)
        self.norm_in = nn.LayerNorm(settings.dim)
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.register_buffer("low_LL", low_pass(settings.max_length, settings.cutoff // 2 + 1), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        self.events = EventEmbedding(settings.event_features, settings.dim)
        self.reads = self.events.reads

    def states(self, batch: SequenceBatch) -> Tensor:
        """States [B, L, d]; see :class:`~llmd4rec.models.base.SequenceEncoder`."""
        length = batch.items_BL.shape[1]
        x_BLD: Tensor = self.events(self.items(batch.items_BL), batch) + self.positions.weight[:length]
        x_BLD = self.dropout(self.norm_in(x_BLD))
        for block in self.blocks:
            x_BLD = block(x_BLD, self.low_LL[:length, :length])
        return x_BLD


class Block(nn.Module):
    """One block: a frequency filter and causal self-attention side by side, then a feed-forward network."""

    def __init__(self, settings: BSARec) -> None:
        super().__init__()
        self.heads, self.alpha = settings.heads, settings.alpha
        self.root_beta = nn.Parameter(torch.randn(settings.dim))
        self.norm_filter = nn.LayerNorm(settings.dim)
        self.qkv = nn.Linear(settings.dim, 3 * settings.dim)
        self.out = nn.Linear(settings.dim, settings.dim)
        self.norm_attention = nn.LayerNorm(settings.dim)
        self.up = nn.Linear(settings.dim, 4 * settings.dim)
        self.down = nn.Linear(4 * settings.dim, settings.dim)
        self.norm_out = nn.LayerNorm(settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(self, x_BLD: Tensor, low_LL: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]."""
        batch, length, dim = x_BLD.shape
        low_BLD = low_LL @ x_BLD
        filtered_BLD = low_BLD + self.root_beta**2 * (x_BLD - low_BLD)
        filtered_BLD = self.norm_filter(x_BLD + self.dropout(filtered_BLD))
        q, k, v = self.qkv(x_BLD).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attended = causal_attention(q, k, v, self.dropout)
        attended_BLD = self.dropout(self.out(attended.transpose(1, 2).reshape(batch, length, dim)))
        h_BLD = self.alpha * filtered_BLD + (1 - self.alpha) * self.norm_attention(x_BLD + attended_BLD)
        y_BLD: Tensor = self.norm_out(h_BLD + self.dropout(self.down(F.gelu(self.up(h_BLD)))))
        return y_BLD
