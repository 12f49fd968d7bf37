"""LiGR: SASRec's skeleton with gated pre-norm blocks, as in eSASRec (Tikhonovich et al., RecSys 2025).

    x        E[i] + P[position]
    blocks   x = x + σ(W_a x) * Attention(Norm(x));  x = x + σ(W_f x) * SwiGLU(Norm(x))
    state_t  Norm(x_t)                                scores = state_t @ E.T

The gates (from LinkedIn's LiGR, 2025) decide for every position and coordinate how much of a branch is let in; the
stream that they are added to is never normalised, only what the branches read and the final state are. Choices shared
with `sasrec.py`: one table for input and prediction layer, positions counted from the start of the window, dropout on
embeddings, attention weights and branches.
"""

from __future__ import annotations

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


class LiGR(ModelSettings):
    """Settings of LiGR; :meth:`build` makes the network."""

    layers: int = Field(2, ge=0, description="gated blocks")
    heads: int = Field(2, ge=1, description="attention heads; must divide dim")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on embeddings, attention weights and branches")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> LiGR:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        return self

    def build(self, num_items: int, seed: int) -> LiGRNetwork:
        """A freshly initialised network for a catalogue of `num_items`."""
        with seeded(seed):
            return LiGRNetwork(num_items, self)


class LiGRNetwork(SequenceEncoder):
    """The network; a :class:`~llmd4rec.models.base.SequenceEncoder`."""

    def __init__(self, num_items: int, settings: LiGR) -> None:
        super().__init__()
        self.max_length = settings.max_length
        self.items = ItemEmbedding(num_items, settings.dim, settings.id_dropout)
        self.positions = nn.Embedding(settings.max_length, settings.dim)
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm_out = nn.LayerNorm(settings.dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.events = EventEmbedding(settings.event_features, settings.dim)
        self.reads = self.events.reads

    def states(self, batch: SequenceBatch) -> Tensor:
        """States [B, L, d]; see :class:`~llmd4rec.models.base.SequenceEncoder`."""
        x_BLD: Tensor = self.events(self.items(batch.items_BL), batch)
        x_BLD = self.dropout(x_BLD + self.positions.weight[: x_BLD.shape[1]])
        for block in self.blocks:
            x_BLD = block(x_BLD)
        state_BLD: Tensor = self.norm_out(x_BLD)
        return state_BLD


class Block(nn.Module):
    """One block: gated causal self-attention, then a gated SwiGLU."""

    def __init__(self, settings: LiGR) -> None:
        super().__init__()
        dim = settings.dim
        self.heads = settings.heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.gate1, self.gate2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 8 * dim), nn.Linear(4 * dim, dim)
        self.dropout = Dropout(settings.dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]."""
        batch, length, dim = x_BLD.shape
        qkv = self.qkv(self.norm1(x_BLD)).view(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = causal_attention(q, k, v, self.dropout).transpose(1, 2).reshape(batch, length, dim)
        x_BLD = x_BLD + torch.sigmoid(self.gate1(x_BLD)) * self.dropout(self.out(attended))
        up, gate = self.up(self.norm2(x_BLD)).chunk(2, -1)
        y_BLD: Tensor = x_BLD + torch.sigmoid(self.gate2(x_BLD)) * self.dropout(self.down(F.silu(gate) * up))
        return y_BLD
