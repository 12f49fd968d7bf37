"""A weighted sum of scorers of rows is a scorer of rows; :mod:`llmd4rec.scoring.sums` without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from llmd4rec.errors import ModelError
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
        members: the same histories, as each scorer has read them; at least one.
        weights: one for each, of any sign and scale.
        whole_up_to: a catalogue of at most so many items is scored whole to find the best.
    """

    members: tuple[RowQuery, ...]
    weights: tuple[float, ...]
    whole_up_to: int = WHOLE_UP_TO

    @property
    def num_rows(self) -> int:
        """I."""
        return self.members[0].num_rows

    @property
    def search_limits(self) -> SearchLimits | None:
        """None where one member has to score every row: then all do."""
        limits = [member.search_limits for member in self.members]
        known = [each for each in limits if each is not None]
        if len(known) < len(limits) or self.num_rows <= self.whole_up_to or min(self.weights) < 0:
            return None
        exact_up_to = max(self.whole_up_to, *(each.exact_up_to for each in known))
        return SearchLimits(exact_up_to, min(MAX_SHARE_ASKED, *(each.largest_share for each in known)))

    def __len__(self) -> int:
        return len(self.members[0])

    def take(self, which: slice | Rows) -> Self:
        """The same histories of all members."""
        return replace(self, members=tuple(member.take(which) for member in self.members))

    def scores(self, rows: Rows | None = None) -> Floats:
        """Member after member."""
        total_BN = self.members[0].scores(rows)
        total_BN *= np.float32(self.weights[0])
        for member, weight in zip(self.members[1:], self.weights[1:], strict=True):
            if weight:
                scores_BN = member.scores(rows)
                scores_BN *= np.float32(weight)
                total_BN += scores_BN
        return total_BN

    def centred_scores(self, rows: Rows, present: Mask) -> Floats:
        """A mean of sums is the sum of the means, which some members know without scoring every row."""
        total_BN = np.zeros((len(self), len(rows)), dtype=np.float32)
        for member, weight in zip(self.members, self.weights, strict=True):
            if weight:
                total_BN += np.float32(weight) * member.centred_scores(rows, present)
        return total_BN

    def candidates(self, m: int) -> list[Candidates]:
        """The members' candidates together, scored exactly; more are asked for until the m-th best is sure.

        No other row has a higher score than the sum of the members' bounds. Where the m-th score reaches that, nothing
        better is left. A small catalogue is scored whole, and so is one of which a part would save too little.
        """
        if self.search_limits is None:
            return super().candidates(m)
        found: dict[int, Candidates] = {}
        asked, unsure = m, np.arange(len(self))
        while len(unsure) and asked <= MAX_SHARE_ASKED * self.num_rows:
            for place, each in zip(unsure.tolist(), self.take(unsure)._of_members(asked), strict=True):
                kth = np.partition(each.scores, -m)[-m] if 0 < m <= len(each.scores) else -np.inf
                if kth >= each.bound or m == 0:
                    found[place] = each
            unsure = np.array([place for place in unsure.tolist() if place not in found], dtype=np.int64)
            asked *= WIDENING
        if len(unsure):
            whole = RowQuery.candidates(self.take(unsure), m)
            found |= dict(zip(unsure.tolist(), whole, strict=True))
        return [found[place] for place in range(len(self))]

    def _of_members(self, asked: int) -> list[Candidates]:
        """The union of the `asked` best rows of each member, and a bound on all others."""
        each_found = [member.candidates(asked) for member in self.members]
        united = []
        for place, found in enumerate(zip(*each_found, strict=True)):
            rows = np.unique(np.concatenate([each.rows for each in found]))
            bound = sum(weight * each.bound for weight, each in zip(self.weights, found, strict=True) if weight)
            scores = self.take(slice(place, place + 1)).scores(rows)[0]
            united.append(Candidates(rows, scores, float(bound)))
        return united


class WeightedRowSum(RowScorer):
    """A weighted sum of scorers of one catalogue.

    Args:
        members: at least one.
        weights: one for each; None: all 1.
        whole_up_to: a catalogue of at most so many items is scored whole to find the best.

    Raises:
        ModelError: their catalogues differ in size.
    """

    def __init__(
        self, members: Sequence[RowScorer], weights: Sequence[float] | None = None, *, whole_up_to: int = WHOLE_UP_TO
    ) -> None:
        if len({member.num_rows for member in members}) != 1:
            raise ModelError("scorers of different catalogues cannot be added up", "Use scorers of one data set.")
        self._members = tuple(members)
        self._weights = tuple(weights if weights is not None else [1.0] * len(members))
        self._whole_up_to = whole_up_to

    @property
    def members(self) -> tuple[RowScorer, ...]:
        """The scorers that are added up."""
        return self._members

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
    ) -> RowQuery:
        """What all members read."""
        read = tuple(member.prepare(windows, times, now) for member in self.members)
        return SumRowQuery(read, self._weights, self._whole_up_to)

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> RowScorer:
        """Every member with these rows."""
        members = [member.with_items(rows, vectors) for member in self.members]
        return WeightedRowSum(members, self._weights, whole_up_to=self._whole_up_to)
