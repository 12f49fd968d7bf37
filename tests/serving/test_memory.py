"""A memory beside a model, where answers are given: scores, reasons, what is chosen now, events, new items."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from llmd4rec import Filters, NewItem, Recommender
from llmd4rec.data.arrays import NO_TIME
from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.memory import beside, subset
from llmd4rec.inference.new_items import ItemTexts, NewItemEmbedder
from llmd4rec.inference.types import ExportInfo
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.counting import DAY, Log
from llmd4rec.scoring.memory.recency import RecencyScorer
from llmd4rec.scoring.memory.settings import LAST, Content, Memory, Recency, Transitions
from llmd4rec.scoring.memory.state import CountedMemory
from llmd4rec.scoring.memory.transitions import TransitionScorer

from .by_hand import MeanEncoder, ids

ITEMS = 30
NOW = int(time.time()) - 1000
TABLE = np.random.default_rng(0).standard_normal((ITEMS, 4)).astype(np.float32)
TEXTS = np.random.default_rng(1).standard_normal((ITEMS, 6)).astype(np.float32)
TEXTS /= np.linalg.norm(TEXTS, axis=1, keepdims=True)
WEIGHTS = {"content": 2.0, "transitions": 1.5, "recency": 0.5}
#: As short as the other parts look back, and not whitened, which tests of the memory compute anew.
CONTENT = Content(whitening=0, last=LAST)
SETTINGS = Memory(content=CONTENT)
#: Three users; the last event is an hour before NOW.
HISTORIES = [[0, 1, 2, 3], [4, 1, 2, 5], [6, 7, 2]]
TIMES = [[NOW - day * DAY for day in (40, 30, 9, 2)], [NOW - day * DAY for day in (20, 6, 5, 1)]]
TIMES.append([NOW - 3 * DAY, NOW - DAY, NOW - 3600])


def counted(
    weights: Mapping[str, float] = WEIGHTS, histories: Sequence[Sequence[int]] = HISTORIES, shift: int = 0
) -> CountedMemory:
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    times = np.array([moment - shift for each in TIMES[: len(histories)] for moment in each], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, histories)])
    assert NO_TIME not in times
    log = Log(items, offsets, np.ones(len(items), dtype=bool), times, ITEMS)
    parts = {
        "content": ContentScorer.of(CONTENT, TEXTS),
        "transitions": TransitionScorer.count(Transitions(), log, None),
        "recency": RecencyScorer.count(Recency(half_life_days=4), log, None),
    }
    return CountedMemory(SETTINGS, parts, weights)


def served(memory: CountedMemory | None = None, weight: float = 0.7) -> Recommender:
    memory = counted() if memory is None else memory
    frame = pl.DataFrame(
        {"item_id": [f"i{row}" for row in range(ITEMS)], "colour": [f"c{row % 3}" for row in range(ITEMS)]}
    )
    kinds = kinds_of(frame)
    info = ExportInfo("hand", 0, "undistilled+memory", "mean", 4, ITEMS, 10, kinds, "", 0.0, "NDCG@10")
    scorer = beside(FactorRowScorer(MeanEncoder(), TABLE), memory, weight)
    return Recommender(info, scorer, Catalogue.of(frame, np.arange(ITEMS, 0, -1), kinds))


def counts_of(histories: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """What came after what, by hand: weight 1/gap, and half of the reverse."""
    counts = np.zeros((ITEMS, ITEMS))
    for history in histories:
        for gap in (1, 2, 3):
            for before, after in zip(history, history[gap:], strict=False):
                counts[before, after] += 1 / gap
                counts[after, before] += 0.5 / gap
    return counts


UNIT = TEXTS - TEXTS.mean(axis=0)
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)


def parts_of(history: Sequence[int], now: int = NOW, shift: int = 0) -> dict[str, NDArray[np.float64]]:
    """The scores of the model and of each part of the memory, from their definitions, times their weights."""
    newest = list(history)[::-1][:5]
    weights = np.array(LAST[: len(newest)])
    mean = weights @ UNIT[newest] / weights.sum()
    follows = weights @ counts_of(HISTORIES)[newest]
    recent = np.zeros(ITEMS)
    for each, moments in zip(HISTORIES, TIMES, strict=True):
        for item, moment in zip(each, moments, strict=True):
            if moment - shift < now:
                recent[item] += 2 ** (-(now - moment + shift) / (4 * DAY))
    return {
        "model": 0.7 * (TABLE @ TABLE[list(history)].mean(axis=0)),
        "reads-like": 2.0 * UNIT @ mean,
        "follows": 1.5 * np.log1p(3 * follows),
        "recent": 0.5 * np.log1p(recent),
    }


def test_scores_are_those_of_the_model_and_of_each_part() -> None:
    recommender = served()
    for history in ([2], [0, 1], [3, 9, 1, 2, 8, 4, 5]):
        expected = np.sum(list(parts_of(history).values()), axis=0)
        answer = recommender.recommend([f"i{row}" for row in history], ITEMS, now=NOW)
        assert len(answer.items) == ITEMS - len(set(history))
        rows = [int(name[1:]) for name in ids(answer)]
        np.testing.assert_allclose([item.score for item in answer.items], expected[rows], rtol=1e-4, atol=1e-5)
        assert answer.items[0].score == pytest.approx(np.delete(expected, history).max(), rel=1e-4)


def test_reasons_name_what_follows_what_reads_alike_and_what_is_chosen_now() -> None:
    history = [1, 9, 2]
    answer = served().recommend([f"i{row}" for row in history], ITEMS, explain=True, now=NOW)
    week = {2: 2, 3: 1, 1: 1, 5: 1, 6: 1, 7: 1}  # in the seven days before
    counts = counts_of(HISTORIES)
    whole = parts_of(history)
    kinds = set()
    for item in answer.items:
        row = int(item.item_id[1:])
        every: dict[tuple[str, str | None], float] = {}
        for out in history:
            less = parts_of([each for each in history if each != out])
            for kind in ("model", "reads-like", "follows"):
                effect = whole[kind] - less[kind]
                number = {"model": 1.0, "reads-like": UNIT[out] @ UNIT[row], "follows": counts[out, row]}[kind]
                value = effect[row] - effect.mean()
                if kind == "model" or (value > 0 and number > 0):
                    every[kind, f"i{out}"] = value
        recent = whole["recent"][row] - whole["recent"].mean()
        if recent > 0 and week.get(row):
            every["recent", None] = recent
        best = sorted(every.items(), key=lambda pair: -abs(pair[1]))[:3]
        assert item.reasons is not None
        assert [(reason.kind, reason.item_id) for reason in item.reasons] == [name for name, _ in best]
        np.testing.assert_allclose([reason.effect for reason in item.reasons], [value for _, value in best], atol=1e-4)
        for reason in item.reasons:
            kinds.add(reason.kind)
            if reason.kind == "follows":
                assert reason.number == pytest.approx(counts[int(str(reason.item_id)[1:]), row])
                assert reason.text == f"often follows {reason.item_id}"
            elif reason.kind == "reads-like":
                assert reason.text == f"reads like {reason.item_id}"
            elif reason.kind == "recent":
                assert reason.number == week[row]
                assert reason.text == f"chosen {'once' if week[row] == 1 else '2 times'} this week"
    assert kinds == {"model", "reads-like", "follows", "recent"}
    assert "often follows i2" in str(answer)


def test_who_has_no_history_gets_what_is_chosen_now() -> None:
    recommender = served()
    answer = recommender.recommend(["who?"], 4, now=NOW)
    recent = parts_of([0])["recent"] / 0.5
    assert answer.fallback == "recent"
    assert ids(answer) == [f"i{row}" for row in np.argsort(-recent, kind="stable")[:4]]
    np.testing.assert_allclose([item.score for item in answer.items], np.sort(recent)[::-1][:4], rtol=1e-5)
    assert "chosen most of late" in str(answer)
    some = recommender.recommend([], 3, popular_in={"colour": "c0"}, exclude=["i3"], now=NOW)
    assert ids(some)[0] == "i6"
    assert "i3" not in ids(some)
    before = recommender.recommend([], 1, now=NOW - 8 * DAY)
    assert ids(before) == ["i2"]  # nothing of what came later
    without = served(CountedMemory(SETTINGS, {"transitions": counted().parts["transitions"]}, WEIGHTS))
    assert without.recommend([], 1).fallback == "popular"
    both = recommender.recommend(pl.DataFrame({"user_id": ["a", "b"], "item_id": ["i1", "who?"]}), 2)
    assert both["item_id"].to_list()[2:] == ids(recommender.recommend([], 2))


def test_a_log_that_ended_long_ago_is_answered_for_its_end() -> None:
    old = served(counted(shift=3 * 365 * DAY))
    now_there = TIMES[2][-1] - 3 * 365 * DAY + 1
    assert old.recommend(["i8"], 5) == old.recommend(["i8"], 5, now=now_there)
    assert old.recommend([], 1).items[0].score > 0.9
    # A request's own time is taken as it is.
    assert old.recommend([], 1, now=NOW).items[0].score == pytest.approx(0, abs=1e-6)
    fresh = served()
    assert fresh.recommend([], 1).items[0].score < fresh.recommend([], 1, now=TIMES[2][-1] + 1).items[0].score


def test_an_event_is_counted_as_if_it_had_been_in_the_log() -> None:
    whole = counted()
    part = counted(histories=[HISTORIES[0], HISTORIES[1]])
    recommender, expected = served(part), served(whole)
    for place, (item, moment) in enumerate(zip(HISTORIES[2], TIMES[2], strict=True)):
        recommender.observe([f"i{row}" for row in HISTORIES[2][:place]], f"i{item}", moment)
    for history in ([], ["i2"], ["i7", "i6"]):
        found, wanted = (each.recommend(history, 12, now=NOW) for each in (recommender, expected))
        assert ids(found) == ids(wanted)
        np.testing.assert_allclose([i.score for i in found.items], [i.score for i in wanted.items], rtol=1e-5)
    with pytest.raises(RunError, match="events counted"):
        recommender.scorer()


def test_events_that_cannot_be_counted() -> None:
    recommender = served()
    before = recommender.recommend(["i2"], 5, now=NOW)
    with pytest.raises(DataError, match="no item 'new'"):
        recommender.observe(["i2"], "new", NOW)
    with pytest.raises(DataError, match="more than an hour ahead"):
        recommender.observe(["i2"], "i3", NOW + 10 * DAY)
    with pytest.raises(DataError, match="too large"):
        recommender.observe(["i2"], "i3", NOW * 1000)
    with pytest.raises(DataError, match="times has 1 entries"):
        recommender.observe(["i2", "i3"], "i4", NOW, times=[NOW])
    with pytest.raises(DataError, match="single text"):
        recommender.observe("i2", "i3", NOW)
    assert recommender.recommend(["i2"], 5, now=NOW) == before
    recommender.observe(["i2"], "i3", float(NOW) + 0.5)  # as time.time() gives it
    assert recommender.recommend(["i2"], 5, now=NOW + 1) != before


def test_items_added_are_ranked_by_their_text_at_once_and_by_counts_once_observed() -> None:
    recommender = served()
    memory = recommender._snapshot.memory
    assert memory is not None
    assert memory.content is not None
    head = {"memory": {"texts": {"encoder": "six numbers", "width": 6}}, "text_fields": []}
    texts = ItemTexts(Path("nowhere"), head, None)
    recommender._embedder = NewItemEmbedder(texts, {"content": memory.content.embed})
    recommender.add_items([NewItem("new", title="New", vector=5 * TEXTS[8])])
    scored = {item.item_id: item.score for item in recommender.recommend(["i8"], 99, now=NOW).items}
    whole = np.sum([parts_of([8])[kind][8] for kind in ("reads-like",)])  # as like item 8 as that is itself
    model = 0.7 * float(TABLE.mean(axis=0) @ TABLE[8])  # the model knows nothing of it
    assert scored["new"] == pytest.approx(float(whole) + model, rel=1e-4)
    assert set(ids(recommender.recommend(["new"], 99, now=NOW))) == {f"i{row}" for row in range(ITEMS)}
    recommender.observe(["i8"], "new", NOW)
    again = {item.item_id: item.score for item in recommender.recommend(["i8"], 99, now=NOW).items}
    assert again["new"] == pytest.approx(scored["new"] + 1.5 * np.log1p(3), rel=1e-4)  # chosen at this very moment
    assert ids(recommender.recommend(["new"], 1, now=NOW + 60, filters=Filters(allow=["i8", "i9"]))) == ["i8"]


def test_a_memory_of_a_part_of_a_catalogue_knows_only_that() -> None:
    rows = np.array([2, 3, 5, 0, 1])
    whole, part = counted(), subset(counted(), rows)
    times: list[None] = [None]
    query, some = (each.prepare([history], times, [NOW]) for each, history in ((whole, [1, 2]), (part, [4, 0])))
    np.testing.assert_allclose(some.scores(), query.scores()[:, rows], rtol=1e-6)
    assert subset(whole, np.arange(ITEMS)) is whole


def test_a_request_in_flight_is_not_disturbed_by_an_event_of_a_new_item() -> None:
    memory = counted()
    before = memory.with_weights(WEIGHTS)
    vectors = {"content": TEXTS[:1, :6]}
    memory = memory.with_items([ITEMS], vectors)
    memory.observe([2, 2], ITEMS, NOW)
    queries = []
    for each in (before, counted()):
        queries.append(each.prepare([[2], [3]], [None, None], [NOW, NOW]))
    np.testing.assert_array_equal(queries[0].scores(), queries[1].scores())


def test_answers_and_events_at_the_same_time() -> None:
    """Readers see a memory before or after an event, and the last answer knows them all."""
    recommender = served(counted(histories=[HISTORIES[0]]))
    stop, failures = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                answers = recommender.recommend([["i1", "i2"], [], ["i5"]], 10, explain=True)
                assert all(len(answer.items) >= 10 for answer in answers)
            except Exception as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    rng = np.random.default_rng(0)
    events = [rng.integers(0, ITEMS, 4).tolist() for _ in range(300)]
    for place, (*history, item) in enumerate(events):
        recommender.observe([f"i{row}" for row in history], f"i{item}", NOW - 300 + place)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    memory = recommender._snapshot.memory
    assert memory is not None
    assert memory.last_event == NOW - 1
