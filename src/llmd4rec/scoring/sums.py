"""A weighted sum of scorers is a scorer. Sums of factors stay one product."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ModelError
from llmd4rec.scoring.base import Candidates, Query, Scorer, recent, spans
from llmd4rec.scoring.factors import FactorQuery

#: A catalogue of at most so many items is scored whole to find the best of a sum.
WHOLE_UP_TO = 50_000
#: How many more candidates are asked of each member, where those of before are not sure to hold the best.
WIDENING = 4
#: If a member would be asked for more than this share of the catalogue, it is scored whole.
MAX_SHARE_ASKED = 1 / 16
#: Numbers of item vectors held at once to score candidates.
_GATHERED = 2**22


class SideBySide:
    """Item tables as the columns of one, which is kept for the next query over the very same ones.

    A request is one history: to copy the tables for each would take longer than its answer. A large catalogue's are
    copied each time, as they are too large to be held twice.
    """

    def __init__(self) -> None:
        self._known: tuple[tuple[Tensor, ...], Tensor] | None = None

    def of(self, tables: Sequence[Tensor]) -> Tensor:
        """[I, d_1 + d_2 + ...]."""
        if len(tables) == 1:
            return tables[0]
        known = self._known
        if known is not None and len(known[0]) == len(tables) and all(map(operator.is_, known[0], tables)):
            return known[1]
        joined_ID = torch.cat(list(tables), 1)
        self._known = (tuple(tables), joined_ID) if len(joined_ID) <= WHOLE_UP_TO else None
        return joined_ID


def weighted_sum(
    queries: Sequence[Query],
    weights: Sequence[float],
    *,
    whole_up_to: int = WHOLE_UP_TO,
    tables: SideBySide | None = None,
) -> Query:
    """Σ weight · scores of queries over the same histories and catalogue.

    Factors are put side by side, `[w_1 states_1, w_2 states_2] @ [table_1, table_2].T`, so that many models cost one
    product.

    Args:
        queries: at least one.
        weights: one for each, of any sign and scale.
        whole_up_to: a catalogue of at most so many items is scored whole to find the best.
        tables: what keeps the factors' tables side by side for the next sum of the same scorers.
    """
    pairs = list(zip(queries, weights, strict=True))
    factors = [(query, weight) for query, weight in pairs if isinstance(query, FactorQuery)]
    others = [(query, weight) for query, weight in pairs if not isinstance(query, FactorQuery)]
    if factors:
        joined = FactorQuery(
            torch.cat([weight * query.states_BD for query, weight in factors], 1),
            (tables or SideBySide()).of([query.table_ID for query, _ in factors]),
        )
        if not others:
            return joined
        others.insert(0, (joined, 1.0))
    return _SumQuery(tuple(query for query, _ in others), tuple(weight for _, weight in others), whole_up_to)


@dataclass(frozen=True)
class _SumQuery(Query):
    """Scores are the sum of the members' scores, each times its weight."""

    members: tuple[Query, ...]
    weights: tuple[float, ...]
    whole_up_to: int = WHOLE_UP_TO

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
        return replace(self, members=tuple(member.take(rows) for member in self.members))

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

    def candidates(self, m: int) -> Candidates:
        """The members' candidates together, scored exactly; more are asked for until the m-th best is sure.

        No other item has a higher score than the sum of the members' bounds. Where the m-th score reaches that, nothing
        better is left. A small catalogue is scored whole, and so is one of which a part would save too little.
        """
        asked = m
        open_R = torch.arange(len(self), device=self.device)  # histories whose best are not sure yet
        found: list[tuple[Tensor, Candidates]] = []
        while len(open_R):
            part = self.take(open_R)
            if (
                self.num_items <= self.whole_up_to
                or asked > MAX_SHARE_ASKED * self.num_items
                or min(self.weights) < 0  # the best of such a sum may be the worst of a member
            ):
                found.append((open_R, Query.candidates(part, m)))
                break
            best = part._of_members(asked, m)
            sure = best.scores_BM[:, -1] >= best.bound_B if m else torch.ones_like(open_R, dtype=torch.bool)
            found.append((open_R[sure], Candidates(*(tensor[sure] for tensor in best))))
            open_R, asked = open_R[~sure], WIDENING * asked
        order = torch.cat([rows for rows, _ in found]).argsort()
        return Candidates(*(torch.cat(tensors)[order] for tensors in zip(*(each for _, each in found), strict=True)))

    def _of_members(self, asked: int, m: int) -> Candidates:
        """The m best among the best of each member, and a bound on all others."""
        found = [member.candidates(asked) for member in self.members]
        items_BU = torch.cat([each.items_BM.to(self.device) for each in found], 1).sort(dim=1).values
        repeated = torch.zeros_like(items_BU, dtype=torch.bool)
        repeated[:, 1:] = items_BU[:, 1:] == items_BU[:, :-1]
        scores_BU = torch.zeros(items_BU.shape, device=self.device)
        bound_B = torch.zeros(len(self), device=self.device)
        for member, weight, each in zip(self.members, self.weights, found, strict=True):
            scores_BU += weight * _scores_of(member, items_BU.to(member.device)).to(self.device)
            bound_B += weight * each.bound_B.to(self.device) if weight else 0
        values, places = scores_BU.masked_fill(repeated, -torch.inf).topk(min(m + 1, items_BU.shape[1]), dim=1)
        if values.shape[1] > m:  # what was found and is not among the best
            bound_B = bound_B.maximum(values[:, m])
        return Candidates(items_BU.gather(1, places[:, :m]), values[:, :m], bound_B)


def _scores_of(query: Query, items_BT: Tensor) -> Tensor:
    """The scores of many items of each history; :meth:`FactorQuery.item_scores` is made for a few."""
    if not isinstance(query, FactorQuery):
        return query.item_scores(items_BT)[0]
    width = max(1, items_BT.shape[1] * query.table_ID.shape[1])
    parts = [
        torch.einsum("bd,btd->bt", query.states_BD[first:last], query.table_ID[items_BT[first:last]])
        for first, last in spans(len(items_BT), max(1, _GATHERED // width))
    ]
    return torch.cat(parts)


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
        self._tables = SideBySide()

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
        return weighted_sum(queries, self.weights, tables=self._tables)
