"""A memory while events come: what observing and counting in parts must not change, and its best candidates."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmd4rec.scoring.memory.counting import Log, count_pairs
from llmd4rec.scoring.memory.recency import Events, RecencyScorer
from llmd4rec.scoring.memory.settings import Content, Memory, Recency, Transitions
from llmd4rec.scoring.memory.sparse import SparseRowQuery, SparseRows
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.rows import RowQuery

from .memories import ITEMS, RECENCY, SEEDS, TRANSITIONS, counted_memory
from .memory_oracle import (
    DAY,
    counted,
    pairs,
    random_log,
    random_texts,
)


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
