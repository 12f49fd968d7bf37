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
#: A score whose exponential is 0, and that can be multiplied by 0.
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
class PlusSparse:
    """Other scores plus a few numbers for each position; implements :class:`BlockScores`.

    Attributes:
        base: what they are added to.
        items_NK: to which rows, int64, none twice in a position but for those that get 0.
        values_NK: what is added, in nats.
        unit: in nats.
    """

    base: BlockScores
    items_NK: Tensor
    values_NK: Tensor
    unit: float = 1.0

    @property
    def num_items(self) -> int:
        """I."""
        return self.base.num_items

    @property
    def device(self) -> torch.device:
        """Of the numbers."""
        return self.values_NK.device

    def __len__(self) -> int:
        return len(self.values_NK)

    def in_units_of(self, nats: float) -> PlusSparse:
        """See :class:`BlockScores`."""
        return replace(self, base=self.base.in_units_of(nats), unit=nats)

    def largest(self) -> float:
        """The largest of each added up."""
        return self.base.largest() + float(self.values_NK.abs().max()) / self.unit

    def of(self, block: slice, out_nI: Tensor) -> Tensor:
        """See :class:`BlockScores`."""
        scores_nI = self.base.of(block, out_nI)
        return scores_nI.scatter_add_(1, self.items_NK[block], self.values_NK[block] / self.unit)

    def among(self, candidate_C: Tensor, base: BlockScores) -> PlusSparse:
        """Of candidates, ascending, of which `base` are the scores."""
        place_NK = torch.searchsorted(candidate_C, self.items_NK).clamp_(max=len(candidate_C) - 1)
        there_NK = candidate_C[place_NK] == self.items_NK
        return PlusSparse(base, place_NK * there_NK, self.values_NK * there_NK, self.unit)


@dataclass(frozen=True)
class Excluded:
    """Items that some positions cannot have, such as those of their histories.

    Attributes:
        starts_N1: where each position's items begin, [N + 1], on the CPU.
        row_E: the position of each.
        item_E: their rows among those that have scores.
    """

    starts_N1: Tensor
    row_E: Tensor
    item_E: Tensor

    @classmethod
    def of(cls, row_E: Tensor, item_E: Tensor, positions: int) -> Excluded:
        """Of pairs of a position, ascending, and an item."""
        counts_N = torch.bincount(row_E, minlength=positions)
        return cls(torch.cat([counts_N.new_zeros(1), counts_N.cumsum(0)]).cpu(), row_E, item_E)

    def among(self, candidate_C: Tensor) -> Excluded:
        """Of candidates, ascending."""
        place_E = torch.searchsorted(candidate_C, self.item_E).clamp_(max=len(candidate_C) - 1)
        there_E = candidate_C[place_E] == self.item_E
        return Excluded.of(self.row_E[there_E], place_E[there_E], len(self.starts_N1) - 1)

    def write(self, block: slice, scores_nI: Tensor) -> None:
        """Takes all probability from a block's excluded items, in place."""
        inside = slice(int(self.starts_N1[block.start]), int(self.starts_N1[block.stop]))
        scores_nI[self.row_E[inside] - block.start, self.item_E[inside]] = NO_CHANCE


def score_blocks(scores: BlockScores, block_elements: int = BLOCK_ELEMENTS) -> Iterator[Tensor]:
    """All scores, block by block of positions: [n, I], each overwritten by the next."""
    rows = max(32, block_elements // scores.num_items)
    buffer = torch.empty(min(rows, len(scores)), scores.num_items, device=scores.device)
    for start in range(0, len(scores), rows):
        stop = min(start + rows, len(scores))
        yield scores.of(slice(start, stop), buffer[: stop - start])


def _largest_norm(rows: Tensor | Int8Rows) -> float:
    return rows.largest_norm if isinstance(rows, Int8Rows) else float(torch.linalg.vector_norm(rows, dim=1).max())
