"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018), over a full softmax.

    history  i_1 ... i_t                       item indices, oldest first
    x        E[i] + P[position]                item table E (also the prediction layer), learned positions P
    blocks   x = Norm(x + Attention(x));  x = Norm(x + FFN(x))      causal, dropout on every branch
    state_t  x_t                               scores = state_t @ E.T

Choices, where implementations differ: items and prediction layer share one table, as in the paper; positions are
counted from the start of the window, so the state at t does not depend on how long the history becomes later and one
pass trains every position; normal initialisation with deviation 0.02 in place of scaling by √d.
"""

from __future__ import annotations

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


class SASRec(ModelSettings):
    """Settings of SASRec; :meth:`build` makes the network."""

    layers: int = Field(2, ge=0, description="attention blocks")
    heads: int = Field(2, ge=1, description="attention heads; must divide dim")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on embeddings, attention output and feed-forward")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> SASRec:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        return self

    def build(self, num_items: int, seed: int) -> SASRecNetwork:
        """A freshly initialised network for a catalogue of `num_items`."""
        with seeded(seed):
            return SASRecNetwork(num_items, self)


class SASRecNetwork(SequenceEncoder):
    """The network; a :class:`~llmd4rec.models.base.SequenceEncoder`."""

    def __init__(self, num_items: int, settings: SASRec) -> None:
        super().__init__()
        self.max_length = settings.max_length
        self.items = ItemEmbedding(num_items, settings.dim, settings.id_dropout)
        self.positions = nn.Embedding(settings.max_length, settings.dim)
        self.norm_in = nn.LayerNorm(settings.dim)
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
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
            x_BLD = block(x_BLD)
        return x_BLD


class Block(nn.Module):
    """One block: causal self-attention, then a feed-forward network, each behind a residual connection."""

    def __init__(self, settings: SASRec) -> None:
        super().__init__()
        self.heads = settings.heads
        self.qkv = nn.Linear(settings.dim, 3 * settings.dim)
        self.out = nn.Linear(settings.dim, settings.dim)
        self.norm1 = nn.LayerNorm(settings.dim)
        self.norm2 = nn.LayerNorm(settings.dim)
        self.up = nn.Linear(settings.dim, 4 * settings.dim)
        self.down = nn.Linear(4 * settings.dim, settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]."""
        batch, length, dim = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attended = causal_attention(q, k, v, self.dropout)
        x_BLD = self.norm1(x_BLD + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, length, dim))))
        y_BLD: Tensor = self.norm2(x_BLD + self.dropout(self.down(F.gelu(self.up(x_BLD)))))
        return y_BLD
