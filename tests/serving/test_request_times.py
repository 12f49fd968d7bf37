"""Models that read when items were chosen, from a run, an export and frames: all say the same."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from evaluation.examples import chain_dataset
from made_once import MadeOnce

from llmd4rec import Dataset, Evaluator, Recommender, Run, SASRec
from llmd4rec.errors import DataError
from llmd4rec.export.write import export_run
from llmd4rec.inference.types import Request

DAY = 86_400
NOW = 1_700_000_000
HISTORY = ["i3", "i4", "i5"]
TIMES = [NOW - 30 * DAY, NOW - 2 * DAY, NOW - 60]


@pytest.fixture(scope="module")
def folder(made_once: MadeOnce) -> Path:
    """A run whose model reads times, and its export."""

    def make(folder: Path) -> None:
        data = chain_dataset(users=30, items=12, length=8)
        gaps = np.random.default_rng(0).integers(1, 40 * DAY, len(data.items))
        dataclasses.replace(data, times=NOW - 10_000 * DAY + np.cumsum(gaps)).save(folder / "data")
        model = SASRec(dim=8, heads=2, max_length=6, item_features="id", event_features=["time_gaps"])
        training = {"model": {"epochs": 2, "batch": 64, "warmup": 2, "learning_rate": 0.05, "ema": 0.0}}
        model.fit(Dataset.load(folder / "data"), folder / "run", training=training, device="cpu")
        export_run(Run.open(folder / "run"), Dataset.load(folder / "data"), folder / "export")

    return made_once("times", make)


@pytest.fixture(params=["run", "export"])
def recommender(folder: Path, request: pytest.FixtureRequest) -> Recommender:
    return Recommender.load(folder / request.param)


def test_times_are_read_and_needed(recommender: Recommender, folder: Path) -> None:
    assert "times" in recommender.info.reads
    answer = recommender.recommend(HISTORY, times=TIMES, now=NOW)
    expected = Run.open(folder / "run").recommender().recommend(HISTORY, times=TIMES, now=NOW)
    assert [item.item_id for item in answer.items] == [item.item_id for item in expected.items]
    scores = [item.score for item in answer.items]
    assert scores == pytest.approx([item.score for item in expected.items], abs=1e-4)
    later = recommender.recommend(HISTORY, times=TIMES, now=NOW + 300 * DAY)
    assert [item.score for item in later.items] != pytest.approx(scores, abs=1e-6)
    with pytest.raises(DataError, match="when each item of a history was chosen") as caught:
        recommender.recommend(HISTORY)
    assert "times" in caught.value.remedy
    assert recommender.recommend(["who?"]).fallback == "popular"  # nothing is read


def test_the_current_time_is_the_default(recommender: Recommender) -> None:
    now = datetime.now(UTC)
    recent = [now.replace(microsecond=0)] * 3
    answer = recommender.recommend(HISTORY, times=recent, now=now)
    assert recommender.recommend(HISTORY, times=recent).items == answer.items


def test_unknown_items_take_their_times_with_them(recommender: Recommender) -> None:
    with_unknown = recommender.recommend(["i3", "who?", "i4", "i5"], times=[TIMES[0], 5, *TIMES[1:]], now=NOW)
    assert with_unknown.items == recommender.recommend(HISTORY, times=TIMES, now=NOW).items


def test_lists_and_frames_give_what_one_history_gives(recommender: Recommender) -> None:
    expected = recommender.recommend(HISTORY, times=TIMES, now=NOW)
    several = recommender.recommend([["i1"], HISTORY], times=[[NOW - 5], TIMES], now=NOW)
    assert [item.item_id for item in several[1].items] == [item.item_id for item in expected.items]
    shuffled = pl.DataFrame({"user_id": [1, 1, 1], "item_id": HISTORY, "timestamp": TIMES})[[2, 0, 1]]
    seconds = recommender.recommend(shuffled, now=NOW)
    moments = shuffled.with_columns(pl.from_epoch("timestamp").dt.replace_time_zone("UTC"))
    for table in (seconds, recommender.recommend(moments, now=NOW)):
        assert table["item_id"].to_list() == [item.item_id for item in expected.items]
        assert table["score"].to_list() == pytest.approx([item.score for item in expected.items], abs=1e-4)
    with pytest.raises(DataError, match="when each item of a history was chosen"):
        recommender.recommend(shuffled.drop("timestamp"), now=NOW)


def test_reasons_leave_an_item_out_with_its_time(recommender: Recommender) -> None:
    items = recommender.recommend(HISTORY, times=TIMES, now=NOW, explain=True).items
    best = items[0]
    assert best.reasons is not None
    effect = {reason.item_id: reason.effect for reason in best.reasons}["i3"]
    relative = []  # to the catalogue's mean score, with the item and without
    for start in (0, 1):
        request = Request(HISTORY[start:], 12, filter_seen=False, times=TIMES[start:], now=NOW)
        scores = {item.item_id: item.score for item in recommender.recommend_many([request])[0].items}
        relative.append(scores[best.item_id] - float(np.mean(list(scores.values()))))
    assert effect == pytest.approx(relative[0] - relative[1], abs=1e-5)


def test_times_are_read_when_it_is_evaluated(recommender: Recommender, folder: Path) -> None:
    """As for the run: a request is made when the target was chosen."""
    data, evaluator = Dataset.load(folder / "data"), Evaluator(["ndcg@5"])
    expected = evaluator.evaluate(Run.open(folder / "run"), data)
    found = evaluator.evaluate(recommender, data)
    assert found.per_user["rank"].to_list() == expected.per_user["rank"].to_list()
