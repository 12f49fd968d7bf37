"""A weighted sum of scorers of rows is a scorer of rows; :mod:`llmd4rec.scoring.sums` without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from llmd4rec.errors import ModelError
from llmd4rec.scoring.index import ApproximateIndex, side_by_side
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.rows import Candidates, Floats, Mask, RowQuery, Rows, RowScorer, SearchLimits

#: A catalogue of at most so many items is scored whole to find the best of a sum.
WHOLE_UP_TO = 50_000
#: How many more candidates are asked of each member, where those of before are not sure to hold the best.
WIDENING = 4
#: If a member would be asked for more than this share of the catalogue, it is scored whole.
MAX_SHARE_ASKED = 1 / 16


@dataclass(frozen=True)
class SumRowQuery(RowQuery):
    """Scores are the sum of the members' scores, each times its weight.

    Attributes:
        members: the same histories, as each scorer has read them; at least one, and none a sum.
        weights: one for each, of any sign and scale.
        whole_up_to: a catalogue of at most so many items is scored whole to find the best.
        index: over the first rows of the tables of all factors side by side; None: factors have none in common.
    """

    members: tuple[RowQuery, ...]
    weights: tuple[float, ...]
    whole_up_to: int = WHOLE_UP_TO
    index: ApproximateIndex | None = None

    @classmethod
    def of(
        cls,
        queries: Sequence[RowQuery],
        weights: Sequence[float],
        whole_up_to: int = WHOLE_UP_TO,
        index: ApproximateIndex | None = None,
    ) -> SumRowQuery:
        """Of queries over the same histories; a sum of sums is one sum, and what has no weight is left out."""
        members: list[tuple[RowQuery, float]] = []
        for query, weight in zip(queries, weights, strict=True):
            parts = zip(query.members, query.weights, strict=True) if isinstance(query, SumRowQuery) else [(query, 1.0)]
            members += [(part, weight * own) for part, own in parts]
        used = [(query, weight) for query, weight in members if weight] or [(members[0][0], 0.0)]
        return cls(tuple(query for query, _ in used), tuple(weight for _, weight in used), whole_up_to, index)

    @property
    def num_rows(self) -> int:
        """I."""
        return self.members[0].num_rows

    @property
    def search_limits(self) -> SearchLimits | None:
        """None where one member has to score every row: then all do."""
        if self.num_rows <= self.whole_up_to or min(self.weights) < 0:
            return None
        limits = [member.search_limits for member in self.members if not self._is_indexed(member)]
        if self.index is not None:
            limits.append(self.index.limits)
        known = [each for each in limits if each is not None]
        if len(known) < len(limits):
            return None
        exact_up_to = max(self.whole_up_to, *(each.exact_up_to for each in known))
        return SearchLimits(exact_up_to, min(MAX_SHARE_ASKED, *(each.largest_share for each in known)))

    def _is_indexed(self, member: RowQuery) -> bool:
        return self.index is not None and isinstance(member, FactorRowQuery)

    def __len__(self) -> int:
        return len(self.members[0])

    def take(self, which: slice | Rows) -> Self:
        """The same histories of all members."""
        return replace(self, members=tuple(member.take(which) for member in self.members))

    def scores(self, rows: Rows | None = None) -> Floats:
        """Member after member, the factors first; each adds its own in place."""
        total_BN: Floats | None = None
        others: list[tuple[RowQuery, float]] = []
        for member, weight in zip(self.members, self.weights, strict=True):
            if not isinstance(member, FactorRowQuery):
                others.append((member, weight))
                continue
            scaled = replace(member, states_BD=np.float32(weight) * member.states_BD)  # few numbers beside the scores
            total_BN = scaled.scores(rows) if total_BN is None else np.add(total_BN, scaled.scores(rows), out=total_BN)
        if total_BN is None:
            (first, weight), *others = others
            total_BN = first.scores(rows)
            total_BN *= np.float32(weight)
        for member, weight in others:
            member.add_to(total_BN, weight, rows)
        return total_BN

    def centred_scores(self, rows: Rows, present: Mask) -> Floats:
        """The mean of a sum is the sum of the means, which some members know without scoring every row."""
        total_BN = np.zeros((len(self), len(rows)), dtype=np.float32)
        for member, weight in zip(self.members, self.weights, strict=True):
            total_BN += np.float32(weight) * member.centred_scores(rows, present)
        return total_BN

    def candidates(self, m: int) -> list[Candidates]:
        """The members' candidates together, scored exactly; more are asked for until the m-th best is sure.

        No other row has a higher score than the sum of the members' bounds. Where the m-th score reaches that, nothing
        better is left. A small catalogue is scored whole, and so is one of which a part would save too little.
        """
        if self.search_limits is None or m < 1:
            return super().candidates(m)
        found: dict[int, Candidates] = {}
        asked, unsure = m, np.arange(len(self))
        while len(unsure) and asked <= MAX_SHARE_ASKED * self.num_rows:
            for place, each in zip(unsure.tolist(), self.take(unsure)._of_members(asked), strict=True):
                if len(each.rows) >= m and np.partition(each.scores, -m)[-m] >= each.bound:
                    found[place] = each
            unsure = np.array([place for place in unsure.tolist() if place not in found], dtype=np.int64)
            asked *= WIDENING
        if len(unsure):
            whole = RowQuery.candidates(self.take(unsure), m)
            found |= dict(zip(unsure.tolist(), whole, strict=True))
        return [found[place] for place in range(len(self))]

    def _of_members(self, asked: int) -> list[Candidates]:
        """The union of the `asked` best rows of each member, factors taken together, and a bound on all others."""
        found = [None if self._is_indexed(member) else member.candidates(asked) for member in self.members]
        indexed = self._indexed_rows(asked)
        united = []
        for place in range(len(self)):
            one = self.take(slice(place, place + 1))
            each_found = [each[place] for each in found if each is not None]
            rows = np.unique(np.concatenate([indexed[place], *(each.rows for each in each_found)]))
            total_U, factors_U, bound = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32), 0.0
            for member, weight, of_member in zip(one.members, one.weights, found, strict=True):
                scores_U = np.float32(weight) * member.scores(rows)[0]
                total_U += scores_U
                if of_member is None:
                    factors_U += scores_U
                else:
                    bound += weight * of_member[place].bound
            if len(indexed[place]) and len(indexed[place]) < self.num_rows:
                bound += float(factors_U[np.searchsorted(rows, indexed[place])].min())
            united.append(Candidates(rows, total_U, bound if len(rows) < self.num_rows else -np.inf))
        return united

    def _indexed_rows(self, asked: int) -> list[Rows]:
        """What the index finds for the factors, and the rows behind those that it knows; none without an index."""
        if self.index is None:
            return [np.empty(0, dtype=np.int64)] * len(self)
        pairs = zip(self.members, self.weights, strict=True)
        states = [np.float32(weight) * each.states_BD for each, weight in pairs if isinstance(each, FactorRowQuery)]
        behind = np.arange(len(self.index), self.num_rows)
        return [np.concatenate([rows, behind]) for rows in self.index.candidates(side_by_side(states), asked)]


class WeightedRowSum(RowScorer):
    """A weighted sum of scorers of one catalogue.

    Args:
        members: at least one.
        weights: one for each; None: all 1.
        whole_up_to: a catalogue of at most so many items is scored whole to find the best.
        index: over the tables of all members that are factors and have a weight, side by side.

    Raises:
        ModelError: their catalogues differ in size.
    """

    def __init__(
        self,
        members: Sequence[RowScorer],
        weights: Sequence[float] | None = None,
        *,
        whole_up_to: int = WHOLE_UP_TO,
        index: ApproximateIndex | None = None,
    ) -> None:
        if len({member.num_rows for member in members}) != 1:
            raise ModelError("scorers of different catalogues cannot be added up", "Use scorers of one data set.")
        self._members = tuple(members)
        self._weights = tuple(weights if weights is not None else [1.0] * len(members))
        self._whole_up_to, self._index = whole_up_to, index

    @property
    def members(self) -> tuple[RowScorer, ...]:
        """The scorers that are added up."""
        return self._members

    def weighted(self) -> list[tuple[RowScorer, float]]:
        """The scorers that are no sums themselves, and the weight of each in the whole."""
        found: list[tuple[RowScorer, float]] = []
        for member, weight in zip(self._members, self._weights, strict=True):
            inner = member.weighted() if isinstance(member, WeightedRowSum) else [(member, 1.0)]
            found += [(part, weight * own) for part, own in inner]
        return found

    @property
    def num_rows(self) -> int:
        """I."""
        return self.members[0].num_rows

    @property
    def tables(self) -> Mapping[str, Floats]:
        """Those of all members, the first member's first."""
        return {name: table_ID for member in self.members for name, table_ID in member.tables.items()}

    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> SumRowQuery:
        """What all members read."""
        read = [member.prepare(windows, times, now) for member in self.members]
        return SumRowQuery.of(read, self._weights, self._whole_up_to, self._index)

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> WeightedRowSum:
        """Every member with these rows."""
        return self.with_members([member.with_items(rows, vectors) for member in self.members])

    def with_members(self, members: Sequence[RowScorer]) -> WeightedRowSum:
        """The same weights and index, of members that are changed behind the rows of the index alone."""
        return WeightedRowSum(members, self._weights, whole_up_to=self._whole_up_to, index=self._index)
