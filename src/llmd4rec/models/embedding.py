"""The item embedding of a sequential model, and the item features that help to train it.

    table = E                                              what is saved, exported and served: |I| × d numbers
    table = S + α N S,   S = E + tower(vectors) + A W      while training, with item features attached

- **vectors**: a small network, the tower, maps an item's text vector to d numbers. Items with similar texts move
  together. Each feature that gives vectors has a tower of its own.
- **attributes**: one row of W for each brand, category or tag, A says which an item has; **words**: one for each word
  of titles and for each pair of neighbouring ones.
- **neighbours**: N mixes into each row those of the items that co-occur with it in histories, or whose texts are
  alike (one step of LightGCN's propagation, He et al., SIGIR 2020).

Item features help rare items: these learn from others. While training, an item's ID embedding E[i] is dropped with
probability `id_dropout`, so that its features learn to replace it. An item that no training history has was only ever
a negative; if it has features, its ID embedding is left out in evaluation too. When training ends :meth:`merge` writes
the whole table into E and drops the features, so that a model trained with them is the same network, of the same size,
as one trained without.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec.errors import ConfigError
from llmd4rec.features.item_features import ItemFeatures, ItemInputs, reads_texts
from llmd4rec.matmul import linear
from llmd4rec.models.dropout import dropout_mask
from llmd4rec.models.seeded import seeded
from llmd4rec.models.sparse import SparseMatrix

#: α, the weight of an item's neighbours beside the item itself.
NEIGHBOUR_WEIGHT = 0.5
#: From so many items on a batch's items and their neighbours are looked up without making the whole table.
LARGE = 200_000


class ItemSettings(BaseModel):
    """Settings of the item embedding, which every sequential model has."""

    model_config = ConfigDict(extra="forbid")

    item_features: ItemInputs = Field(
        "id+text+words+attributes+neighbours",
        validate_default=True,
        description="item features that the item embedding is trained with, as far as the data have them: the items' "
        "texts, the words of their titles, brands and categories, and neighbours (items that co-occur in histories or "
        "whose texts are alike); or a list with features of your own, [id, text, package.module:Name]; they are merged "
        "into the embedding when training ends",
    )
    id_dropout: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="probability of dropping an item's ID embedding in training, where it has item features",
    )

    @property
    def reads_texts(self) -> bool:
        """Whether texts are among the item features, and have to be encoded."""
        return reads_texts(self.item_features)


class ItemEmbedding(nn.Module):
    """One row per item, shared by a model's input and its prediction layer.

    Args:
        num_items: I.
        dim: d.
        id_dropout: probability of dropping an item's ID embedding in training, where item features are attached.
        large: from so many items on a batch's items and their neighbours are looked up without making the whole table.
    """

    #: [I, 1], 0 for cold items, whose features replace their ID embedding, else 1.
    id_counts: Tensor | None

    def __init__(self, num_items: int, dim: int, id_dropout: float = 0.0, *, large: int = LARGE) -> None:
        super().__init__()
        self._large = large
        self.weight = nn.Parameter(torch.empty(num_items, dim))
        self.id_dropout = id_dropout
        self.towers = nn.ModuleList()
        self.of_attributes: nn.Parameter | None = None
        self.register_buffer("id_counts", None, persistent=False)
        self._attributes: SparseMatrix | None = None
        self._neighbours: SparseMatrix | None = None
        #: The table of the current step, until its gradient is computed: input and prediction layer both read it. In
        #: evaluation, that of the current weights.
        self._cached: Tensor | None = None
        self._cached_for: tuple[object, ...] = ()
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
        if not self._has_features():
            return F.embedding(items, self.weight)
        if self._neighbours is not None and self.num_items <= self._large:
            return F.embedding(items, self.table())  # a batch's items and their neighbours are most of the table
        # A batch reads the popular items many times over.
        distinct, place = torch.unique(items, return_inverse=True)
        return F.embedding(place, self.table(distinct))

    def table(self, items: Tensor | None = None) -> Tensor:
        """The whole table [I, d], or the rows of some items."""
        if not self._has_features():
            return self.weight if items is None else F.embedding(items, self.weight)
        if self._neighbours is None:
            return self._rows(items)
        if items is not None:
            return self._with_neighbours(items)
        if self._cached is not None and self._cached_for == self._cache_key():
            return self._cached
        rows_ID = self._rows(None)
        table_ID = rows_ID + NEIGHBOUR_WEIGHT * self._neighbours.matmul(rows_ID)
        if self.training and table_ID.requires_grad:
            self._cached, self._cached_for = table_ID, self._cache_key()
            table_ID.register_hook(self._drop_cached)
        elif not self.training and not torch.is_grad_enabled():
            self._cached, self._cached_for = table_ID, self._cache_key()
        return table_ID

    def _cache_key(self) -> tuple[object, ...]:
        """Differs where a cached table is not that of the current weights and mode."""
        of = [(id(parameter), parameter.data_ptr(), parameter._version) for parameter in self.parameters()]
        return (*of, torch.is_grad_enabled(), torch.is_inference_mode_enabled())

    def _rows(self, items: Tensor | None) -> Tensor:
        """S, or some of its rows: ID embeddings, vectors and attributes added up."""
        rows = self.weight if items is None else F.embedding(items, self.weight)
        if self.training and self.id_dropout:
            # Not scaled up where it is kept, as dropout does: an item is known or it is new.
            rows = rows * dropout_mask(rows.new_empty(len(rows), 1), self.id_dropout)
        elif not self.training and self.id_counts is not None:
            rows = rows * (self.id_counts if items is None else self.id_counts[items])
        for tower in self.towers:
            rows = rows + tower(items)
        if self._attributes is not None and self.of_attributes is not None:
            held = self._attributes if items is None else self._attributes.rows(items)
            rows = rows + held.matmul(self.of_attributes)
        return rows

    def _with_neighbours(self, items: Tensor) -> Tensor:
        """The rows of some items with neighbours mixed in, without making the whole table."""
        assert self._neighbours is not None
        near = self._neighbours.rows(items)
        needed, place = torch.unique(torch.cat([items, near.columns]), return_inverse=True)
        rows_ND = self._rows(needed)
        mixed = near.among(place[len(items) :], len(needed)).matmul(rows_ND)
        return F.embedding(place[: len(items)], rows_ND) + NEIGHBOUR_WEIGHT * mixed

    def _drop_cached(self, gradient: Tensor) -> None:
        self._cached = None

    def _has_features(self) -> bool:
        return len(self.towers) > 0 or self._attributes is not None or self._neighbours is not None

    def train(self, mode: bool = True) -> ItemEmbedding:
        """As of any module; a table cached for another mode is dropped."""
        self._cached = None
        return super().train(mode)

    # ---- item features, while training --------------------------------------------------------------------------
    def attach(self, features: ItemFeatures, seed: int) -> None:
        """Adds item features to the table. Vectors and attributes start at zero; neighbours are mixed in at once.

        Args:
            features: of the catalogue that the table is of.
            seed: of the towers' initial values.

        Raises:
            ConfigError: a feature is of another number of items.
        """
        given: tuple[tuple[str, Any, int], ...] = (
            *(("vectors", vectors, 2) for vectors in features.vectors),
            ("attributes", features.attributes, 2),
            ("neighbours", features.neighbours, 2),
            ("cold items", features.cold, 1),
        )
        for name, feature, dimensions in given:
            if feature is not None and (len(feature.shape), feature.shape[0]) != (dimensions, self.num_items):
                raise ConfigError(
                    f"an item table of {self.num_items} rows cannot use {name} of shape {tuple(feature.shape)}",
                    "Make them for the same catalogue.",
                )
        device = self.weight.device
        with seeded(seed):
            self.towers.extend(Tower(vectors, self.dim).to(device) for vectors in features.vectors)
        if features.attributes is not None:
            self._attributes = SparseMatrix.of(features.attributes, device)
            self.of_attributes = nn.Parameter(torch.zeros(features.attributes.shape[1], self.dim, device=device))
        if features.neighbours is not None:
            self._neighbours = SparseMatrix.of(features.neighbours, device)
        if features.cold is not None:
            self.id_counts = (~(features.cold & features.present())).float()[:, None].to(device)

    @torch.no_grad()
    def merge(self) -> None:
        """Writes the whole table into E and removes the item features."""
        was_training = self.training
        self.eval()
        self.weight.copy_(self.table())
        self.towers, self.of_attributes = nn.ModuleList(), None
        self._attributes, self._neighbours, self.id_counts = None, None, None
        self.train(was_training)


def item_embedding_of(ranker: nn.Module) -> ItemEmbedding:
    """The item embedding of a sequential model.

    Raises:
        ConfigError: it has none that item features can be attached to.
    """
    table = getattr(ranker, "items", None)
    if not isinstance(table, ItemEmbedding):
        raise ConfigError(
            f"{type(ranker).__name__} has no ItemEmbedding named `items`, so it can neither use item features nor be "
            "exported",
            "Give it one; or set item_features to id, and answer from the run.",
        )
    return table


class Tower(nn.Module):
    """Linear, GELU, Linear from the items' vectors to d numbers, 0 at the start."""

    vectors_IT: Tensor

    def __init__(self, vectors_IT: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors_IT", vectors_IT, persistent=False)
        size = vectors_IT.shape[1]
        hidden = min(size, 2 * dim)
        self.first, self.last = nn.Linear(size, hidden), nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(self.first.weight, std=size**-0.5)
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, items: Tensor | None = None) -> Tensor:
        """Of some items, or of all: [..., d]."""
        vectors = self.vectors_IT if items is None else self.vectors_IT[items]
        return linear(F.gelu(linear(vectors, self.first.weight, self.first.bias)), self.last.weight, None)
