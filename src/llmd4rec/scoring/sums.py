"""A weighted sum of scorers is a scorer. Sums of factors stay one product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ModelError
from llmd4rec.scoring.base import Query, Scorer, recent
from llmd4rec.scoring.factors import FactorQuery


def weighted_sum(queries: Sequence[Query], weights: Sequence[float]) -> Query:
    """Σ weight · scores of queries over the same histories and catalogue.

    Factors are put side by side, `[w_1 states_1, w_2 states_2] @ [table_1, table_2].T`, so that many models cost one
    product.

    Args:
        queries: at least one.
        weights: one for each, of any sign and scale.
    """
    pairs = list(zip(queries, weights, strict=True))
    factors = [(query, weight) for query, weight in pairs if isinstance(query, FactorQuery)]
    others = [(query, weight) for query, weight in pairs if not isinstance(query, FactorQuery)]
    if factors:
        joined = FactorQuery(
            torch.cat([weight * query.states_BD for query, weight in factors], 1),
            torch.cat([query.table_ID for query, _ in factors], 1),
        )
        if not others:
            return joined
        others.insert(0, (joined, 1.0))
    return _SumQuery(tuple(query for query, _ in others), tuple(weight for _, weight in others))


@dataclass(frozen=True)
class _SumQuery(Query):
    """Scores are the sum of the members' scores, each times its weight."""

    members: tuple[Query, ...]
    weights: tuple[float, ...]

    @property
    def num_items(self) -> int:
        """I."""
        return self.members[0].num_items

    @property
    def device(self) -> torch.device:
        """That of the first member."""
        return self.members[0].device

    def __len__(self) -> int:
        return len(self.members[0])

    def take(self, rows: slice | Tensor) -> Self:
        """The same rows of all members."""
        return type(self)(tuple(member.take(rows) for member in self.members), self.weights)

    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Member after member."""
        total = self.members[0].scores(first, last, out).mul_(self.weights[0])
        for member, weight in zip(self.members[1:], self.weights[1:], strict=True):
            total.add_(member.scores(first, last).to(total.device), alpha=weight)
        return total

    def item_scores(self, items_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The members' roundings add up."""
        eps = torch.finfo(torch.float32).eps
        total, rounding = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for member, weight in zip(self.members, self.weights, strict=True):
            scores, each = (tensor.to(self.device) for tensor in member.item_scores(items_BT.to(member.device)))
            total = total + weight * scores
            rounding = rounding + abs(weight) * each + eps * (weight * scores).abs()
        return total, rounding


class WeightedSum(Scorer):
    """A weighted sum of scorers over one catalogue; each reads as much of a history as it can.

    Args:
        scorers: at least one.
        weights: one for each; None: all 1.

    Raises:
        ModelError: their catalogues differ in size.
    """

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float] | None = None) -> None:
        if len({scorer.num_items for scorer in scorers}) != 1:
            raise ModelError("scorers of different catalogues cannot be added up", "Use scorers of one data set.")
        self.scorers = tuple(scorers)
        self.weights = tuple(weights if weights is not None else [1.0] * len(scorers))
        lengths = [scorer.max_length for scorer in scorers]
        self.max_length = None if None in lengths else max(length for length in lengths if length is not None)
        self.reads = tuple(dict.fromkeys(name for scorer in scorers for name in scorer.reads))
        self.name = " + ".join(scorer.name for scorer in scorers)

    @property
    def num_items(self) -> int:
        """I."""
        return self.scorers[0].num_items

    @property
    def device(self) -> torch.device:
        """That of the first scorer."""
        return self.scorers[0].device

    def prepare(self, batches: Iterable[SequenceBatch]) -> Query:
        """What all scorers read, as one query."""
        kept = list(batches)
        queries = [scorer.prepare(recent(batch, scorer.max_length) for batch in kept) for scorer in self.scorers]
        return weighted_sum(queries, self.weights)
