"""A model as a recommender's scorer: the product of a history's state and the item table, exact or through an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.encoder import Encoder, encode
from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.row_factors import FactorRowQuery, ItemVectors
from llmd4rec.scoring.rows import RowScorer, with_rows

Floats = NDArray[np.float32]
#: What a model is called among the tables of a scorer, and among the weights of a memory's parts.
SPACE = "model"


class FactorRowScorer(RowScorer):
    """The encoder of a run or an export, and its item table.

    Args:
        encoder: gives the states of histories.
        table_ID: float32.
        index: over the first rows of the table, which never change then; None on a small catalogue.
        max_length: how many of the most recent items it reads; None: as many as it is given.
    """

    def __init__(
        self,
        encoder: Encoder,
        table_ID: Floats,
        index: ApproximateIndex | None = None,
        max_length: int | None = None,
    ) -> None:
        self.encoder, self.table_ID, self.index, self.max_length = encoder, table_ID, index, max_length
        self._vectors = ItemVectors(table_ID, by_column=True)

    @property
    def tables(self) -> Mapping[str, Floats]:
        """The item table."""
        return {SPACE: self.table_ID}

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.table_ID)

    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> FactorRowQuery:
        """Encodes the histories together."""
        if (length := self.max_length) is not None:
            windows = [window[-length:] for window in windows]
            times = [None if each is None else each[-length:] for each in times]
        return FactorRowQuery(encode(self.encoder, windows, self.table_ID, times, now), self._vectors, self.index)

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> FactorRowScorer:
        """With another table, in which these rows are written."""
        return FactorRowScorer(
            self.encoder, with_rows(self.table_ID, rows, vectors[SPACE]), self.index, self.max_length
        )

    def subset(self, rows: NDArray[np.int64]) -> FactorRowScorer:
        """Of some rows, in their order; those of an index are among them."""
        return FactorRowScorer(self.encoder, self.table_ID[rows], self.index, self.max_length)
