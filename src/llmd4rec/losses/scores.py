"""A teacher's scores, asked for a block of positions at a time, so that nothing of positions × items is held.

What walks over the blocks does not know what scores are made of. :class:`Factors` are products of states and an item
table, in floats or 8-bit numbers; sparse rows, or a sum of several scorers, are other implementations.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from llmd4rec.losses.int8 import Int8Rows
from llmd4rec.matmul import product

#: Elements of one block of scores, 16 MB: enough rows for a matrix product to run at full speed, and few enough bytes
#: to mostly stay in a CPU's cache between the passes over a block.
BLOCK_ELEMENTS = 1 << 22
#: What is added to a score to make its exponential 0; the sum can still be multiplied by 0.
NO_CHANCE = -1e4


class BlockScores(Protocol):
    """The scores of N positions, for the items of a catalogue or for candidates of it."""

    @property
    def num_items(self) -> int:
        """I, how many items each position has scores of."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def in_units_of(self, nats: float) -> BlockScores:
        """The same scores in other units, such as log 2."""
        ...

    def largest(self) -> float:
        """No score is larger than this, up or down; on a GPU nobody asks, which would have to wait for it."""
        ...

    def of(self, block: slice, out_nI: Tensor) -> Tensor:
        """The scores of a block of positions, written into `out_nI`."""
        ...


@dataclass(frozen=True)
class Factors:
    """Scores that are `states_NK @ table_IK.T`; implements :class:`BlockScores`.

    Attributes:
        states_NK: of any float type.
        table_IK: the item table, or its rows of some candidates. Where it is rounded to 8 bits, the states are too.
        unit: in nats.
    """

    states_NK: Tensor
    table_IK: Tensor | Int8Rows
    unit: float = 1.0

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.table_IK)

    @property
    def device(self) -> torch.device:
        """Of the states."""
        return self.states_NK.device

    def __len__(self) -> int:
        return len(self.states_NK)

    def in_units_of(self, nats: float) -> Factors:
        """See :class:`BlockScores`."""
        return replace(self, unit=nats)

    def largest(self) -> float:
        """By Cauchy-Schwarz."""
        return _largest_norm(self._rows) * _largest_norm(self.table_IK)

    def of(self, block: slice, out_nI: Tensor) -> Tensor:
        """See :class:`BlockScores`."""
        rows = self._rows[block]
        if isinstance(rows, Int8Rows) and isinstance(self.table_IK, Int8Rows):
            return rows.matmul(self.table_IK, out_nI)
        return product(rows, self.table_IK, out=out_nI)  # type: ignore[arg-type]  # both are plain

    @functools.cached_property
    def _rows(self) -> Tensor | Int8Rows:
        """The states as they are multiplied."""
        if isinstance(self.table_IK, Int8Rows):
            return Int8Rows.of(self.states_NK.float() / self.unit)
        return self.states_NK.to(self.table_IK.dtype) / self.unit


@dataclass(frozen=True)
class SparseScores:
    """A few numbers for each position, to be added to its scores of some items.

    Nothing here asks a GPU for a number, which the host would have to wait for: what a position has none of is 0.

    Attributes:
        items_NK: their rows among those that have scores, int64.
        values_NK: what is added, in nats; for a row that is named several times, all of it.
    """

    items_NK: Tensor
    values_NK: Tensor

    @classmethod
    def excluding(cls, items_NK: Tensor, excluded_NK: Tensor) -> SparseScores:
        """What takes all probability from some items.

        Args:
            items_NK: rows among those that have scores.
            excluded_NK: which of them are meant, bool.
        """
        return cls(items_NK, torch.where(excluded_NK, NO_CHANCE, 0.0))

    def add_(self, block: slice, scores_nI: Tensor, unit: float = 1.0) -> Tensor:
        """Adds them to the scores of a block of positions, in place, which are in units of so many nats."""
        return scores_nI.scatter_add_(1, self.items_NK[block], self.values_NK[block] / unit)

    def of_item(self, block: slice, item_n1: Tensor) -> Tensor:
        """What is added to one item of each position of a block; [n, 1]."""
        return (self.values_NK[block] * (self.items_NK[block] == item_n1)).sum(1, keepdim=True)

    def among(self, candidate_C: Tensor) -> SparseScores:
        """The same of some rows alone, ascending."""
        place_NK = torch.searchsorted(candidate_C, self.items_NK).clamp_(max=len(candidate_C) - 1)
        there_NK = candidate_C[place_NK] == self.items_NK
        return SparseScores(place_NK * there_NK, self.values_NK * there_NK)


@dataclass(frozen=True)
class PlusSparse:
    """Other scores plus a few numbers for each position; implements :class:`BlockScores`.

    Attributes:
        base: what they are added to.
        added: the numbers; no item twice in a position but for those that get 0.
        unit: in nats.
    """

    base: BlockScores
    added: SparseScores
    unit: float = 1.0

    @property
    def num_items(self) -> int:
        """I."""
        return self.base.num_items

    @property
    def device(self) -> torch.device:
        """Of the numbers."""
        return self.added.values_NK.device

    def __len__(self) -> int:
        return len(self.added.values_NK)

    def in_units_of(self, nats: float) -> PlusSparse:
        """See :class:`BlockScores`."""
        return replace(self, base=self.base.in_units_of(nats), unit=nats)

    def largest(self) -> float:
        """The largest of each added up."""
        return self.base.largest() + float(self.added.values_NK.abs().max()) / self.unit

    def of(self, block: slice, out_nI: Tensor) -> Tensor:
        """See :class:`BlockScores`."""
        return self.added.add_(block, self.base.of(block, out_nI), self.unit)


@dataclass(frozen=True)
class AddedScores:
    """What is added to a model's scores and is no part of it: products of states and a table, and a few numbers.

    Attributes:
        states_NC: of each position; C may be 0.
        table_IC: of the items that have scores.
        sparse: the numbers.
    """

    states_NC: Tensor
    table_IC: Tensor
    sparse: SparseScores

    def to(self, states_ND: Tensor, table_ID: Tensor) -> PlusSparse:
        """The sum of these and the products of a model's states and table."""
        states_NK = torch.cat([states_ND, self.states_NC.to(states_ND)], 1)
        table_IK = torch.cat([table_ID, self.table_IC.to(table_ID)], 1)
        return PlusSparse(Factors(states_NK, table_IK), self.sparse)

    def mean(self, share_I: Tensor) -> Tensor:
        """The mean over positions of what is added to all items together, each of which counts for its share."""
        of_factors = self.states_NC.to(share_I).mean(0) @ (share_I @ self.table_IC.to(share_I))
        return of_factors + (self.sparse.values_NK * share_I[self.sparse.items_NK]).sum(1).mean()


def score_blocks(scores: BlockScores, block_elements: int = BLOCK_ELEMENTS) -> Iterator[Tensor]:
    """All scores, block by block of positions: [n, I], each overwritten by the next."""
    rows = max(32, block_elements // scores.num_items)
    buffer = torch.empty(min(rows, len(scores)), scores.num_items, device=scores.device)
    for start in range(0, len(scores), rows):
        stop = min(start + rows, len(scores))
        yield scores.of(slice(start, stop), buffer[: stop - start])


def _largest_norm(rows: Tensor | Int8Rows) -> float:
    return rows.largest_norm if isinstance(rows, Int8Rows) else float(torch.linalg.vector_norm(rows, dim=1).max())
