"""A memory's scores against loops over dense arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.examples import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec.data.arrays import NO_TIME
from llmd4rec.errors import DataError, ModelError
from llmd4rec.evaluation import Evaluator
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.settings import Content, Memory, Recency, Transitions
from llmd4rec.scoring.memory.sparse import SparseRowQuery, SparseRows
from llmd4rec.scoring.memory.state import CountedMemory, count_memory

from .memories import ITEMS, RECENCY, SEEDS, TRANSITIONS, asked_for, counted_memory
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
    assert list(memory.parts) == ["transitions", "item_knn"]
    assert memory.missing == {"content": "the items have no texts", "recency": "the data set has no times"}
    assert memory.reads == ()
    assert count_memory(Memory(transitions=None, item_knn=None), timeless, None) is None
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
