"""Scorers that are no models, alone and in sums, evaluated like models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pytest
import torch
from evaluation.examples import LastItemModel, chain_dataset, evaluate, random_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError, ModelError
from llmd4rec.evaluation import Evaluator
from llmd4rec.evaluation.ranking import rank_targets
from llmd4rec.evaluation.validation import EnsembleValidation, validation_value
from llmd4rec.models.ensemble import Ensemble
from llmd4rec.scoring.base import Candidates, Query, Scorer, recent
from llmd4rec.scoring.factors import FactorQuery, FactorScorer
from llmd4rec.scoring.from_rows import as_query
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.sums import WeightedSum, weighted_sum


@dataclass(frozen=True)
class CountQuery(Query):
    """Rows of a matrix of counts."""

    last_B: Tensor
    counts_II: Tensor

    @property
    def num_items(self) -> int:
        return self.counts_II.shape[1]

    def __len__(self) -> int:
        return len(self.last_B)

    def take(self, rows: slice | Tensor) -> Self:
        return type(self)(self.last_B[rows], self.counts_II)

    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        return self.counts_II[self.last_B, first:last].log1p()


class Transitions(Scorer):
    """How often each item came after the last one in training: no product of two matrices."""

    name = "transitions"
    max_length = 1

    def __init__(self, data: Dataset) -> None:
        self.counts_II = torch.zeros(data.num_items, data.num_items)
        for user in range(data.num_users):
            items = data.items[data.offsets[user] : data.train_end[user]]
            for one, other in itertools.pairwise(items):
                self.counts_II[int(one), int(other)] += 1

    @property
    def num_items(self) -> int:
        return len(self.counts_II)

    def prepare(self, batches: Iterable[SequenceBatch]) -> CountQuery:
        last = [batch.items_BL.gather(1, batch.lengths_B[:, None] - 1)[:, 0] for batch in batches]
        return CountQuery(torch.cat(last), self.counts_II)


def test_a_scorer_that_is_no_model_is_evaluated_end_to_end() -> None:
    data = chain_dataset(users=60, items=20, length=9)
    found = Evaluator(["ndcg@10", "coverage@10"]).evaluate(Transitions(data), data)
    assert found.metrics["ndcg@10"] == 1.0  # everybody walks up the catalogue
    assert (found.model, found.stage) == ("transitions", "")
    assert validation_value(Transitions(data), data) == 1.0


@pytest.mark.parametrize("block_elements", [None, 40])
def test_a_sum_of_counts_and_a_model_has_the_sum_of_their_scores(
    block_elements: int | None, integer_table: Tensor
) -> None:
    data, model = random_dataset(40, 30), LastItemModel(integer_table)
    scorer = WeightedSum([Transitions(data), FactorScorer(model)], [2.0, 0.5])
    assert scorer.max_length == model.max_length
    batch = SequenceBatch(torch.tensor([[3, 4, 5], [7, 8, 0]]), torch.tensor([3, 2]))
    query = scorer.prepare([batch])
    last = torch.tensor([5, 8])
    expected = 2 * Transitions(data).counts_II[last].log1p() + 0.5 * integer_table[last] @ integer_table.T
    torch.testing.assert_close(query.scores(0, 30), expected)
    torch.testing.assert_close(query.take(torch.tensor([1, 0])).scores(3, 9), expected[[1, 0], 3:9])
    items = torch.tensor([[0, 29], [11, 3]])
    scores, rounding = query.item_scores(items)
    torch.testing.assert_close(scores, expected.gather(1, items))
    assert (rounding <= 1e-5).all()
    ranks = rank_targets(query, np.array([4, 9]), block_elements=block_elements).ranks
    assert ranks.tolist() == [
        int((expected[row] >= expected[row, item] - 1e-5).sum()) for row, item in enumerate((4, 9))
    ]


def test_a_sum_is_evaluated_like_a_model() -> None:
    data = chain_dataset(users=60, items=20, length=9)
    noise = LastItemModel(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    alone = evaluate(noise, data).metrics["ndcg@10"]
    both = Evaluator().evaluate(WeightedSum([FactorScorer(noise), Transitions(data)], [0.01, 1.0]), data)
    assert alone < both.metrics["ndcg@10"] == 1.0
    assert both.model == "model + transitions"


def test_factors_in_a_sum_stay_one_product(integer_table: Tensor) -> None:
    """And give the very ranks of an ensemble."""
    data = random_dataset(40, 30)
    models = [LastItemModel(integer_table), LastItemModel(integer_table.flip(0))]
    summed = WeightedSum([FactorScorer(model) for model in models], [0.25, 0.75])
    assert isinstance(summed.prepare([SequenceBatch(torch.tensor([[1]]), torch.tensor([1]))]), FactorQuery)
    expected = evaluate(Ensemble(models, (1, 3)), data)
    assert Evaluator().evaluate(summed, data).per_user.equals(expected.per_user)


def test_a_sum_of_factors_copies_their_tables_once(integer_table: Tensor) -> None:
    """Not for each request; and another table is never taken for the one before."""
    batch = SequenceBatch(torch.tensor([[1]]), torch.tensor([1]))
    scorers = [FactorScorer(LastItemModel(table)) for table in (integer_table, integer_table.flip(0))]
    summed = WeightedSum(scorers, [1.0, 2.0])
    first, again = (summed.prepare([batch]) for _ in range(2))
    assert isinstance(first, FactorQuery)
    assert isinstance(again, FactorQuery)
    assert first.table_ID is again.table_ID
    scorers[1].table_ID = integer_table.roll(1, 0)
    last = integer_table[1]
    expected = last @ integer_table.T + 2 * integer_table.flip(0)[1] @ integer_table.roll(1, 0).T
    torch.testing.assert_close(summed.prepare([batch]).scores(0, 30)[0], expected)


def test_a_table_of_rows_is_looked_through_once_and_refused_where_it_is_not_finite() -> None:
    table = np.eye(4, dtype=np.float32)
    content = ContentScorer(table, np.zeros(4, np.float32), None, [1.0])
    one, other = (as_query(content.prepare([[2]], [None], [None])) for _ in range(2))
    assert isinstance(one, FactorQuery)
    assert isinstance(other, FactorQuery)
    assert one.table_ID is other.table_ID
    assert one.scores(0, 4).tolist() == [[0, 0, 1, 0]]
    broken = ContentScorer(np.full((4, 4), np.nan, np.float32), np.zeros(4, np.float32), None, [1.0])
    with pytest.raises(ModelError, match="NaN or infinite"):
        as_query(broken.prepare([[]], [None], [None]))


def test_ensemble_weights_are_chosen_among_any_scorers() -> None:
    data = chain_dataset(users=60, items=20, length=9)
    noise = LastItemModel(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    judge = EnsembleValidation([noise, Transitions(data)], data)
    assert judge((1, 0)).mean() == pytest.approx(validation_value(noise, data), abs=1e-12)
    assert judge((0, 1)).mean() == 1.0
    assert judge((1, 99)).mean() > judge((99, 1)).mean()


def test_candidates_are_the_best_items_and_a_bound_on_all_others(integer_table: Tensor) -> None:
    query = FactorQuery.of(torch.randn(5, 4, generator=torch.Generator().manual_seed(2)), integer_table)
    scores = query.scores(0, 30)
    found = query.candidates(7)
    ordered = scores.sort(dim=1, descending=True).values
    torch.testing.assert_close(found.scores_BM, ordered[:, :7])
    torch.testing.assert_close(scores.gather(1, found.items_BM), found.scores_BM)
    torch.testing.assert_close(found.bound_B, ordered[:, 7])
    assert query.candidates(50).items_BM.shape == (5, 30)
    assert torch.isneginf(query.candidates(30).bound_B).all()


def test_each_member_of_a_sum_reads_as_much_as_it_can() -> None:
    batch = SequenceBatch(
        torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
        torch.tensor([4, 2]),
        {"times": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])},
    )
    cut = recent(batch, 3)
    assert (cut.items_BL[0].tolist(), cut.items_BL[1, :2].tolist()) == ([2, 3, 4], [5, 6])
    assert cut.lengths_B.tolist() == [3, 2]
    assert cut.times_BL[0].tolist() == [2, 3, 4]
    assert recent(batch, None) is recent(batch, 4) is batch


def test_scorers_of_other_catalogues_are_refused(integer_table: Tensor) -> None:
    small, large = (FactorScorer(LastItemModel(table)) for table in (integer_table[:5], integer_table))
    with pytest.raises(ModelError, match="different catalogues"):
        WeightedSum([small, large])
    with pytest.raises(ModelError, match="knows 5 items"):
        Evaluator().evaluate(small, random_dataset(5, 30))
    with pytest.raises(ConfigError, match="int cannot be evaluated"):
        Evaluator().evaluate(3, random_dataset(5, 30))  # type: ignore[arg-type]


def test_a_sum_of_one_is_itself(integer_table: Tensor) -> None:
    query = FactorQuery.of(torch.ones(2, 4), integer_table)
    torch.testing.assert_close(weighted_sum([query], [1.0]).scores(0, 30), query.scores(0, 30))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    items=st.integers(1, 400),
    m=st.integers(1, 12),
    weights=st.tuples(st.integers(-1, 4), st.integers(0, 4), st.integers(0, 3)),
    whole_up_to=st.sampled_from([0, 0, 0, 100]),
)
def test_candidates_of_a_sum_are_those_of_scoring_everything(
    seed: int, items: int, m: int, weights: tuple[int, int, int], whole_up_to: int
) -> None:
    """Whole numbers, so that scores are exact and tie often."""
    draw = torch.Generator().manual_seed(seed)
    counts = [torch.randint(0, 9, (5, items), generator=draw).float() for _ in range(2)]
    states, table = (torch.randint(-3, 4, (rows, 3), generator=draw).float() for rows in (5, items))
    queries: list[Query] = [LookUpQuery(each) for each in counts]
    queries.append(FactorQuery.of(states, table))
    summed = weighted_sum(queries, weights, whole_up_to=whole_up_to)
    every = weights[0] * counts[0] + weights[1] * counts[1] + weights[2] * states @ table.T
    found = summed.candidates(m)
    best = every.sort(dim=1, descending=True).values
    assert torch.equal(found.scores_BM, best[:, :m])
    assert torch.equal(every.gather(1, found.items_BM), found.scores_BM)
    assert all(len(set(row)) == min(m, items) for row in found.items_BM.tolist())
    others = every.scatter(1, found.items_BM, -torch.inf).amax(dim=1)
    assert (others <= found.bound_B).all()


def test_the_best_of_a_large_catalogue_are_found_from_a_part_of_it() -> None:
    """Where the members agree; where they do not, more is asked for until it is sure, and for those histories alone."""
    draw = torch.Generator().manual_seed(0)
    agreed = torch.rand(3, 5000, generator=draw)
    other = torch.cat([agreed[:2], -agreed[2:]]) + 0.01 * torch.rand(3, 5000, generator=draw)
    members = [LookUpQuery(agreed), LookUpQuery(other)]
    summed = weighted_sum(members, [1.0, 0.5], whole_up_to=0)
    found = summed.candidates(5)
    expected = (agreed + 0.5 * other).topk(5, dim=1)
    torch.testing.assert_close(found.scores_BM, expected.values)
    assert torch.equal(found.items_BM, expected.indices)
    asked = [call for call in members[0].calls if call[0] == "candidates"]
    assert asked[0] == ("candidates", 3, 5)
    assert max(m for _, _, m in asked) <= 5000 // 16
    assert ("scores", 3, 5000) not in members[0].calls  # never whole, for all of them
    assert ("scores", 1, 5000) in members[0].calls


@dataclass(frozen=True)
class LookUpQuery(Query):
    """Scores that are given; remembers what it was asked."""

    scores_BI: Tensor
    calls: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def num_items(self) -> int:
        return self.scores_BI.shape[1]

    def __len__(self) -> int:
        return len(self.scores_BI)

    def take(self, rows: slice | Tensor) -> Self:
        return type(self)(self.scores_BI[rows], self.calls)

    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        self.calls.append(("scores", len(self), last - first))
        return self.scores_BI[:, first:last].clone()

    def item_scores(self, items_BT: Tensor) -> tuple[Tensor, Tensor]:
        found = self.scores_BI.gather(1, items_BT)
        return found, torch.zeros_like(found)

    def candidates(self, m: int) -> Candidates:
        """Known without scoring anything, as of lists that are kept sorted."""
        self.calls.append(("candidates", len(self), m))
        values, items = self.scores_BI.sort(dim=1, descending=True)
        others = values[:, m] if m < self.num_items else torch.full((len(self),), -torch.inf)
        return Candidates(items[:, :m], values[:, :m], others)
