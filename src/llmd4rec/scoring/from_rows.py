"""A scorer of rows as a PyTorch scorer, so that evaluation and ensembles read what answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.scoring.base import CPU_BLOCK_ELEMENTS, Query, Scorer
from llmd4rec.scoring.factors import FactorQuery, refuse_unless
from llmd4rec.scoring.row_factors import FactorRowQuery, ItemVectors
from llmd4rec.scoring.row_sums import SumRowQuery
from llmd4rec.scoring.rows import RowQuery, RowScorer
from llmd4rec.scoring.sums import weighted_sum


class RowsScorer(Scorer):
    """Any scorer of rows. Each history is read as that of a request, made when its next item was chosen.

    Args:
        scorer: scores the rows of a catalogue.
        name: what a table calls it.
        max_length: how many of the most recent items it reads; None: all.
        reads: what it reads of a batch beside items: `times` of the events, `target_times` where it answers for a
            moment.
        stage: the id of the stage of a run that it is of, if any.
    """

    def __init__(
        self,
        scorer: RowScorer,
        name: str,
        *,
        max_length: int | None = None,
        reads: tuple[str, ...] = (),
        stage: str = "",
    ) -> None:
        self.rows = scorer
        self.name, self.max_length, self.reads, self.stage = name, max_length, reads, stage
        self.vectors_ID = None if scorer.vectors_ID is None else torch.from_numpy(scorer.vectors_ID)

    @property
    def num_items(self) -> int:
        """I."""
        return self.rows.num_rows

    def prepare(self, batches: Iterable[SequenceBatch]) -> Query:
        """Reads histories."""
        windows: list[list[int]] = []
        times: list[list[int] | None] = []
        now: list[int | None] = []
        for batch in batches:
            lengths = batch.lengths_B.tolist()
            windows += [row[:length] for row, length in zip(batch.items_BL.tolist(), lengths, strict=True)]
            times += _each(batch.inputs.get("times"), lengths)
            targets = _each(batch.inputs.get("target_times"), lengths)
            now += [None if each is None else each[-1] for each in targets]
        query = self.rows.prepare(windows, times, now)
        return as_query(query)


def as_query(query: RowQuery) -> Query:
    """A query of rows as one of PyTorch's; factors as PyTorch scores them, so that their rounding is known."""
    if isinstance(query, FactorRowQuery):
        states_BD = torch.from_numpy(query.states_BD)
        refuse_unless(torch.isfinite(states_BD).all(), "states")
        return FactorQuery(states_BD, _table(query.vectors))
    if isinstance(query, SumRowQuery):
        used = [(as_query(each), weight) for each, weight in zip(query.members, query.weights, strict=True) if weight]
        if used:
            return weighted_sum(*zip(*used, strict=True))
    return RowsQuery(query)


@dataclass(frozen=True)
class RowsQuery(Query):
    """Histories as any scorer of rows has read them."""

    query: RowQuery
    #: All scores of few histories, which are asked for of a target first and then of all items.
    known: list[Tensor] = field(default_factory=list)

    @property
    def num_items(self) -> int:
        """I."""
        return self.query.num_rows

    def __len__(self) -> int:
        return len(self.query)

    def take(self, rows: slice | Tensor) -> Self:
        """Some of the histories."""
        return replace(self, query=self.query.take(rows if isinstance(rows, slice) else rows.numpy()), known=[])

    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Of a range of rows."""
        if (first, last) != (0, self.num_items):
            return torch.from_numpy(self.query.scores(np.arange(first, last)))
        if self.known:
            return self.known.pop()
        return torch.from_numpy(self.query.scores())

    def item_scores(self, items_BT: Tensor) -> tuple[Tensor, Tensor]:
        """As of all items, which are kept for the next call of :meth:`scores` where they are few."""
        if len(self) * self.num_items > CPU_BLOCK_ELEMENTS:
            return super().item_scores(items_BT)
        every_BI = self.scores(0, self.num_items)
        found = every_BI.gather(1, items_BT)
        self.known[:] = [every_BI]
        return found, torch.finfo(torch.float32).eps * found.abs()


#: Item tables that have been looked at; a request is too short to look through one.
_TABLES: WeakKeyDictionary[ItemVectors, Tensor] = WeakKeyDictionary()


def _table(vectors: ItemVectors) -> Tensor:
    """An item table, the same tensor each time.

    Raises:
        ModelError: it holds NaN or infinite values.
    """
    known = _TABLES.get(vectors)
    if known is None:
        known = torch.from_numpy(vectors.table_ID)
        refuse_unless(torch.isfinite(known).all(), "item table")
        _TABLES[vectors] = known
    return known


def _each(moments_BL: Tensor | None, lengths: list[int]) -> list[Any]:
    """The moments of each history; None where they are not read."""
    if moments_BL is None:
        return [None] * len(lengths)
    return [row[:length] for row, length in zip(moments_BL.tolist(), lengths, strict=True)]
