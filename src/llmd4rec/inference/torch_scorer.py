"""What answers, as an evaluator asks it: the scorer of a recommender in PyTorch's terms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from llmd4rec.data.arrays import INPUTS
from llmd4rec.data.batching import SequenceBatch
from llmd4rec.inference.types import ExportInfo
from llmd4rec.scoring.base import Query, Scorer
from llmd4rec.scoring.factors import FactorQuery
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.rows import RowQuery, RowScorer


class RecommenderScorer(Scorer):
    """The scorer of a recommender: an exported graph in ONNX Runtime, a model, or another one.

    Where the recommender searches a large catalogue through an index, this scores every item.

    Args:
        scorer: scores the rows of a catalogue.
        info: what it is.
    """

    def __init__(self, scorer: RowScorer, info: ExportInfo) -> None:
        self._scorer = scorer
        # Requests give all times or none, of which the encoder then reads what it needs.
        self.max_length, self.reads = info.max_length, INPUTS if info.reads else ()
        self.name, self.stage = f"{info.model} {info.dim}", info.stage
        self.vectors_ID = None if scorer.vectors_ID is None else torch.from_numpy(scorer.vectors_ID)

    @property
    def num_items(self) -> int:
        """I."""
        return self._scorer.num_rows

    def prepare(self, batches: Iterable[SequenceBatch]) -> Query:
        """Reads histories as those of requests, each of which is made when its next item was chosen."""
        windows: list[list[int]] = []
        times: list[list[int] | None] = []
        now: list[int | None] = []
        for batch in batches:
            lengths = batch.lengths_B.tolist()
            windows += [row[:length] for row, length in zip(batch.items_BL.tolist(), lengths, strict=True)]
            times += _each(batch.inputs.get("times"), lengths)
            targets = _each(batch.inputs.get("target_times"), lengths)
            now += [None if each is None else each[-1] for each in targets]
        query = self._scorer.prepare(windows, times, now)
        if isinstance(query, FactorRowQuery):  # as PyTorch scores factors, so that its rounding is known
            return FactorQuery.of(torch.from_numpy(query.states_BD), torch.from_numpy(query.vectors.table_ID))
        return _RowsQuery(query)


@dataclass(frozen=True)
class _RowsQuery(Query):
    """Histories as any scorer of rows has read them."""

    query: RowQuery

    @property
    def num_items(self) -> int:
        """I."""
        return self.query.num_rows

    def __len__(self) -> int:
        return len(self.query)

    def take(self, rows: slice | Tensor) -> Self:
        """Some of the histories."""
        return replace(self, query=self.query.take(rows if isinstance(rows, slice) else rows.numpy()))

    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Of a range of rows."""
        every = (first, last) == (0, self.num_items)
        return torch.from_numpy(self.query.scores(None if every else np.arange(first, last)))


def _each(moments_BL: Tensor | None, lengths: list[int]) -> list[Any]:
    """The moments of each history; None where they are not read."""
    if moments_BL is None:
        return [None] * len(lengths)
    return [row[:length] for row, length in zip(moments_BL.tolist(), lengths, strict=True)]
