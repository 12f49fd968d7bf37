"""Sums of scorers without PyTorch: their best are those of scoring everything, however few rows are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec.errors import ModelError
from llmd4rec.scoring.row_sums import SumRowQuery, WeightedRowSum
from llmd4rec.scoring.rows import Candidates, Floats, RowQuery, Rows, RowScorer, SearchLimits

ROWS = 400


@dataclass(frozen=True)
class Searched(RowQuery):
    """Scores that are given; its candidates are the m best and no more, and it notes how many rows it scored."""

    given_BI: Floats
    scored: list[int]

    @property
    def num_rows(self) -> int:
        return int(self.given_BI.shape[1])

    @property
    def search_limits(self) -> SearchLimits:
        return SearchLimits(0, 1.0)

    def __len__(self) -> int:
        return len(self.given_BI)

    def take(self, which: slice | Rows) -> Searched:
        return replace(self, given_BI=self.given_BI[which])

    def scores(self, rows: Rows | None = None) -> Floats:
        self.scored.append(self.num_rows if rows is None else len(rows))
        return self.given_BI.copy() if rows is None else self.given_BI[:, rows]

    def candidates(self, m: int) -> list[Candidates]:
        found = []
        for scores_I in self.given_BI:
            order = np.argsort(-scores_I, kind="stable")
            bound = float(scores_I[order[m]]) if m < len(order) else -np.inf
            found.append(Candidates(order[:m], scores_I[order[:m]], bound))
        return found


def of(*given: Floats, weights: Sequence[float], whole_up_to: int = 0) -> SumRowQuery:
    return SumRowQuery(tuple(Searched(each, []) for each in given), tuple(weights), whole_up_to)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    largest=st.integers(0, 20),
    weights=st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]), st.sampled_from([0.0, 1.0, 3.0])),
    m=st.integers(1, 30),
)
def test_the_best_of_a_sum_are_among_its_candidates(
    seed: int, largest: int, weights: tuple[float, float], m: int
) -> None:
    # Few different scores, so that there are many ties.
    first, second = np.random.default_rng(seed).integers(-largest, largest + 1, (2, 2, ROWS)).astype(np.float32)
    query = of(first, second, weights=weights)
    whole_BI = weights[0] * first + weights[1] * second
    np.testing.assert_allclose(query.scores(), whole_BI, rtol=1e-6)
    for scores_I, found in zip(whole_BI, query.candidates(m), strict=True):
        assert len(set(found.rows.tolist())) == len(found.rows)
        np.testing.assert_allclose(found.scores, scores_I[found.rows], rtol=1e-6)
        others_I = np.delete(scores_I, found.rows)
        assert others_I.max(initial=-np.inf) <= found.bound + 1e-5
        best = np.sort(scores_I)[::-1][:m]
        np.testing.assert_allclose(np.sort(found.scores)[::-1][:m], best, rtol=1e-5, atol=1e-5)


def test_few_rows_are_scored_where_the_members_agree() -> None:
    scores_1I = -np.arange(ROWS, dtype=np.float32)[None]
    query = of(scores_1I, 2 * scores_1I, weights=(1, 1))
    (found,) = query.candidates(5)
    assert sorted(found.rows.tolist()) == [0, 1, 2, 3, 4]
    assert found.bound == -15  # of row 5: -5 - 10
    for member in query.members:
        assert isinstance(member, Searched)
        assert member.scored == [5]


def test_candidates_are_widened_where_the_members_disagree() -> None:
    """Each member's best two are the other's worst; the best of the sum is third of both."""
    first = np.full(ROWS, -50.0, dtype=np.float32)
    second = first.copy()
    first[[0, 1, 2]], second[[0, 1, 2]] = [9, 8, 7], [-99, -99, 7]
    second[[3, 4]], first[[3, 4]] = [9, 8], [-99, -99]
    query = of(first[None], second[None], weights=(1, 1))
    (found,) = query.candidates(1)
    assert found.rows[np.argmax(found.scores)] == 2
    assert [member.scored for member in query.members if isinstance(member, Searched)] == [[2, 6], [2, 6]]


def test_a_sum_is_searched_only_where_that_saves_something() -> None:
    scores_1I = np.zeros((1, ROWS), dtype=np.float32)
    assert of(scores_1I, scores_1I, weights=(1, 1)).search_limits is not None
    assert of(scores_1I, scores_1I, weights=(1, 1), whole_up_to=ROWS).search_limits is None
    assert of(scores_1I, scores_1I, weights=(1, -1)).search_limits is None

    class Whole(Searched):
        @property
        def search_limits(self) -> None:  # type: ignore[override]
            return None

    members = (Searched(scores_1I, []), Whole(scores_1I, []))
    assert SumRowQuery(members, (1, 1), 0).search_limits is None


class Fixed(RowScorer):
    """The same scores for every history."""

    def __init__(self, scores_I: Floats, tables: Mapping[str, Floats] | None = None) -> None:
        self.scores_I, self._tables = scores_I, tables or {}

    @property
    def num_rows(self) -> int:
        return len(self.scores_I)

    @property
    def tables(self) -> Mapping[str, Floats]:
        return self._tables

    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> Searched:
        return Searched(np.tile(self.scores_I, (len(windows), 1)), [])


def test_a_sum_has_the_tables_of_its_members_and_compares_items_by_the_first() -> None:
    numbers = np.arange(6, dtype=np.float32)
    first, second = np.ones((6, 2), dtype=np.float32), np.zeros((6, 3), dtype=np.float32)
    summed = WeightedRowSum([Fixed(numbers), Fixed(numbers, {"a": first}), Fixed(numbers, {"b": second})], [1, 2, 4])
    assert list(summed.tables) == ["a", "b"]
    assert summed.vectors_ID is first
    np.testing.assert_array_equal(summed.prepare([[1]], [None], [None]).scores()[0], 7 * numbers)
    with pytest.raises(ModelError, match="different catalogues"):
        WeightedRowSum([Fixed(numbers), Fixed(numbers[1:])])
