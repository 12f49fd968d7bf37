"""Scores as products of states and an item table, without PyTorch: exact, or through an index."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.rows import Candidates, RowQuery, SearchLimits

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
#: If the candidates are less than this share of the table, their rows are gathered before scoring.
GATHER_BELOW = 0.25
#: A table of at most so many rows is held a second time, column by column, where that is asked for.
BY_COLUMN_UP_TO = 50_000


class ItemVectors:
    """An item table with what is computed from it once.

    Args:
        table_ID: [I, d].
        by_column: scores of all rows are made from a second copy, column by column. They differ in their last digits,
            and take about half the time where d is large.
    """

    def __init__(self, table_ID: Floats, *, by_column: bool = False) -> None:
        self.table_ID, self._by_column = table_ID, by_column and len(table_ID) <= BY_COLUMN_UP_TO
        self._mean: tuple[Mask, Floats] | None = None

    @cached_property
    def transposed_DI(self) -> Floats:
        """What states are multiplied with for the scores of all rows."""
        transposed_DI: Floats = np.ascontiguousarray(self.table_ID.T) if self._by_column else self.table_ID.T
        return transposed_DI

    def mean_D(self, present: Mask) -> Floats:
        """The mean of the rows that are present; its product with a state is the state's mean score."""
        known = self._mean
        if known is None or known[0] is not present:  # a mask is never changed, as its catalogue is not
            known = self._mean = present, self.table_ID[present].mean(axis=0)
        return known[1]


@dataclass(frozen=True)
class FactorRowQuery(RowQuery):
    """Scores are `states_BD @ table_ID.T`.

    Attributes:
        states_BD: one for each history.
        vectors: the item table.
        index: over its first rows; those behind them are scored exactly. None: every row is.
    """

    states_BD: Floats
    vectors: ItemVectors
    index: ApproximateIndex | None = None

    @classmethod
    def of(cls, states_BD: Floats, table_ID: Floats, index: ApproximateIndex | None = None) -> FactorRowQuery:
        """Of a table alone."""
        return cls(states_BD, ItemVectors(table_ID), index)

    @property
    def search_limits(self) -> SearchLimits | None:
        """Those of the index."""
        return None if self.index is None else self.index.limits

    @property
    def num_rows(self) -> int:
        """I."""
        return len(self.vectors.table_ID)

    def __len__(self) -> int:
        return len(self.states_BD)

    def take(self, which: slice | Rows) -> Self:
        """Some of the states."""
        return type(self)(self.states_BD[which], self.vectors, self.index)

    def scores(self, rows: Rows | None = None) -> Floats:
        """One matrix product."""
        table_ID = self.vectors.table_ID
        if rows is None:
            every_BI: Floats = self.states_BD @ self.vectors.transposed_DI
            return every_BI
        if len(rows) < GATHER_BELOW * len(table_ID):
            some_BN: Floats = self.states_BD @ table_ID[rows].T
            return some_BN
        return (self.states_BD @ self.vectors.transposed_DI)[:, rows]

    def candidates(self, m: int) -> list[Candidates]:
        """Through the index, which finds nearly all of the m best, and many more rows: `bound` is as approximate."""
        if self.index is None:
            return super().candidates(m)
        behind = np.arange(len(self.index), self.num_rows)
        found = []
        for place, rows in enumerate(self.index.candidates(self.states_BD, m)):
            every = np.sort(np.concatenate([rows, behind]))
            scores = self.take(slice(place, place + 1)).scores(every)[0]
            found.append(Candidates(every, scores, float(scores.min()) if len(every) < self.num_rows else -np.inf))
        return found

    def centred_scores(self, rows: Rows, present: Mask) -> Floats:
        """Of the rows less their mean."""
        centred_BN: Floats = self.states_BD @ (self.vectors.table_ID[rows] - self.vectors.mean_D(present)).T
        return centred_BN
