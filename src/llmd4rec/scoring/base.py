"""What a scorer is: it reads histories once, and then gives scores of any items for them, exactly.

    query = scorer.prepare(batches)        histories in, whatever the scorer computes scores from out
    query.scores(0, 1000)                  [B, 1000], a block of the catalogue
    query.item_scores(items_BT)            [B, T], of some items each
    query.candidates(100)                  the 100 best of each, and a bound on all others

Ranking, evaluation and ensembles are written against this. A model is a scorer of factors (states · item table); counts
or a sum of other scorers are scorers too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch

#: Scores held at once: enough rows for a product to run at full speed, and not more memory than that takes.
CPU_BLOCK_ELEMENTS = 2**22
GPU_BLOCK_ELEMENTS = 2**24


class Candidates(NamedTuple):
    """The best items of each history.

    Attributes:
        items_BM: item indices, best first.
        scores_BM: their scores.
        bound_B: no other item has a higher score; −inf where there is no other.
    """

    items_BM: Tensor
    scores_BM: Tensor
    bound_B: Tensor


class Query(ABC):
    """Some histories, as one scorer has read them.

    Scores are 32-bit and finite; a larger one is better. They need be comparable within a history only.
    """

    @property
    @abstractmethod
    def num_items(self) -> int:
        """I."""

    @property
    def device(self) -> torch.device:
        """Where scores are computed."""
        return torch.device("cpu")

    @abstractmethod
    def __len__(self) -> int:
        """B, how many histories."""

    @abstractmethod
    def take(self, rows: slice | Tensor) -> Self:
        """Some of the histories: a range, or row numbers in any order."""

    @abstractmethod
    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """The scores of items first..last, [B, last − first]; the caller may overwrite them.

        Args:
            first: the first item.
            last: behind the last item.
            out: where the result may be put; not every scorer can, so use what is returned.
        """

    def item_scores(self, items_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of T items for each history, and by how much :meth:`scores` may round the same ones differently.

        Args:
            items_BT: item indices.
        """
        found = torch.empty(items_BT.shape, device=self.device)
        for first, last in spans(self.num_items, block_rows(self)[1]):
            inside = (items_BT >= first) & (items_BT < last)
            block = self.scores(first, last).gather(1, (items_BT - first).clamp(0, last - first - 1))
            found = torch.where(inside, block, found)
        return found, torch.finfo(torch.float32).eps * found.abs()

    def candidates(self, m: int) -> Candidates:
        """The m best items of each history (all, if there are fewer), and a bound on all others.

        The whole catalogue is scored, a block at a time. A scorer that knows a shorter way overrides this.
        """
        kept = min(m + 1, self.num_items)
        best: list[tuple[Tensor, Tensor]] = []
        for first, last in spans(self.num_items, block_rows(self)[1]):
            values, items = self.scores(first, last).topk(min(kept, last - first), dim=1)
            best.append((values, items + first))
        values, items = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        values, places = values.topk(kept, dim=1)
        items = items.gather(1, places)
        others = values[:, m] if kept > m else torch.full((len(self),), -torch.inf, device=values.device)
        return Candidates(items[:, :m], values[:, :m], others)


class Scorer(ABC):
    """What gives every item of one catalogue a score for a history.

    Attributes:
        max_length: how many of the most recent items it reads; None: all.
        reads: inputs of a batch that it reads beside items and lengths, as
            :attr:`~llmd4rec.models.base.SequenceEncoder.reads`.
        name: what a table calls it, such as `SASRec 64`.
        stage: the id of the stage of a run that it was trained in, if any.
        vectors_ID: the item vectors that it compares histories with, where it has them.
    """

    max_length: int | None = None
    reads: tuple[str, ...] = ()
    name: str = "model"
    stage: str = ""
    vectors_ID: Tensor | None = None

    @property
    @abstractmethod
    def num_items(self) -> int:
        """I."""

    @property
    def device(self) -> torch.device:
        """Where histories are read."""
        return torch.device("cpu")

    @abstractmethod
    def prepare(self, batches: Iterable[SequenceBatch]) -> Query:
        """Reads histories: one query of all batches, in their order."""


def block_rows(query: Query, rows: int | None = None, block_elements: int | None = None) -> tuple[int, int]:
    """How many histories and how many items are scored at once.

    Args:
        query: the histories.
        rows: how many histories at least, if they fit into the block; None: all.
        block_elements: how many scores may be held at once; default: 2**22 on a CPU, 2**24 elsewhere.
    """
    if block_elements is None:
        block_elements = CPU_BLOCK_ELEMENTS if query.device.type == "cpu" else GPU_BLOCK_ELEMENTS
    least = block_elements if rows is None else min(rows, block_elements)
    height = max(1, min(len(query), max(block_elements // max(1, query.num_items), least)))
    return height, max(1, min(query.num_items, block_elements // height))


def spans(total: int, size: int) -> Iterable[tuple[int, int]]:
    """0..total in ranges of `size`."""
    for start in range(0, total, size):
        yield start, min(total, start + size)


def recent(batch: SequenceBatch, length: int | None) -> SequenceBatch:
    """The most recent `length` items of each history; the batch itself where none is longer."""
    longest = batch.items_BL.shape[1]
    if length is None or longest <= length:
        return batch
    first_B1 = (batch.lengths_B - length).clamp(min=0)[:, None]
    places_BL = (first_B1 + torch.arange(length, device=first_B1.device)).clamp(max=longest - 1)
    return SequenceBatch(
        batch.items_BL.gather(1, places_BL),
        batch.lengths_B.clamp(max=length),
        {name: tensor.gather(1, places_BL) for name, tensor in batch.inputs.items()},
    )
