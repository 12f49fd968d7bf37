"""The item table of a conventional model, and what is folded into it while it is trained.

    table = E                                              what is saved, exported and served: |I| × d numbers
    table = S + α N S,   S = E + tower(texts) + A W        while training, where its sides are to help

- **texts**: a small map from an item's text vector to d numbers. Items with similar texts move together.
- **attributes**: one row of W for each brand, category or tag, A saying which an item has; **words**: one for each word
  of titles and for each pair of neighbouring ones.
- **neighbours**: N mixes into each row those of the items it stands together with in histories, or whose texts are
  alike (one step of LightGCN's propagation, He et al., SIGIR 2020).

They are for what a rarely bought item needs: to learn from others. While training, an item's own row E[i] is left out
now and then (`id_dropout`), so that the sides learn to stand in for it. Where no training history has an item, its own
row has only ever been told what does not come next; so, if it has sides, they stand in for it whenever it counts. When
training ends the whole is written into E and the sides are gone, so that a model trained with them is the same network,
byte for byte of the same size, as one trained without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError
from llmd4rec.features.attributes import item_attributes, item_words
from llmd4rec.features.cooccurrence import co_occurrence, normalised, top_k_per_row
from llmd4rec.matmul import linear, product
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.dropout import dropout_mask

#: What may help to train a conventional model's item table beside the items' identifiers.
ItemPart = Literal["text", "words", "attributes", "neighbours"]


def _in_order(inputs: str) -> str:
    """`id`, then the parts in one order, so that the same inputs have the same name."""
    known = get_args(ItemPart)
    first, *parts = inputs.split("+")
    if first != "id" or not set(parts) <= set(known):
        raise ValueError(f"{inputs!r} must be id, then any of +{', +'.join(known)}, as in id+text")
    return "+".join(["id", *(part for part in known if part in parts)])


#: What a conventional model's item table is trained from: `id`, `id+text`, `id+words+neighbours`, ...
ItemInputs = Annotated[str, AfterValidator(_in_order)]
#: α, the weight of an item's neighbours beside the item itself.
NEIGHBOUR_WEIGHT = 0.5
#: Neighbours of an item at most, of both kinds together, and nearest texts looked for.
NEIGHBOURS, TEXT_NEIGHBOURS = 20, 10
#: Finding an item's nearest texts costs as many products as there are items; in larger catalogues none are looked for.
MOST_FOR_NEAREST_TEXTS = 200_000
_COSINES_AT_ONCE = 1 << 25
#: From so many items on a batch's items and their neighbours are looked up without making the whole table.
_LARGE = 200_000


class ItemSettings(BaseModel):
    """Settings that every conventional model has: what its item table is trained from."""

    model_config = ConfigDict(extra="forbid")

    item_features: ItemInputs = Field(
        "id+text+words+attributes+neighbours",
        description="what helps to train the item table and is folded into it, as far as the data have it: the items' "
        "texts, the words of their titles, the brands and categories they share, the items they are bought with or "
        "whose texts are alike",
    )
    id_dropout: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="how often an item's own row is left out in training, where items are more than identifiers",
    )


@dataclass(frozen=True)
class ItemFeatures:
    """What helps to train an item table.

    Attributes:
        texts: [I, T], one vector per item, zero where there is no text.
        attributes: [I, A], which attributes and words an item has.
        neighbours: [I, I], how much of another item's row an item listens to.
        cold: [I], which items no training history has.
    """

    texts: Tensor | None = None
    attributes: sp.csr_matrix | None = None
    neighbours: sp.csr_matrix | None = None
    cold: Tensor | None = None

    def __bool__(self) -> bool:
        return any(side is not None for side in (self.texts, self.attributes, self.neighbours))


def item_features(inputs: ItemInputs, dataset: Dataset, text_vectors: Tensor | None) -> ItemFeatures:
    """The sides that `inputs` ask for, as far as the data set has them.

    Args:
        inputs: the setting `items` of a conventional model.
        dataset: its training part says who is together, its catalogue who shares what.
        text_vectors: [I, T] of its catalogue; None where no item has a text.
    """
    asked = inputs.split("+")
    texts = text_vectors if "text" in asked else None
    neighbours = None
    if "neighbours" in asked:
        neighbours = co_occurrence(dataset)
        if texts is not None and dataset.num_items <= MOST_FOR_NEAREST_TEXTS:
            neighbours = 0.5 * (neighbours + nearest_texts(texts, TEXT_NEIGHBOURS))
        neighbours = top_k_per_row(neighbours, NEIGHBOURS)
    attributes = item_attributes(dataset) if "attributes" in asked else None
    words = item_words(dataset) if "words" in asked else None
    named = [matrix for matrix in (attributes, words) if matrix is not None]
    cold = torch.from_numpy(dataset.train_counts == 0)
    return ItemFeatures(texts, sp.csr_matrix(sp.hstack(named)) if named else None, neighbours, cold)


def nearest_texts(texts_IT: Tensor, count: int) -> sp.csr_matrix:
    """Who has one of whom among its `count` nearest by cosine, made symmetric and normalised; [I, I] float32.

    Items without a text have no neighbours and are none.
    """
    present = torch.nonzero(texts_IT.abs().sum(1) > 0)[:, 0]
    unit_PT = F.normalize(texts_IT[present].float(), dim=1)
    count = min(count, len(present) - 1)
    size = (len(texts_IT), len(texts_IT))
    if count < 1:
        return sp.csr_matrix(size, dtype=np.float32)
    nearest = []
    at_once = max(1, _COSINES_AT_ONCE // len(present))
    for start in range(0, len(present), at_once):
        cosine_pP = product(unit_PT[start : start + at_once], unit_PT)
        cosine_pP.diagonal(start).fill_(-torch.inf)
        nearest.append(cosine_pP.topk(count, dim=1).indices)
    column = present[torch.cat(nearest)].numpy().ravel()
    row = np.repeat(present.numpy(), count)
    near = sp.csr_matrix((np.ones(len(row)), (row, column)), size)
    return normalised(sp.csr_matrix(near + near.T))


class ItemEmbedding(nn.Module):
    """One row per item, shared by a model's input and its prediction layer.

    Args:
        num_items: I.
        dim: d.
        id_dropout: how often an item's own row is left out in training, where there are sides to stand in for it.
    """

    text_vectors: Tensor | None
    #: [I, 1], 0 for items whose sides stand in for their own rows, else 1.
    own_counts: Tensor | None

    def __init__(self, num_items: int, dim: int, id_dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_items, dim))
        self.id_dropout = id_dropout
        self.tower: TextTower | None = None
        self.of_attributes: nn.Parameter | None = None
        self.register_buffer("text_vectors", None, persistent=False)
        self.register_buffer("own_counts", None, persistent=False)
        self._attributes: _Sparse | None = None
        self._neighbours: _Sparse | None = None
        #: The table of the step that is under way, until its gradient has come; both ends of a model read it. In
        #: evaluation, that of the present weights.
        self._made: Tensor | None = None
        self._made_of: tuple[object, ...] = ()
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
        if not self._has_sides():
            return F.embedding(items, self.weight)
        if self._neighbours is not None and self.num_items <= _LARGE:
            return F.embedding(items, self.table())  # a batch's items and their neighbours are most of a table
        # A batch reads the popular items many times over.
        distinct, place = torch.unique(items, return_inverse=True)
        return F.embedding(place, self.table(distinct))

    def table(self, items: Tensor | None = None) -> Tensor:
        """The whole table [I, d], or the rows of some items."""
        if not self._has_sides():
            return self.weight if items is None else F.embedding(items, self.weight)
        if self._neighbours is None:
            return self._own(items)
        if items is not None:
            return self._with_neighbours(items)
        if self._made is not None and self._made_of == self._weights():
            return self._made
        own_ID = self._own(None)
        table_ID = own_ID + NEIGHBOUR_WEIGHT * self._neighbours.times(own_ID)
        if self.training and table_ID.requires_grad:
            self._made, self._made_of = table_ID, self._weights()
            table_ID.register_hook(self._forget)  # type: ignore[no-untyped-call]
        elif not self.training and not torch.is_grad_enabled():
            self._made, self._made_of = table_ID, self._weights()
        return table_ID

    def _weights(self) -> tuple[object, ...]:
        """What tells whether a table is still that of these weights, read in the same way."""
        of = [(id(parameter), parameter.data_ptr(), parameter._version) for parameter in self.parameters()]
        return (*of, torch.is_grad_enabled(), torch.is_inference_mode_enabled())

    def _own(self, items: Tensor | None) -> Tensor:
        """S, or some of its rows: the items' own numbers, those of their texts and of their attributes."""
        rows = self.weight if items is None else F.embedding(items, self.weight)
        if self.training and self.id_dropout:
            # Not made larger where it stays, as dropout does: an item is known or it is new.
            rows = rows * dropout_mask(rows.new_empty(len(rows), 1), self.id_dropout)
        elif not self.training and self.own_counts is not None:
            rows = rows * (self.own_counts if items is None else self.own_counts[items])
        if self.tower is not None and self.text_vectors is not None:
            rows = rows + self.tower(self.text_vectors if items is None else self.text_vectors[items])
        if self._attributes is not None and self.of_attributes is not None:
            held = self._attributes if items is None else self._attributes.rows(items)
            rows = rows + held.times(self.of_attributes)
        return rows

    def _with_neighbours(self, items: Tensor) -> Tensor:
        """The finished rows of some items, from their own and their neighbours' rows only."""
        assert self._neighbours is not None
        near = self._neighbours.rows(items)
        needed, place = torch.unique(torch.cat([items, near.columns]), return_inverse=True)
        own_ND = self._own(needed)
        mixed = near.among(place[len(items) :], len(needed)).times(own_ND)
        return F.embedding(place[: len(items)], own_ND) + NEIGHBOUR_WEIGHT * mixed

    def _forget(self, gradient: Tensor) -> None:
        self._made = None

    def _has_sides(self) -> bool:
        return self.tower is not None or self._attributes is not None or self._neighbours is not None

    def train(self, mode: bool = True) -> ItemEmbedding:
        """As of any module; a table made for another mode is dropped."""
        self._made = None
        return super().train(mode)

    # ---- sides, while training ----------------------------------------------------------------------------------
    def attach(self, sides: ItemFeatures, seed: int) -> None:
        """Puts sides beside the table. Texts and attributes start at zero; neighbours are mixed in at once.

        Raises:
            ConfigError: a side is not of as many items as the table.
        """
        given: tuple[tuple[str, Any, int], ...] = (
            ("text vectors", sides.texts, 2),
            ("attributes", sides.attributes, 2),
            ("neighbours", sides.neighbours, 2),
            ("cold items", sides.cold, 1),
        )
        for name, side, dimensions in given:
            if side is not None and (len(side.shape), side.shape[0]) != (dimensions, self.num_items):
                raise ConfigError(
                    f"an item table of {self.num_items} rows cannot read {name} of shape {tuple(side.shape)}",
                    "Make them for the same catalogue.",
                )
        device = self.weight.device
        if sides.texts is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                tower = TextTower(sides.texts, self.dim)
            self.text_vectors, self.tower = sides.texts.to(device), tower.to(device)
        if sides.attributes is not None:
            self._attributes = _Sparse.of(sides.attributes, device)
            self.of_attributes = nn.Parameter(torch.zeros(sides.attributes.shape[1], self.dim, device=device))
        if sides.neighbours is not None:
            self._neighbours = _Sparse.of(sides.neighbours, device)
        if sides.cold is not None:
            self.own_counts = (~(sides.cold & _helped(sides))).float()[:, None].to(device)

    @torch.no_grad()
    def merge(self) -> None:
        """Writes the table with its sides into E and takes the sides away."""
        was_training = self.training
        self.eval()
        self.weight.copy_(self.table())
        self.tower, self.text_vectors, self.of_attributes = None, None, None
        self._attributes, self._neighbours, self.own_counts = None, None, None
        self.train(was_training)


def _helped(sides: ItemFeatures) -> Tensor:
    """Which items have any side, [I]."""
    matrices = [side for side in (sides.attributes, sides.neighbours) if side is not None]
    has = [torch.from_numpy(np.diff(matrix.indptr) > 0) for matrix in matrices]
    if sides.texts is not None:
        has.append((sides.texts != 0).any(1).cpu())
    return torch.stack(has).any(0)


def item_embedding_of(ranker: SequenceEncoder) -> ItemEmbedding:
    """The item table of a conventional model.

    Raises:
        ConfigError: it has none that sides can be folded into.
    """
    table = getattr(ranker, "items", None)
    if not isinstance(table, ItemEmbedding):
        raise ConfigError(f"{type(ranker).__name__} cannot read item texts", "Set crm.item_features to id.")
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


@dataclass(frozen=True)
class _Sparse:
    """A constant sparse matrix, [R, C], by rows, and how to multiply by it and by its transpose.

    Attributes:
        starts: [R + 1], where each row's entries begin.
        columns, values: [n] of all entries, row by row.
        width: C.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    width: int

    @classmethod
    def of(cls, matrix: sp.csr_matrix, device: torch.device) -> _Sparse:
        """The same matrix on a device."""
        matrix = sp.csr_matrix(matrix)
        matrix.sort_indices()
        arrays = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float32))
        starts, columns, values = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(starts, columns, values, matrix.shape[1])

    def rows(self, rows: Tensor) -> _Sparse:
        """Some of the rows, in the order asked for."""
        counts = (self.starts[1:] - self.starts[:-1])[rows]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        entry = torch.arange(int(starts[-1]), device=rows.device)
        entry += torch.repeat_interleave(self.starts[rows] - starts[:-1], counts)
        return _Sparse(starts, self.columns[entry], self.values[entry], self.width)

    def among(self, columns: Tensor, width: int) -> _Sparse:
        """The same entries, whose columns are called otherwise."""
        return _Sparse(self.starts, columns, self.values, width)

    def times(self, dense_CD: Tensor) -> Tensor:
        """The product with a dense matrix, [R, D]; differentiable in it."""
        result: Tensor = _SparseProduct.apply(dense_CD, self)  # type: ignore[no-untyped-call]
        return result

    def transposed(self) -> _Sparse:
        """The transpose, by rows; entries of a row in the order of their columns."""
        if "transpose" not in self.__dict__:
            row = torch.repeat_interleave(
                torch.arange(len(self.starts) - 1, device=self.columns.device), self.starts[1:] - self.starts[:-1]
            )
            order = torch.argsort(self.columns, stable=True)
            counts = torch.bincount(self.columns, minlength=self.width)
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            turned = _Sparse(starts, row[order], self.values[order], len(self.starts) - 1)
            object.__setattr__(self, "transpose", turned)
        found: _Sparse = self.__dict__["transpose"]
        return found

    def multiplied(self, dense_CD: Tensor) -> Tensor:
        """The product, outside the graph."""
        return F.embedding_bag(self.columns, dense_CD, self.starts[:-1], mode="sum", per_sample_weights=self.values)


class _SparseProduct(torch.autograd.Function):
    """PyTorch's own gradients of sparse products sort the entries anew in every step."""

    @staticmethod
    def forward(ctx: Any, dense_CD: Tensor, matrix: _Sparse) -> Tensor:
        ctx.matrix = matrix
        return matrix.multiplied(dense_CD.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.transposed().multiplied(gradients[0].contiguous()), None
