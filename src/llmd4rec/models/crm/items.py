"""The item table of a conventional model, and how the items' texts can be folded into it while it is trained.

    table = E                                    what is saved, exported and served: |I| × d numbers
    table = E + tower(text vectors)              while training, where texts are to help

The tower is a map from an item's text vector to d numbers. Items with similar texts then move together, which is what
a rarely bought item needs. When training ends its output is added to E and the tower is gone, so that a model trained
with texts is the same network, byte for byte of the same size, as one trained without.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec.errors import ConfigError
from llmd4rec.models.ranker import Ranker
from llmd4rec.products import linear

#: What a conventional model's item table is trained from.
ItemInputs = Literal["id", "id+text"]


class ItemTable(nn.Module):
    """One row per item, shared by a model's input and its prediction layer.

    Args:
        num_items: I.
        dim: d.
    """

    text_vectors: Tensor | None

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_items, dim))
        self.tower: TextTower | None = None
        self.register_buffer("text_vectors", None, persistent=False)
        self.reset_parameters()

    @property
    def num_items(self) -> int:
        """I."""
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        """d."""
        return self.weight.shape[1]

    def reset_parameters(self) -> None:
        """Normal with deviation 0.02."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """Rows of items of any shape [...]: [..., d]."""
        rows = F.embedding(items, self.weight)
        if self.tower is None or self.text_vectors is None:
            return rows
        # A batch reads the popular items many times over.
        distinct, place = torch.unique(items, return_inverse=True)
        return rows + F.embedding(place, self.tower(self.text_vectors[distinct]))

    def table(self, items: Tensor | None = None) -> Tensor:
        """The whole table [I, d], or the rows of some items."""
        rows = self.weight if items is None else F.embedding(items, self.weight)
        if self.tower is None or self.text_vectors is None:
            return rows
        texts = self.text_vectors if items is None else self.text_vectors[items]
        folded: Tensor = rows + self.tower(texts)
        return folded

    # ---- texts, while training ----------------------------------------------------------------------------------
    def read_texts(self, text_vectors: Tensor, seed: int) -> None:
        """Puts a tower over text vectors [I, T] beside the table; its output starts at zero, so nothing moves yet.

        Raises:
            ConfigError: there is not one vector for each item.
        """
        if text_vectors.ndim != 2 or len(text_vectors) != self.num_items:
            raise ConfigError(
                f"an item table of {self.num_items} rows cannot read text vectors of shape {tuple(text_vectors.shape)}",
                "Encode the texts of the same catalogue.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = TextTower(text_vectors, self.dim)
        self.text_vectors = text_vectors.to(self.weight.device)
        self.tower = tower.to(self.weight.device)

    @torch.no_grad()
    def fold_texts(self) -> None:
        """Adds what the tower gives to the table and takes the tower away."""
        self.weight.copy_(self.table())
        self.tower, self.text_vectors = None, None


def item_table_of(ranker: Ranker) -> ItemTable:
    """The item table of a conventional model.

    Raises:
        ConfigError: it has none that can read texts.
    """
    table = getattr(ranker, "items", None)
    if not isinstance(table, ItemTable):
        raise ConfigError(f"{type(ranker).__name__} cannot read item texts", "Set crm.items to id.")
    return table


class TextTower(nn.Module):
    """Linear, GELU, Linear from text vectors to d numbers, which are 0 at the start."""

    def __init__(self, text_vectors: Tensor, dim: int) -> None:
        super().__init__()
        size = text_vectors.shape[1]
        hidden = min(size, 2 * dim)
        self.first, self.last = nn.Linear(size, hidden), nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(self.first.weight, std=size**-0.5)
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, texts: Tensor) -> Tensor:
        """[..., T] → [..., d]."""
        return linear(F.gelu(linear(texts, self.first.weight, self.first.bias)), self.last.weight, None)
