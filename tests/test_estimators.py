"""The Python interface: estimators that are fitted to a data set, and recommendations from lists and frames."""

from __future__ import annotations

import dataclasses
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import llmd4rec
from llmd4rec import BSARec, Dataset, Distillation, Filters, GRU4Rec, LiGR, NewItem, Recommender, Run, SASRec
from llmd4rec.errors import ConfigError, DataError, RunError
from llmd4rec.inference.moments import Moment
from llmd4rec.inference.query import parse_request
from llmd4rec.inference.types import Answer, Options, Request

TINY: dict[str, Any] = {"dim": 8, "max_length": 6, "item_features": "id"}
#: What a fit here takes besides: little time, and no device but the processor.
QUICK: dict[str, Any] = {
    "training": {"model": {"epochs": 2, "batch": 64, "warmup": 2, "learning_rate": 0.01, "ema": 0.0, "min_steps": 4}},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def recommender(chain_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return SASRec(**TINY, heads=2).fit(chain_data, tmp_path_factory.mktemp("fitted") / "run", **QUICK)


# ---- fitting ----------------------------------------------------------------------------------------------------
def test_every_public_name_is_there() -> None:
    assert all(getattr(llmd4rec, name) is not None for name in llmd4rec.__all__)
    with pytest.raises(AttributeError, match="it is now Distillation"):
        getattr(llmd4rec, "MutualDistillation")  # noqa: B009


@pytest.mark.parametrize("network", [SASRec, GRU4Rec, BSARec, LiGR])
def test_a_model_is_trained_alone_and_nothing_else(network: Any, chain_data: Dataset, tmp_path: Path) -> None:
    fitted = network(**TINY).fit(chain_data, tmp_path / "run", **QUICK)
    assert isinstance(fitted, Recommender)
    assert fitted.catalogue.ids == chain_data.item_ids
    assert fitted.catalogue.counts.tolist() == chain_data.train_counts.tolist()
    run = Run.open(tmp_path / "run")
    assert [stage.id for stage in run.plan] == list(run.record.stages) == ["undistilled"]
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"undistilled"}
    assert run.record.finished
    assert run.record.llm is None
    assert type(run.stage().network).__name__ == network.__name__


def test_a_distillation_trains_what_it_names(chain_data: Dataset, tmp_path: Path) -> None:
    distillation = Distillation(model=SASRec(**TINY), teachers=1, rounds=1, **QUICK)
    run = distillation.fit(chain_data, tmp_path / "run")
    assert list(run.record.stages) == ["undistilled", "teacher-1", "distilled-round-1"]
    assert run.record.llm is None
    assert set(run.record.stages["distilled-round-1"]["teachers"]) == {"teacher-1", "undistilled"}
    assert run.recommender("teacher-1").info.dim == 32
    assert run.recommender().info.dim == 8
    assert run.recommender().recommend(chain_data.item_ids[:2], k=3).items


def test_a_teacher_may_be_another_estimator(chain_data: Dataset, tmp_path: Path) -> None:
    teachers: list[GRU4Rec | dict[str, Any]] = [GRU4Rec(**TINY | {"dim": 16}), {"name": "sasrec", "dim": 12}]
    distillation = Distillation(model=SASRec(**TINY), teachers=teachers, rounds=1, **QUICK)
    run = distillation.fit(chain_data, tmp_path / "run")
    found = [(type(stage.network).__name__, stage.network.dim) for stage in run.plan if stage.role == "teacher"]
    assert found == [("GRU4Rec", 16), ("SASRec", 12)]


def test_nothing_is_trained_that_is_not_named() -> None:
    plain = Distillation(rounds=0)
    assert (plain.llm, plain.teachers) == (None, ())
    with pytest.raises(ValueError, match="nothing teaches: set llm, teachers"):
        Distillation(model=SASRec(dim=8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 1}, "did you mean 'seed'"),
        ({"training": {"crm": {"epochs": 1}}}, "'training.crm.epochs' is now 'training.model.epochs'"),
        ({"seed": -1}, "seed = -1"),
        ({"rounds": 1}, "takes no .rounds."),
        ({"model": SASRec(dim=8)}, "takes no .model."),
        ({"teachers": 1}, "takes no .teachers."),
    ],
)
def test_a_wrong_setting_of_a_fit_is_explained(
    settings: dict[str, Any], message: str, chain_data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        SASRec(**TINY).fit(chain_data, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_folder_is_gone_on_with_by_the_same_settings_alone(chain_data: Dataset, tmp_path: Path) -> None:
    first = SASRec(**TINY).fit(chain_data, tmp_path / "run", **QUICK)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    again = SASRec(**TINY).fit(chain_data, str(tmp_path / "run"), **QUICK)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")} == before
    history = chain_data.item_ids[:3]
    assert again.recommend(history) == first.recommend(history)
    with pytest.raises(RunError, match=r"other settings: model\.dim: 8 → 4"):
        SASRec(**TINY | {"dim": 4}).fit(chain_data, tmp_path / "run", **QUICK)


def test_a_fit_without_a_folder_has_one_of_its_own(chain_data: Dataset) -> None:
    runs = [Distillation(model=SASRec(**TINY), rounds=0, **QUICK).fit(chain_data) for _ in range(2)]
    assert runs[0].folder != runs[1].folder
    assert all(Path(tempfile.gettempdir()) in run.folder.parents for run in runs)


# ---- recommending -----------------------------------------------------------------------------------------------
def found(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


def test_one_history_and_several(recommender: Recommender) -> None:
    names = recommender.catalogue.ids
    one = recommender.recommend(names[:2], k=4).items
    assert [type(item.item_id) for item in one] == [str] * 4
    assert [item.score for item in one] == sorted((item.score for item in one), reverse=True)
    assert not {item.item_id for item in one} & set(names[:2])
    # Of other lengths, among others, and longer than what the model reads; one without a known item.
    histories = [names[:2], names[5:6], names[:8], (names[3], names[3]), []]
    several = recommender.recommend(histories, k=4)
    assert [len(each.items) for each in several] == [4, 4, 4, 4, 4]
    assert [each.fallback for each in several] == [None, None, None, None, "popular"]
    for history, answer in zip(histories, several, strict=True):
        alone = recommender.recommend(history, k=4)
        assert found(answer) == found(alone)
        assert [item.score for item in answer.items] == pytest.approx([item.score for item in alone.items], abs=1e-5)


def test_k_and_what_was_seen(recommender: Recommender, chain_data: Dataset, tmp_path: Path) -> None:
    names = recommender.catalogue.ids
    assert len(recommender.recommend(names[:2]).items) == 10
    assert len(recommender.recommend(names[:2], k=1000).items) == len(names) - 2
    kept = recommender.recommend(names[:2], k=1000, filter_seen=False)
    assert set(found(kept)) == set(names)
    assert recommender.recommend(names, k=3).items == ()
    keeps = SASRec(**TINY).fit(chain_data, tmp_path / "run", evaluation={"filter_seen": False}, **QUICK)
    assert len(keeps.recommend(names[:2], k=1000).items) == len(names)
    assert len(keeps.recommend(names[:2], k=1000, filter_seen=True).items) == len(names) - 2


@pytest.mark.parametrize(
    ("history", "arguments", "message"),
    [
        ("i1", {}, "the history is a single text"),
        (["i1", "i_2"], {"skip_unknown": False}, r"unknown item in the history: 'i_2' \(nearest known: 'i"),
        ([["i1"], ["who?"]], {"skip_unknown": False}, "unknown item in the history: 'who"),
        ({"i1", "i2"}, {}, "a set, which has no order"),
        ({"i1": 1}, {}, "a mapping"),
        (["i1", None], {}, "None, which is not an identifier"),
        ([["i1"], "i2"], {}, "the history is a single text: 'i2'"),
        (["i1"], {"k": 0}, "k is 0"),
        ([["i1"]], {"k": 0}, "k is 0"),
        (["i1", "i2"], {"times": [1]}, "times has 1 entries, the history 2"),
        (["i1"], {"times": ["yesterday"]}, r"times\[0\] is 'yesterday', which is no moment"),
        (["i1"], {"times": [1_700_000_000_000]}, r"too large for seconds since 1970"),
        (["i1"], {"now": True}, "now is True, which is no moment"),
        ([["i1"], ["i2"]], {"times": [[1]]}, "times has 1 lists for 2 histories"),
        (pl.DataFrame({"user_id": [1], "item_id": ["i1"]}), {"times": [1]}, "times is given beside a frame"),
        (pl.DataFrame({"user_id": [1], "item_id": ["i1"]}), {"k": 0}, "k is 0"),
        (pl.DataFrame({"user_id": [1], "item_id": ["i1"]}), {"diversity": 2}, "diversity is 2"),
        (pl.DataFrame({"user_id": [1], "item_id": ["i1"]}), {"explain": True}, "a table .* has no reasons"),
        (pl.DataFrame({"user_id": [1], "item_id": ["?"]}), {"skip_unknown": False}, "unknown item in the history: '"),
    ],
)
def test_what_cannot_be_answered(
    history: Any, arguments: dict[str, Any], message: str, recommender: Recommender
) -> None:
    with pytest.raises(DataError, match=message):
        recommender.recommend(history, **arguments)


@pytest.mark.parametrize(
    "moment",
    [
        1_700_000_000, "1700000000", "2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20",
        datetime(2023, 11, 14, 22, 13, 20), datetime(2023, 11, 14, 23, 13, 20, tzinfo=timezone(timedelta(hours=1))),
        np.int64(1_700_000_000),
    ],
)  # fmt: skip
def test_a_moment_is_given_in_any_of_these_ways(moment: Moment, recommender: Recommender) -> None:
    request = Request([recommender.catalogue.ids[0], "who?"], times=[moment, 5], now=moment)
    query = parse_request(request, recommender.catalogue, filter_seen=True)
    assert (query.times, query.now) == ([1_700_000_000], 1_700_000_000)  # of the known item only


def test_unknown_items_are_skipped_and_reported(recommender: Recommender) -> None:
    names = recommender.catalogue.ids
    answer = recommender.recommend([names[0], "who?", names[1]])
    assert answer.items == recommender.recommend(names[:2]).items
    assert answer.unknown == ("who?",)
    lost = recommender.recommend(["who?"], k=3)
    assert lost.fallback == "popular"
    counts = recommender.catalogue.counts
    assert [item.score for item in lost.items] == sorted(counts.tolist(), reverse=True)[:3]


def test_an_answer_is_a_table_for_people(recommender: Recommender) -> None:
    names = recommender.catalogue.ids
    lines = str(recommender.recommend(["who?"], k=2)).splitlines()
    assert lines[0].split() == ["item", "title", "score"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert lines[3:] == [
        "No item of the history is known: these are the most frequent ones, with their counts.",
        "Not in the catalogue, and skipped: 'who?'.",
    ]
    explained = str(recommender.recommend(names[:2], k=1, explain=True)).splitlines()
    assert len(explained) == 4  # with the two items of the history as reasons
    assert explained[2].lstrip()[0] in "+-"


def test_options_are_those_of_a_request() -> None:
    names = {field.name for field in dataclasses.fields(Request)} - {"history", "k", "times"}
    assert set(Options.__annotations__) == names


def test_a_recommender_says_what_it_is(recommender: Recommender) -> None:
    assert repr(recommender) == "<Recommender: undistilled of the run run, sasrec, 12 items>"
    with pytest.raises(RunError, match="made from a run") as caught:
        recommender.save("x")
    assert "llmd4rec export" in caught.value.remedy
    with pytest.raises(RunError, match="'new' is new") as caught:
        recommender.add_items([NewItem("new", "A title")])
    assert "llmd4rec export" in caught.value.remedy
    for name, now in (("from_pretrained", r"Recommender\.load"), ("save_pretrained", r"recommender\.save")):
        assert not hasattr(recommender, name)
        with pytest.raises(AttributeError, match=f"it is now {now}"):
            getattr(Recommender, name)


def rows(names: list[str]) -> dict[str, list[Any]]:
    """Histories of three users, mixed and out of order; the times tell that of user 7 is 2, 1, 0."""
    return {
        "user_id": [7, 3, 7, 5, 7, 3],
        "item_id": [names[0], names[4], names[2], names[9], names[1], names[5]],
        "timestamp": [30, 11, 10, 5, 20, 12],
        "device": ["tv"] * 6,  # what nobody asks for
    }


@pytest.mark.parametrize("frame", [pl.DataFrame, pd.DataFrame])
@pytest.mark.parametrize("timed", [True, False])
def test_a_frame_gives_a_frame(frame: type[Any], timed: bool, recommender: Recommender) -> None:
    names = recommender.catalogue.ids
    given = frame({name: values for name, values in rows(names).items() if timed or name != "timestamp"})
    answered = recommender.recommend(given, k=3)
    assert type(answered) is frame
    assert list(answered.columns) == ["user_id", "rank", "item_id", "title", "score"]
    table = pl.from_pandas(answered) if frame is pd.DataFrame else answered
    assert table["user_id"].dtype == pl.Int64
    assert table["user_id"].unique(maintain_order=True).to_list() == [7, 3, 5]  # as they come in the frame
    of_seven = [names[2], names[1], names[0]] if timed else [names[0], names[2], names[1]]
    for user, history in {7: of_seven, 3: [names[4], names[5]], 5: [names[9]]}.items():
        expected = recommender.recommend(history, k=3).items
        part = table.filter(pl.col("user_id") == user)
        assert part["rank"].to_list() == [1, 2, 3]
        assert part["item_id"].to_list() == [item.item_id for item in expected]
        assert part["title"].to_list() == [item.title for item in expected]
        assert part["score"].to_list() == pytest.approx([item.score for item in expected], abs=1e-5)


def test_a_frame_is_asked_as_lists_are(recommender: Recommender) -> None:
    names = recommender.catalogue.ids
    frame = pl.DataFrame(rows(names))
    kept = recommender.recommend(frame, k=1000, filter_seen=False)
    assert kept.group_by("user_id").len()["len"].to_list() == [len(names)] * 3
    only = recommender.recommend(frame, filters=Filters(allow=names[6:8]))
    assert set(only["item_id"]) == set(names[6:8])
    with pytest.raises(DataError, match="no column 'item_id'; it has user_id, item") as caught:
        recommender.recommend(frame.rename({"item_id": "item"}))
    assert "Rename" in caught.value.remedy
    with pytest.raises(DataError, match="no column 'user_id'"):
        recommender.recommend(pd.DataFrame({"item_id": names[:2]}))
