"""GRU4Rec: a recurrent network over the session (Hidasi et al., ICLR 2016), over a full softmax.

    x_t      Dropout(E[i_t])
    h_t      GRU(x_t, h_{t-1})            one or more layers
    state_t  Linear(h_t)                  scores = state_t @ E.T

Choices: items and prediction layer share one table (the original's `constrained embedding`); the loss is the one of
all models here, where the original ranks against sampled items; a linear map stands between the hidden state and the
table, so that the GRU may be wider than d.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.dropout import Dropout
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.models.events import EventEmbedding
from llmd4rec.models.seeded import seeded
from llmd4rec.models.settings import ModelSettings


class GRU4Rec(ModelSettings):
    """Settings of GRU4Rec; :meth:`build` makes the network."""

    hidden: int = Field(128, ge=1, description="width of the recurrent state")
    layers: int = Field(1, ge=1, description="recurrent layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on embeddings and on recurrent states")

    def build(self, num_items: int, seed: int) -> GRU4RecNetwork:
        """A freshly initialised network for a catalogue of `num_items`."""
        with seeded(seed):
            return GRU4RecNetwork(num_items, self)


def _single_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """In autocast a GRU would run in fp16, whatever the precision asked for, and bf16 has no scaled gradients."""
    half = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if half else contextlib.nullcontext()


class GRU4RecNetwork(SequenceEncoder):
    """The network; a :class:`~llmd4rec.models.base.SequenceEncoder`."""

    def __init__(self, num_items: int, settings: GRU4Rec) -> None:
        super().__init__()
        self.max_length = settings.max_length
        self.items = ItemEmbedding(num_items, settings.dim, settings.id_dropout)
        widths = [settings.dim, *[settings.hidden] * settings.layers]
        self.layers = nn.ModuleList(nn.GRU(inputs, outputs, batch_first=True) for inputs, outputs in pairwise(widths))
        self.out = nn.Linear(settings.hidden, settings.dim)
        self.dropout = Dropout(settings.dropout)
        self.events = EventEmbedding(settings.event_features, settings.dim)
        self.reads = self.events.reads

    def states(self, batch: SequenceBatch) -> Tensor:
        """States [B, L, d]; see :class:`~llmd4rec.models.base.SequenceEncoder`."""
        x_BLH: Tensor = self.events(self.items(batch.items_BL), batch)
        for layer in self.layers:
            with _single_precision(x_BLH.device.type):
                x_BLH, _ = layer(self.dropout(x_BLH).float())
        state_BLD: Tensor = self.out(self.dropout(x_BLH))
        return state_BLD
