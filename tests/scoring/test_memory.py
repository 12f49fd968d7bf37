"""A memory's scores against loops over dense arrays, and what observing, saving and cutting must not change."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.examples import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmd4rec.data.arrays import NO_TIME
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError, ModelError
from llmd4rec.evaluation import Evaluator
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.counting import Log, count_pairs
from llmd4rec.scoring.memory.recency import Events, RecencyScorer
from llmd4rec.scoring.memory.settings import Content, Memory, Recency, Transitions
from llmd4rec.scoring.memory.sparse import SparseRowQuery, SparseRows
from llmd4rec.scoring.memory.state import CountedMemory, count_memory
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.rows import RowQuery

from .memory_oracle import (
    DAY,
    content_scores,
    counted,
    ndcg10,
    pairs,
    random_log,
    random_texts,
    recency_counts,
    transition_scores,
)

ITEMS = 12
SEEDS = st.integers(0, 100_000)
TRANSITIONS = st.builds(
    Transitions,
    gaps=st.integers(1, 4),
    reverse=st.sampled_from([0.0, 0.5, 1.0]),
    half_life_days=st.sampled_from([3.0, 30.0]),
    recent_weight=st.sampled_from([0.0, 1.0, 8.0]),
    ties=st.sampled_from(["as-ordered", "half"]),
)
RECENCY = st.builds(
    Recency, half_life_days=st.sampled_from([None, 0.5, 4.0]), window_days=st.sampled_from([None, None, 14.0, 3.25])
)


def counted_memory(asked: Memory, data: Dataset, texts: NDArray[np.float32] | None, **more: Any) -> CountedMemory:
    found = count_memory(asked, data, texts, **more)
    assert found is not None
    return found


def asked_for(data: Dataset, positions: list[int]) -> tuple[list[list[int]], list[None], list[int | None]]:
    """Histories before some positions, and when they are answered."""
    now = [None if data.times is None else int(data.times[position]) for position in positions]
    return [data.history(position).tolist() for position in positions], [None] * len(positions), now


# ---- scores -----------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, timed=st.booleans(), transitions=TRANSITIONS, recency=RECENCY, cut=st.sampled_from([None, 0.4, 0.8]))
def test_scores_are_those_of_counting_by_hand(
    seed: int, timed: bool, transitions: Transitions, recency: Recency, cut: float | None
) -> None:
    """Of the training part, and of everything before a moment; of each target for its own moment."""
    data, texts = random_log(seed, timed=timed), random_texts(seed, ITEMS)
    before = None if cut is None or data.times is None else int(np.quantile(data.times, cut))
    weights = {"content": 1.5, "transitions": 0.5, "recency": 0.25}
    asked = Memory(content=Content(dim=99), transitions=transitions, recency=recency if timed else None)
    memory = counted_memory(asked, data, texts, before=before).with_weights(weights)

    counts = counted(data, before)
    total = pairs(data, counts, transitions, before)  # without age where targets are of all times
    positions = [int(position) for position in (*data.valid, *data.test)]
    windows, times, now = asked_for(data, positions)
    found = {name: part.prepare(windows, times, now).scores() for name, part in memory.parts.items()}
    summed = memory.prepare(windows, times, now).scores()
    for place, history in enumerate(windows):
        expected = {
            "content": content_scores(history, texts, Content()),
            "transitions": transition_scores(history, total, transitions),
        }
        if timed:
            then = now[place]
            assert then is not None
            then = then if before is None else min(then, before)
            expected["recency"] = np.log1p(recency_counts(data, counts, recency, then))
        for name, scores in expected.items():
            np.testing.assert_allclose(found[name][place], scores, rtol=2e-5, atol=2e-6)
        every = sum(weights[name] * scores for name, scores in expected.items())
        np.testing.assert_allclose(summed[place], every, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_memory_is_evaluated_like_a_model(seed: int) -> None:
    """The figures of an evaluation are those of ranking by dense scores."""
    data, texts = random_log(seed, items=30, users=40), random_texts(seed, 30)
    memory = counted_memory(Memory(), data, texts)
    reads = {"recency": memory.reads, "memory": memory.reads}
    for name, part in {**memory.parts, "memory": memory}.items():
        scorer = RowsScorer(part, name, max_length=memory.max_length, reads=reads.get(name, ()))
        found = Evaluator(["ndcg@10"]).evaluate(scorer, data)
        windows, times, now = asked_for(data, data.test.tolist())
        scores = part.prepare(windows, times, now).scores().astype(np.float64)
        expected = [
            ndcg10(scores[place], windows[place], int(data.items[position]))
            for place, position in enumerate(data.test.tolist())
        ]
        assert found.metrics["ndcg@10"] == pytest.approx(np.mean(expected), abs=1e-9)


def test_some_rows_and_some_histories_have_the_scores_of_all() -> None:
    data, texts = random_log(3), random_texts(3, ITEMS)
    memory = counted_memory(Memory(), data, texts)
    query = memory.prepare(*asked_for(data, data.test.tolist()))
    every = query.scores()
    rows = np.array([7, 0, 11])
    np.testing.assert_allclose(query.scores(rows), every[:, rows], rtol=1e-5)
    np.testing.assert_allclose(query.take(np.array([4, 1])).scores(), every[[4, 1]], rtol=1e-5)
    np.testing.assert_allclose(query.take(slice(2, 5)).scores(rows), every[2:5, rows], rtol=1e-5)


def test_a_history_without_items_is_answered_by_what_is_chosen_now() -> None:
    data, texts = random_log(4), random_texts(4, ITEMS)
    memory = counted_memory(Memory(), data, texts)
    assert memory.recency is not None
    now = int(data.event_times.max()) if data.event_times is not None else 0
    query = memory.prepare([[]], [None], [now])
    recent = memory.recency.prepare([[]], [None], [now]).scores()
    np.testing.assert_allclose(query.scores(), memory.weights["recency"] * recent, rtol=1e-6)


def test_recency_counts_nothing_at_or_behind_the_moment() -> None:
    """Not even in the training part: the target's own day would point at it."""
    data = make_dataset([[0, 1, 2, 3], [1, 4, 5, 0]], 6, [[10, 20, 30, 40], [20, 20, 90, 95]])
    memory = counted_memory(Memory(content=None, recency=Recency(half_life_days=None)), data, None)
    assert memory.recency is not None
    scores = memory.recency.prepare([[], [], []], [None] * 3, [20, 21, None]).scores()
    # Training events: 0 at 10, 1 at 20, 1 at 20, 4 at 20.
    expected = [[1, 0, 0, 0, 0, 0], [1, 2, 0, 0, 1, 0], [1, 2, 0, 0, 1, 0]]
    np.testing.assert_allclose(np.expm1(scores), expected, atol=1e-6)


def test_events_without_a_time_do_not_count_as_recent() -> None:
    data = make_dataset([[0, 1, 2, 3, 4]], 6, [[NO_TIME, 10, NO_TIME, 30, 40]])
    memory = counted_memory(Memory(content=None, recency=Recency(half_life_days=None)), data, None)
    assert memory.recency is not None
    scores = memory.recency.prepare([[]], [None], [100]).scores()
    np.testing.assert_allclose(np.expm1(scores), [[0, 1, 0, 0, 0, 0]], atol=1e-6)


def test_what_cannot_be_counted_is_said() -> None:
    timeless = random_log(0, timed=False)
    memory = counted_memory(Memory(), timeless, None)
    assert list(memory.parts) == ["transitions"]
    assert memory.missing == {"content": "the items have no texts", "recency": "the data set has no times"}
    assert memory.reads == ()
    assert count_memory(Memory(transitions=None), timeless, None) is None
    with pytest.raises(DataError, match="no times"):
        count_memory(Memory(), timeless, None, before=5)
    with pytest.raises(ModelError, match="text vectors of 5 items"):
        count_memory(Memory(), timeless, random_texts(0, 5))
    with pytest.raises(ModelError, match="NaN"):
        count_memory(Memory(), timeless, np.full((ITEMS, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="weight for recncy"):
        Memory(weights={"recncy": 1.0})


@pytest.mark.filterwarnings("error")
def test_an_event_decades_after_the_log_counts_alone() -> None:
    memory = counted_memory(Memory(content=None), random_log(4), None)
    recency = memory.recency
    assert recency is not None
    later = 30 * 365 * DAY
    memory.observe([1], 2, later)
    scores = recency.prepare([[1]], [None], [later + 1]).scores()[0]
    assert scores.argmax() == 2
    assert np.isfinite(scores).all()
    assert np.delete(scores, 2).max() == 0


@pytest.mark.parametrize("order", ["C", "F"])
def test_entries_are_added_where_they_belong_in_any_layout(order: Any) -> None:
    rows = SparseRows(np.array([0, 2, 3]), np.array([1, 4, 0], np.int32), np.array([[1.0], [2.0], [4.0]], np.float32))
    query = SparseRowQuery.of_sums(rows, [[0], [1, 0], []], [[1.0], [1.0, 0.5], []], 5)
    total = np.asarray(np.arange(15, dtype=np.float32).reshape(3, 5), order=order)
    expected = total + 2 * query.scores()
    query.add_to(total, 2.0)
    np.testing.assert_array_equal(total, expected)
    assert query.scores().tolist() == [[0, 1, 0, 0, 2], [4, 0.5, 0, 0, 1], [0, 0, 0, 0, 0]]


# ---- content ----------------------------------------------------------------------------------------------------
def test_reduced_content_keeps_the_products_best() -> None:
    """Vectors in a plane of three directions lose nothing at width 3; new texts land where they would have been."""
    rng = np.random.default_rng(0)
    texts = (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 20)) + 1).astype(np.float32)
    whole, reduced = (ContentScorer.of(Content(dim=dim), texts) for dim in (20, 3))
    assert reduced.vectors_ID.shape == (40, 3)
    asked: Any = ([[1, 2, 3], [9]], [None, None], [None, None])
    np.testing.assert_allclose(reduced.prepare(*asked).scores(), whole.prepare(*asked).scores(), atol=1e-4)
    np.testing.assert_allclose(reduced.embed(texts), reduced.vectors_ID, atol=1e-5)
    grown = reduced.with_items([40], {"content": reduced.embed(texts[7:8])})
    scores = grown.prepare([[7]], [None], [None]).scores()
    assert scores[0, 40] == pytest.approx(1.0, abs=1e-4)
    assert reduced.num_rows == 40
    assert grown.with_items([41], {}).prepare([[41]], [None], [None]).scores().max() == 0.0


def test_content_that_is_cut_is_what_fewer_directions_would_have_been() -> None:
    texts = random_texts(3, ITEMS)
    cut = ContentScorer.of(Content(dim=6), texts).cut(3)
    fewer = ContentScorer.of(Content(dim=3), texts)
    np.testing.assert_allclose(cut.vectors_ID, fewer.vectors_ID, atol=1e-5)
    np.testing.assert_allclose(cut.embed(texts), fewer.embed(texts), atol=1e-5)
    assert cut.cut(3) is cut.cut(10) is cut
    as_they_are = ContentScorer.of(Content(dim=1000, whitening=0.0), texts)
    assert as_they_are.cut(3) is as_they_are  # these are no principal directions


def test_beside_a_model_content_has_fewer_directions_and_the_counts_are_the_same(tmp_path: Path) -> None:
    data, texts = random_log(4), random_texts(4, ITEMS)
    alone = counted_memory(Memory(content=Content(dim=6, dim_beside=2)), data, texts)
    beside = alone.beside_model()
    assert alone.content is not None
    assert beside.content is not None
    assert (alone.content.vectors_ID.shape[1], beside.content.vectors_ID.shape[1]) == (6, 2)
    assert data.times is not None
    alone.observe([1], 2, int(data.times.max()) + DAY)
    asked: Any = ([[1, 2]], [None], [None])
    for name in ("transitions", "recency"):
        found, expected = (memory.parts[name].prepare(*asked).scores() for memory in (beside, alone))
        np.testing.assert_array_equal(found, expected)
    beside.save(tmp_path / "memory")
    loaded = CountedMemory.load(tmp_path / "memory")
    assert loaded.settings == beside.settings
    np.testing.assert_allclose(loaded.prepare(*asked).scores(), beside.prepare(*asked).scores(), rtol=1e-5, atol=1e-6)
    assert beside.beside_model() is beside
    without = counted_memory(Memory(content=None), data, None)
    assert without.beside_model() is without


# ---- leaving out the step that is predicted ----------------------------------------------------------------------
def test_a_training_step_is_left_out_of_the_counts() -> None:
    """0 → 1 by two users; of one of them it is the step to predict, so that one user's is left."""
    data = make_dataset([[0, 1, 2, 3], [0, 1, 4, 5]], 6)  # training: 0, 1 of both
    transitions = counted_memory(Memory(content=None, recency=None), data, None).transitions
    assert transitions is not None
    plain = transitions.prepare([[0]], [None], [None]).scores()
    honest = transitions.prepare_leaving_out([[0]], [None], [None], [1]).scores()
    np.testing.assert_allclose(plain, np.log1p(3 * np.array([[0, 2, 0, 0, 0, 0]])), atol=1e-6)
    np.testing.assert_allclose(honest, np.log1p(3 * np.array([[0, 1, 0, 0, 0, 0]])), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, transitions=TRANSITIONS)
def test_leaving_a_step_out_is_counting_without_it(seed: int, transitions: Transitions) -> None:
    """Repeated items and moments too: the item may stand in its own history."""
    data = random_log(seed, users=4, items=5)
    assert data.times is not None
    before = int(np.quantile(data.times, 0.7))
    memory = count_memory(Memory(content=None, recency=None, transitions=transitions), data, None, before=before)
    scorer = None if memory is None else memory.transitions
    assert scorer is not None
    rng, counts = np.random.default_rng(seed), np.array(counted(data, before))
    steps = [p for p in np.flatnonzero(counts) if p > data.offsets[data.users_of(np.array([p]))[0]]]
    position = int(rng.choice(steps)) if steps else None
    if position is None:
        return
    without = counts.copy()
    without[position] = False
    total = pairs(data, without.tolist(), transitions, before)
    history = data.history(position).tolist()
    times = data.times[position - len(history) : position].tolist()
    found = scorer.prepare_leaving_out([history], [times], [int(data.times[position])], [int(data.items[position])])
    expected = transition_scores(history, total, transitions)
    np.testing.assert_allclose(found.scores()[0], expected, rtol=1e-4, atol=1e-5)


# ---- observing --------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, transitions=TRANSITIONS, recency=RECENCY, share=st.sampled_from([0.0, 0.3, 0.9]))
def test_observing_is_counting_anew(seed: int, transitions: Transitions, recency: Recency, share: float) -> None:
    """A prefix of the log in time is counted and the rest observed; new users and items are among it."""
    data, texts = random_log(seed), random_texts(seed, ITEMS)
    assert data.times is not None
    asked = Memory(content=Content(), transitions=transitions, recency=recency)
    start, end = int(np.quantile(data.times, share)), int(data.times.max()) + 5 * DAY
    memory, expected = (counted_memory(asked, data, texts, before=moment) for moment in (start, end))
    users = data.users_of(np.arange(data.num_interactions))
    order = np.argsort(data.times, kind="stable")
    for position in order[data.times[order] >= start].tolist():
        first = int(data.offsets[users[position]])
        memory.observe(
            data.items[first:position].tolist(),
            int(data.items[position]),
            int(data.times[position]),
            data.times[first:position].tolist(),
        )
    memory.advance(end)
    assert memory.as_of == expected.as_of
    for now in (end, end - 3 * DAY, None):
        queries = [each.prepare([[0, 1], [5]], [None] * 2, [now] * 2) for each in (memory, expected)]
        np.testing.assert_allclose(queries[0].scores(), queries[1].scores(), rtol=1e-3, atol=1e-4)


def test_a_new_item_is_scored_by_its_text_and_then_by_what_is_observed() -> None:
    data, texts = random_log(1), random_texts(1, ITEMS)
    memory = counted_memory(Memory(), data, texts)
    assert memory.content is not None
    assert data.times is not None
    grown = memory.with_items([ITEMS], {"content": memory.content.embed(texts[5:6])})
    now = int(data.times.max()) + 1

    def scores(name: str) -> NDArray[np.float32]:
        found: NDArray[np.float32] = grown.parts[name].prepare([[5]], [None], [now + 1]).scores()[0]
        return found

    assert grown.num_rows == ITEMS + 1
    assert scores("content")[ITEMS] == pytest.approx(1.0, abs=1e-4)
    assert (scores("transitions")[ITEMS], scores("recency")[ITEMS]) == (0, 0)
    grown.observe([5], ITEMS, now)
    assert np.expm1(scores("transitions")[ITEMS]) == pytest.approx(3.0, rel=1e-5)
    assert np.expm1(scores("recency")[ITEMS]) == pytest.approx(1.0, rel=1e-4)
    for then in (now + 1, now, now - 3 * DAY):  # what was there before still answers
        assert memory.prepare([[5], [5]], [None] * 2, [then, then - 5]).scores().shape == (2, ITEMS)


def test_a_late_event_counts_too() -> None:
    events = Events(Recency(half_life_days=2.0), np.array([0, 10 * DAY]), np.array([0, 1], np.int32), 3)
    scorer = RecencyScorer(events, 3)
    scorer.observe(2, 5 * DAY)
    found = scorer.prepare([[]] * 2, [None] * 2, [6 * DAY, 11 * DAY]).scores()
    expected = [[2**-3, 0, 2**-0.5], [2**-5.5, 2**-0.5, 2**-3]]
    np.testing.assert_allclose(np.expm1(found), expected, rtol=1e-5)


def test_counts_of_years_stay_finite() -> None:
    """Ageing counts are stored as of one moment, which moves on before numbers grow beyond any bound."""
    transitions = Transitions(half_life_days=1.0, recent_weight=2.0)
    scorer = TransitionScorer.count(
        transitions, Log(np.array([0, 1], np.int32), np.array([0, 2]), np.ones(2, bool), np.array([0, 0]), 3), 0
    )
    recency = RecencyScorer(Events(Recency(half_life_days=1.0), np.array([0]), np.array([0], np.int32), 3), 3)
    for day in range(0, 4000, 7):
        scorer.observe([0], 2, day * DAY)
        recency.observe(2, day * DAY)
    scores = scorer.prepare([[0]], [None], [None]).scores()
    kept = 1 / (1 - 2.0**-7)
    np.testing.assert_allclose(np.expm1(scores) / 3, [[0, 1, 572 + 2 * kept]], rtol=1e-5, atol=1e-6)
    found = recency.prepare([[]], [None], [day * DAY + 1]).scores()
    np.testing.assert_allclose(np.expm1(found), [[0, 0, kept]], rtol=1e-4, atol=1e-12)


def test_readers_see_whole_rows_while_events_are_observed() -> None:
    data, texts = random_log(2), random_texts(2, ITEMS)
    memory = counted_memory(Memory(), data, texts)
    start = int(data.times.max()) if data.times is not None else 0
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            last = -np.inf
            while not done.is_set():
                query = memory.transitions.prepare([[0]], [None], [None])  # type: ignore[union-attr]
                columns, values = query.entries(0)
                assert (np.diff(columns) > 0).all()
                assert len(columns) == len(values)
                assert np.isfinite(memory.prepare([[0]], [None], [start + 10**6]).scores()).all()
                assert values.sum() >= last * (1 - 1e-4)  # counts grow, but for what they age meanwhile
                last = float(values.sum())
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    for number in range(1500):
        memory.observe([0], number % ITEMS, start + number)
    done.set()
    for each in readers:
        each.join()
    assert failures == []


# ---- counting in bounded memory -----------------------------------------------------------------------------------
@settings(max_examples=20, deadline=None)
@given(
    seed=SEEDS, transitions=TRANSITIONS, pairs_at_once=st.sampled_from([1, 7, 50]), kept=st.sampled_from([1, 3, 1000])
)
def test_counting_a_few_rows_at_a_time_changes_nothing(
    seed: int, transitions: Transitions, pairs_at_once: int, kept: int
) -> None:
    data = random_log(seed)
    counts = counted(data, None)
    log = Log(data.items, data.offsets, np.array(counts), data.times, data.num_items)
    asked = transitions.model_copy(update={"max_per_row": kept})
    assert data.times is not None
    now = int(data.times.max())
    whole, parts = count_pairs(log, asked, now), count_pairs(log, asked, now, pairs_at_once)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    total = pairs(data, counts, transitions, now)
    starts, columns, values_NC = whole
    values = values_NC @ np.array([1, asked.recent_weight], np.float32)
    for row in range(ITEMS):
        largest = np.sort(total[row][total[row] > 0])[::-1][:kept]
        inside = slice(starts[row], starts[row + 1])
        np.testing.assert_allclose(np.sort(values[inside])[::-1], largest, rtol=1e-5)
        np.testing.assert_allclose(values[inside], total[row][columns[inside]], rtol=1e-5)
        assert (np.diff(columns[inside]) > 0).all()


def test_a_full_row_drops_its_smallest_entries_as_it_grows() -> None:
    """By what the numbers of an entry weigh together; nothing of what is kept is lost."""
    mix, rng = np.array([1, 10], np.float32), np.random.default_rng(0)
    rows = SparseRows(np.array([0, 2]), np.array([1, 4], np.int32), np.array([[900, 0], [0, 90]], np.float32), 20)
    dense = np.zeros((1000, 2))
    dense[[1, 4]] = [[900, 0], [0, 90]]
    for column in rng.permutation(1000).tolist():
        numbers = (float(column), 0.5)
        dense[column] += numbers
        rows.add(0, column, numbers, mix)
    columns, values = rows.row(0)
    assert (np.diff(columns) > 0).all()
    assert len(columns) < 100
    np.testing.assert_allclose(values, dense[columns], rtol=1e-5)
    assert set(np.argsort(-(dense @ mix))[:20].tolist()) <= set(columns.tolist())
    starts, found, _ = rows.arrays()
    assert (starts.tolist(), found.tolist()) == ([0, len(columns)], columns.tolist())
    assert [each.tolist() for each in rows.row(7)] == [[], []]


# ---- candidates -------------------------------------------------------------------------------------------------
def are_the_best(query: RowQuery, m: int) -> None:
    every = query.scores()
    for place, found in enumerate(query.candidates(m)):
        assert len(set(found.rows.tolist())) == len(found.rows) >= min(m, query.num_rows)
        np.testing.assert_allclose(found.scores, every[place, found.rows], rtol=1e-6)
        others = np.delete(every[place], found.rows)
        assert (others <= found.bound + 1e-6).all()
        best = np.sort(every[place])[::-1][: min(m, query.num_rows)]
        np.testing.assert_allclose(np.sort(found.scores)[::-1][: len(best)], best, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, m=st.integers(1, 20), observed=st.integers(0, 30))
def test_candidates_are_the_best_rows(seed: int, m: int, observed: int) -> None:
    data = random_log(seed, items=15)
    memory = counted_memory(Memory(content=None), data, None)
    rng, now = np.random.default_rng(seed), 2000 * DAY
    for number in range(observed):
        memory.observe([int(rng.integers(15))], int(rng.integers(15)), now + number)
    for part in memory.parts.values():
        are_the_best(part.prepare([[3], [1, 2, 4], []], [None] * 3, [now + 99, now + 99, None]), m)
        are_the_best(part.prepare([[3]], [None], [1010 * DAY]), m)


def test_the_most_chosen_of_a_large_catalogue_are_at_hand_while_it_changes() -> None:
    rng = np.random.default_rng(0)
    items = (rng.zipf(1.3, 40_000) % 9000).astype(np.int32)
    events = Events(Recency(), np.sort(rng.integers(0, 90 * DAY, 40_000)), items, 9000)
    scorer = RecencyScorer(events, 9000)
    are_the_best(scorer.prepare([[]], [None], [91 * DAY]), 50)
    for number in range(3000):
        scorer.observe(int(rng.integers(9000)), 91 * DAY + number)
        if number % 500 == 0:
            are_the_best(scorer.prepare([[]], [None], [92 * DAY]), 50)


def test_entries_of_many_histories_are_sums_of_rows() -> None:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.3, (20, 20)).astype(np.float32)
    row, column = np.nonzero(dense)
    rows = SparseRows(np.searchsorted(row, np.arange(21)), column.astype(np.int32), dense[row, column][:, None])
    picks = [[1, 2, 2], [], [19], [25]]
    weights = [[1.0, 0.5, 2.0], [], [3.0], [1.0]]
    query = SparseRowQuery.of_sums(rows, picks, weights, 20)
    expected = np.stack([dense[1] + 2.5 * dense[2], np.zeros(20), 3 * dense[19], np.zeros(20)])
    np.testing.assert_allclose(query.scores(), expected, rtol=1e-6)


# ---- in and out -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("observed", [0, 20])
@pytest.mark.parametrize("dim", [3, 128])
def test_a_saved_memory_answers_as_before(tmp_path: Path, observed: int, dim: int) -> None:
    data, texts = random_log(5), random_texts(5, ITEMS)
    assert data.times is not None
    asked = Memory(content=Content(dim=dim), transitions=Transitions(half_life_days=20.0, ties="half"))
    before = int(np.quantile(data.times, 0.7))
    memory = counted_memory(asked, data, texts, before=before).with_weights({"content": 2.0, "recency": 1.0})
    for number in range(observed):
        memory.observe([number % 5], number % ITEMS, before + number * 7000)
    memory.save(tmp_path / "memory")
    loaded = CountedMemory.load(tmp_path / "memory")
    assert (loaded.settings, loaded.weights, loaded.as_of) == (memory.settings, memory.weights, memory.as_of)
    for now in (before, before + 10 * DAY, before - 20 * DAY, None):
        for name, part in memory.parts.items():
            found, expected = (
                each.prepare([[1, 2], []], [None] * 2, [now] * 2).scores() for each in (loaded.parts[name], part)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    loaded.observe([1], 2, before + 30 * DAY)
    memory.observe([1], 2, before + 30 * DAY)
    found, expected = (each.prepare([[1]], [None], [None]).scores() for each in (loaded, memory))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def _saved(folder: Path) -> Path:
    memory = counted_memory(Memory(), random_log(6), random_texts(6, ITEMS))
    memory.save(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("content", lambda array: array[:-1]),
        ("content", lambda array: np.where(array == array.max(), np.nan, array).astype(np.float32)),
        ("content", lambda array: array.astype(np.float64)),
        ("transition_items", lambda array: array + 1),
        ("transition_items", lambda array: array[::-1].copy()),
        ("transition_starts", lambda array: array + (array > 0)),
        ("transition_starts", lambda array: np.concatenate([array[:1] + 1, array[1:]])),
        ("transition_counts", lambda array: -array),
        ("recency_items", lambda array: array + 100),
        ("recency_items", lambda array: array[1:]),
        ("recency_times", None),
    ],
)
def test_a_damaged_memory_is_refused(tmp_path: Path, name: str, change: Any) -> None:
    folder = _saved(tmp_path / "memory")
    path = folder / f"{name}.npy"
    if change is None:
        path.unlink()
    else:
        changed = change(np.load(path))
        np.save(path, changed)
        about = json.loads((folder / "memory.json").read_text())
        about["arrays"][name] = [changed.dtype.str, list(changed.shape)]
        (folder / "memory.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=name):
        CountedMemory.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"items": 5},
        {"items": None},
        {"parts": ["content", "secret"]},
        {"settings": {"content": 3}},
        {"weights": {"content": "heavy"}},
        {"arrays": {"../../etc/passwd": ["<f4", [1]]}},
        {"as_of": "now"},
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = _saved(tmp_path / "memory")
    about = json.loads((folder / "memory.json").read_text())
    (folder / "memory.json").write_text(json.dumps(about | change))
    with pytest.raises(DataError):
        CountedMemory.load(folder)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "memory")
    path = folder / "transition_counts.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="transition_counts"):
        CountedMemory.load(folder)
    path.write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"\n"
    )
    with pytest.raises(DataError, match="transition_counts"):
        CountedMemory.load(folder)


def test_settings_are_data() -> None:
    asked = Memory(content=None, recency=Recency(window_days=14.0), weights={"transitions": 2.0})
    assert Memory.model_validate(asked.model_dump(mode="json")) == asked
    data = replace(random_log(0), text_fields=())
    assert counted_memory(asked, data, None).weights == {"transitions": 2.0, "recency": 0.0}
