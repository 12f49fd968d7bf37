"""Recommenders whose scorer is no product of states and item table, and what answers as an evaluator asks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmd4rec import Evaluator, Filters, NewItem, Recommender
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.encoder import HistoryBatch
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.types import Answer, ExportInfo, Request
from llmd4rec.scoring.row_sums import WeightedRowSum
from llmd4rec.scoring.rows import Candidates, Floats, RowQuery, Rows, RowScorer, SearchLimits

from .store import Store

ITEMS = 30
FRAME = pl.DataFrame(
    {
        "item_id": [f"i{row}" for row in range(ITEMS)],
        "colour": [f"c{row % 3}" for row in range(ITEMS)],
        "price": [float(row) for row in range(ITEMS)],
    }
)
#: After item i come i + 1 twice, i + 7 once and i * i once: few of all pairs.
FOLLOWERS = {
    row: {(row + 1) % ITEMS: 2.0, (row + 7) % ITEMS: 1.25, row * row % ITEMS: 0.75, (row + 3) % ITEMS: 0.5}
    for row in range(ITEMS)
}


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


@dataclass(frozen=True)
class CountQuery(RowQuery):
    """Sparse scores of each history: a row and its count, nothing for all others."""

    counts: tuple[dict[int, float], ...]

    @property
    def num_rows(self) -> int:
        return ITEMS

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, which: slice | Rows) -> CountQuery:
        if isinstance(which, slice):
            return CountQuery(self.counts[which])
        return CountQuery(tuple(self.counts[place] for place in which.tolist()))

    def scores(self, rows: Rows | None = None) -> Floats:
        every = np.zeros((len(self), ITEMS), dtype=np.float32)
        for place, counts in enumerate(self.counts):
            every[place, list(counts)] = list(counts.values())
        return every if rows is None else every[:, rows]


class SearchedCounts(CountQuery):
    """Its candidates are the rows with a count alone; all others have none."""

    @property
    def search_limits(self) -> SearchLimits:
        return SearchLimits(exact_up_to=0, largest_share=99.0)

    def take(self, which: slice | Rows) -> SearchedCounts:
        return SearchedCounts(super().take(which).counts)

    def candidates(self, m: int) -> list[Candidates]:
        return [
            Candidates(np.array(list(each), dtype=np.int64), np.array(list(each.values()), dtype=np.float32), 0.0)
            for each in self.counts
        ]


class Transitions(RowScorer):
    """What came after the items of a history, half as much for each step back."""

    def __init__(self, kind: type[CountQuery] = CountQuery) -> None:
        self.kind = kind

    @property
    def num_rows(self) -> int:
        return ITEMS

    def prepare(
        self, windows: Sequence[Sequence[int]], times: Sequence[Any] = (), now: Sequence[Any] = ()
    ) -> CountQuery:
        return self.kind(tuple(self._counts(window) for window in windows))

    @staticmethod
    def _counts(window: Sequence[int]) -> dict[int, float]:
        found: dict[int, float] = {}
        for back, row in enumerate(reversed(window)):
            for other, count in FOLLOWERS[row].items():
                found[other] = found.get(other, 0.0) + count / 2**back
        return found


class LastRow:
    """The state of a history is its last item's row."""

    reads: tuple[str, ...] = ()

    def __call__(self, batch: HistoryBatch, table_ID: Floats) -> Floats:
        return table_ID[batch.rows_BL[np.arange(len(batch.rows_BL)), batch.lengths_B - 1]]


TABLE = np.random.default_rng(0).standard_normal((ITEMS, 4)).astype(np.float32)


def asked(scorer: RowScorer, max_length: int = 4) -> Recommender:
    kinds = kinds_of(FRAME)
    info = ExportInfo("shop", 0, "undistilled", "counts", 4, ITEMS, max_length, kinds, "", 0.0, "NDCG@10")
    return Recommender(info, scorer, Catalogue.of(FRAME, np.arange(ITEMS, 0, -1), kinds))


KINDS: dict[str, RowScorer] = {
    "counts": Transitions(),
    "searched": Transitions(SearchedCounts),
    "sum": WeightedRowSum([FactorRowScorer(LastRow(), TABLE), Transitions()]),
}


def scores_of(kind: str, history: Sequence[str]) -> NDArray[np.float64]:
    """By hand, from the definition; of no more than the last four items."""
    rows = [int(name[1:]) for name in history][-4:]
    scores = np.zeros(ITEMS)
    for back, row in enumerate(reversed(rows)):
        for other, count in FOLLOWERS[row].items():
            scores[other] += count / 2**back
    return scores + TABLE @ TABLE[rows[-1]] if kind == "sum" else scores


names = st.lists(st.sampled_from([f"i{row}" for row in range(ITEMS)]), min_size=1, max_size=6)
filters = st.builds(
    Filters,
    any_of=st.sampled_from([{}, {"colour": "c1"}, {"colour": ["c0", "c2"]}]),
    at_most=st.sampled_from([{}, {"price": 15}]),
    deny=st.lists(st.sampled_from(["i3", "i4", "i12"]), unique=True),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    histories=st.lists(names, min_size=1, max_size=4),
    k=st.integers(1, 40),
    wanted=st.none() | filters,
    exclude=st.lists(st.sampled_from(["i1", "i9", "i20", "i28"]), unique=True),
    filter_seen=st.booleans(),
)
def test_answers_are_those_of_scoring_everything(
    kind: str,
    histories: list[list[str]],
    k: int,
    wanted: Filters | None,
    exclude: list[str],
    filter_seen: bool,
) -> None:
    recommender = asked(KINDS[kind])
    answers = recommender.recommend(histories, k, filters=wanted, exclude=exclude, filter_seen=filter_seen)
    for history, answer in zip(histories, answers, strict=True):
        scores = scores_of(kind, history)
        out = {*exclude, *(history if filter_seen else ())}
        rows = [row for row in range(ITEMS) if f"i{row}" not in out]
        if wanted is not None:
            colours = str(wanted.any_of.get("colour", "c0 c1 c2"))
            rows = [row for row in rows if f"c{row % 3}" in colours and row <= wanted.at_most.get("price", 99)]
            rows = [row for row in rows if wanted.deny is None or f"i{row}" not in wanted.deny]
        best = sorted(scores[rows], reverse=True)[:k]
        assert answer.num_candidates == len(rows)
        assert {int(name[1:]) for name in ids(answer)} <= set(rows)
        np.testing.assert_allclose([item.score for item in answer.items], best, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            [item.score for item in answer.items], scores[[int(n[1:]) for n in ids(answer)]], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["counts", "sum"])
def test_reasons_are_how_far_a_score_falls_without_an_item(kind: str) -> None:
    recommender = asked(KINDS[kind])
    recommender.remove_items(["i29"])
    history = ["i2", "i9", "i5", "i9"]
    for item in recommender.recommend(history, 5, explain=True).items:
        row, expected = int(item.item_id[1:]), {}
        for name in dict.fromkeys(history):
            whole, left = (scores_of(kind, each) for each in (history, [other for other in history if other != name]))
            effect = whole - left
            expected[name] = float(effect[row] - effect[:29].mean())  # less what falls for all that are there
        assert item.reasons is not None
        assert {reason.item_id: reason.effect for reason in item.reasons} == pytest.approx(expected, abs=1e-5)
    (only,) = recommender.recommend(["i2"], 1, explain=True).items
    assert only.reasons is not None
    present = scores_of(kind, ["i2"])[:29]
    assert [reason.effect for reason in only.reasons] == pytest.approx([only.score - float(present.mean())], abs=1e-5)
    assert recommender.recommend([], 1, explain=True).items[0].reasons == ()


def test_candidates_that_a_scorer_finds_are_taken_where_they_are_sure() -> None:
    """Everything is scored where there are too few of them."""
    whole: list[int] = []

    class Watched(SearchedCounts):
        def take(self, which: slice | Rows) -> Watched:
            return Watched(super().take(which).counts)

        def scores(self, rows: Rows | None = None) -> Floats:
            whole.append(len(self))
            return super().scores(rows)

    plain, searched = asked(Transitions()), asked(Transitions(Watched))
    for history in (["i3"], ["i8", "i4"]):
        assert ids(searched.recommend(history, 2)) == ids(plain.recommend(history, 2))
        assert whole == []
    assert len(searched.recommend(["i3"], 9).items) == 9  # more than have a count
    assert whole == [1]


def test_diversity_and_similar_items_ask_the_vectors_that_the_scorer_names() -> None:
    both, factors = asked(KINDS["sum"]), asked(FactorRowScorer(LastRow(), TABLE))
    assert both.similar("i4", 5) == factors.similar("i4", 5)
    assert len(set(ids(both.recommend(["i2", "i3"], 6, diversity=0.7)))) == 6
    counts = asked(Transitions())
    with pytest.raises(RunError, match="no item vectors"):
        counts.similar("i4")
    with pytest.raises(RunError, match="no item vectors"):
        counts.recommend(["i2"], diversity=0.5)


def test_items_of_a_scorer_without_vectors_can_be_renamed_but_not_added() -> None:
    recommender = asked(Transitions())
    recommender.add_items([NewItem("i3", title="Another name")])
    assert recommender.item("i3").title == "Another name"  # type: ignore[union-attr]
    assert ids(recommender.recommend(["i2"], 1)) == ["i3"]
    with pytest.raises(RunError, match="cannot embed new items"):
        recommender.add_items([NewItem("new", title="New")])
    with pytest.raises(RunError, match="cannot score new items"):
        Transitions().with_items([ITEMS], {})


# ---- evaluation -------------------------------------------------------------------------------------------------
METRICS = ["hr@5", "ndcg@10", "mrr@10", "coverage@10"]


def test_an_export_has_the_figures_of_its_run(store: Store) -> None:
    run, data = store.run, store.data
    evaluator = Evaluator(METRICS)
    for source in (Recommender.load(store.export), Recommender.load(store.export, index="approximate")):
        for stage in ("served", "distilled", "undistilled"):
            expected = evaluator.evaluate(run, data, stage="distilled" if stage == "served" else stage)
            found = evaluator.evaluate(source, data, stage=stage)
            assert found.metrics == pytest.approx(expected.metrics, abs=1e-12)
            assert found.stage == expected.stage
            assert found.per_user["rank"].to_list() == expected.per_user["rank"].to_list()
    with pytest.raises(RunError, match="not of llm"):
        evaluator.evaluate(Recommender.load(store.export), data, stage="llm")
    changed = Recommender.load(store.export)
    changed.remove_items(["i3"])
    with pytest.raises(RunError, match="since this was loaded"):
        evaluator.evaluate(changed, data)


def test_a_run_and_its_recommender_have_the_same_figures(store: Store) -> None:
    evaluator = Evaluator(METRICS, filter_seen=False)
    found = evaluator.evaluate(store.run.recommender("undistilled"), store.data)
    assert found.metrics == evaluator.evaluate(store.run, store.data, stage="undistilled").metrics


def test_a_recommender_of_any_scorer_is_evaluated(store: Store) -> None:
    """Its lists are what it recommends."""
    data: Dataset = replace(store.data, catalogue=FRAME)
    recommender = asked(Transitions())
    found = Evaluator(METRICS).evaluate(recommender, data)
    ranks = []
    for position in data.test.tolist():
        history = [f"i{item}" for item in data.history(position)]
        answer = recommender.recommend_many([Request(history, k=ITEMS)])[0]
        score = {item.item_id: item.score for item in answer.items}
        true = score.get(f"i{data.items[position]}", -1.0)
        ranks.append(sum(value >= true for value in score.values()) if true >= 0 else None)
    assert [rank if rank < 10**6 else None for rank in found.per_user["rank"].to_list()] == ranks
    assert found.metrics["ndcg@10"] > 0.5
