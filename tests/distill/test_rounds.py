"""Whole runs with a tiny language model: which stages, taught by whom, from where they start, and exact resumption."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.examples import chain_dataset, make_dataset
from filelock import FileLock
from in_another_process import outcome, start, train
from settings_of import parse_settings
from torch import Tensor

from llmd4rec.config.settings import describe
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.methods import LLMD4Rec
from llmd4rec.errors import ConfigError, DataError, ModelError, RunError
from llmd4rec.estimators import Distillation, Wide
from llmd4rec.features import item_features as items
from llmd4rec.models.base import count_parameters
from llmd4rec.models.sequential import BSARec, GRU4Rec
from llmd4rec.runs import pipeline as rounds
from llmd4rec.runs.invalidation import depends, refused
from llmd4rec.runs.results import score
from llmd4rec.runs.run import Run
from llmd4rec.training import checkpoint


def untrained(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """No epochs: each stage ends where it starts, which shows what it starts from."""
    return changed(settings, training__model__epochs=0, training__llm__epochs=0, **changes)


def weights(run: Run, stage: str) -> dict[str, Tensor]:
    return checkpoint.load(run.checkpoint_of(stage) / "best.safetensors")[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def taught_by(run: Run) -> dict[str, str | None]:
    return {name: stage["taught_by"] for name, stage in run.record.stages.items()}


# ---- which stages -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("direction", "stages"),
    [
        (
            "both",
            {
                "undistilled": None, "llm": None,
                "llm-round-1": "undistilled", "distilled-round-1": "llm-round-1",
                "llm-round-2": "distilled-round-1", "distilled-round-2": "llm-round-2",
            },
        ),
        ("up", {"undistilled": None, "llm": None, "distilled-round-1": "llm"}),
        ("down", {"undistilled": None, "llm": None, "llm-round-1": "undistilled"}),
    ],
)  # fmt: skip
def test_stages_and_teachers(direction, stages, tiny_settings, chain_data, tmp_path, monkeypatch):
    published: list[str] = []
    there: list[set[str]] = []

    def watched(ranker: Any, data: Any, folder: Path, *, label: str, **more: Any) -> None:
        there.append({path.name for path in folder.parent.iterdir()} if folder.parent.exists() else set())
        publish(ranker, data, folder, label=label, **more)
        published.append(label)

    publish = rounds.write_cache
    monkeypatch.setattr(rounds, "publish", watched)
    settings = untrained(tiny_settings, direction=direction, rounds=2)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert taught_by(run) == stages
    assert list(run.record.stages) == list(stages)
    assert published == [teacher for teacher in stages.values() if teacher]
    assert all(len(names) <= 2 for names in there)  # no more than the last of each model is kept
    assert run.record.finished
    assert not (run.folder / "teachers").exists()
    assert [record["stage"] for record in run.metrics()] == list(stages)


def test_a_teacher_teaches_what_it_was_when_its_stage_ended(tiny_settings, chain_data, tmp_path, monkeypatch):
    lessons: dict[str, Any] = {}

    def watched(ranker: Any, data: Any, *rest: Any, stage: str, objective: Any, **more: Any) -> Any:
        teacher = objective.teacher
        lessons[stage] = None if teacher is None else (teacher.table.clone(), teacher.states[:].copy())
        return fit(ranker, data, *rest, stage=stage, objective=objective, **more)

    fit = rounds.fit
    monkeypatch.setattr(rounds, "fit", watched)
    settings = changed(
        tiny_settings, rounds=2, distill__warm_start=["model", "llm"], distill__teacher_precision="float32"
    )
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    for student, teacher in taught_by(run).items():
        if teacher is None:
            assert lessons[student] is None
        else:
            with torch.no_grad():
                table = run.load_stage("crm" if teacher.startswith("crm") else "llm", teacher).item_table()
            assert torch.equal(lessons[student][0], table)
    assert len({lessons[s][1].tobytes() for s, t in taught_by(run).items() if t}) == 4


@pytest.mark.parametrize(
    ("teacher", "stages"),
    [
        (
            "consensus",
            {
                "undistilled": None, "llm": None,
                "llm-round-1": "undistilled + llm", "distilled-round-1": "llm-round-1 + undistilled",
                "llm-round-2": "distilled-round-1 + llm-round-1", "distilled-round-2": "llm-round-2 + distilled-round-1",
            },
        ),
        (
            "self",
            {
                "undistilled": None, "llm": None,
                "llm-round-1": "llm", "distilled-round-1": "undistilled",
                "llm-round-2": "llm-round-1", "distilled-round-2": "distilled-round-1",
            },
        ),
    ],
)  # fmt: skip
def test_who_else_may_teach(teacher, stages, tiny_settings, chain_data, tmp_path, monkeypatch):
    there: list[set[str]] = []

    def watched(ranker: Any, data: Any, folder: Path, **more: Any) -> None:
        there.append({path.name for path in folder.parent.iterdir()} if folder.parent.exists() else set())
        publish(ranker, data, folder, **more)

    publish = rounds.write_cache
    monkeypatch.setattr(rounds, "publish", watched)
    run = parse_settings(untrained(tiny_settings, teacher=teacher, rounds=2)).fit(chain_data, tmp_path / "run")
    assert taught_by(run) == stages
    assert all(len(names) <= 2 for names in there)  # what no stage listens to any more is thrown away


@pytest.mark.parametrize(("direction", "student"), [("up", "crm"), ("down", "llm")])
def test_rounds_of_one_direction_go_on_while_the_student_is_among_its_teachers(
    direction, student, tiny_settings, chain_data, tmp_path
):
    settings = untrained(
        tiny_settings, direction=direction, distill__source="ensemble", ensemble__weights="equal", rounds=2
    )
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    both = {"llm": "undistilled + {}", "crm": "llm + {}"}[student]
    expected = {
        f"{student}-round-1": both.format(f"{student}-alone"), f"{student}-round-2": both.format(f"{student}-round-1")
    }  # fmt: skip
    assert taught_by(run) == {"undistilled": None, "llm": None, **expected}
    assert run.record.stopped_because == "all rounds done"
    alone = parse_settings({**settings, "distill__source": "partner"}).fit(chain_data, tmp_path / "partner")
    assert f"{student}-round-2" not in alone.record.stages
    assert alone.record.stopped_because == "in round 1 only models were heard that do not change"


@pytest.mark.parametrize(
    ("changes", "wides"),
    [
        (
            {"distill__source": "partner", "distill__students": ["model"]},
            ["teacher-1"],
        ),  # whose items the language model reads
        ({"distill__source": "partner", "distill__students": ["model"], "llm__inject": "never"}, []),
        ({"distill__source": "self", "distill__students": ["llm"]}, ["teacher-1"]),
        ({"distill__source": "partner", "distill__students": ["llm"]}, ["teacher-1", "teacher-2"]),
        ({"distill__source": "self", "distill__students": ["model"]}, ["teacher-1", "teacher-2"]),
    ],
)
def test_no_wide_model_is_trained_for_nobody(changes, wides, tiny_settings, chain_data, tmp_path):
    run = parse_settings(untrained(tiny_settings, wide=16, rounds=1, **changes)).fit(chain_data, tmp_path / "run")
    assert [stage for stage in run.record.stages if stage.startswith("wide")] == wides


def test_nobody_is_asked_what_nobody_listens_to(tiny_settings, chain_data, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "publish", lambda *_, **__: pytest.fail("was published"))
    settings = untrained(tiny_settings, distill__weight__model=0, distill__weight__llm=0, rounds=2)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    stages = ("undistilled", "llm", "llm-round-1", "distilled-round-1", "llm-round-2", "distilled-round-2")
    assert taught_by(run) == dict.fromkeys(stages)


def test_a_crm_that_is_taught_to_leave_popularity_out_serves_rarer_items(tiny_settings, tmp_path):
    """Where items follow nothing but their popularity: all that there is to learn is left out."""
    drawn = np.random.default_rng(0).choice(60, (300, 8), p=1 / np.arange(1, 61) / (1 / np.arange(1, 61)).sum())
    make_dataset(list(drawn), 60).save(tmp_path / "data")
    data = Dataset.load(tmp_path / "data")
    still = {
        "model__dropout": 0.0,
        "training__model__epochs": 10,
        "distill__students": ["model"],
        "evaluation": {"filter_seen": False},
    }
    shown = {}
    for share in (0.0, 1.0):
        settings = changed(tiny_settings, distill__logit_adjustment=share, **still)
        run = parse_settings(settings).fit(data, tmp_path / str(share))
        alone, taught = (score(run, data, stage).metrics["popularity@10"] for stage in ("alone", "distilled"))
        shown[share] = taught / alone
    assert shown[0.0] > 0.85
    assert shown[1.0] < 0.6


def test_teachers_say_how_much_popularity_the_served_crm_leaves_out(tiny_settings, chain_data, tmp_path, monkeypatch):
    """Once for each lesson of the CRM; what they say counts as if it had been set."""
    asked = []

    def says(judge):
        asked.append(judge(0.0).mean())
        return 0.15

    monkeypatch.setattr(rounds, "bearable_share", says)
    settings = changed(tiny_settings, distill__logit_adjustment="auto")
    run = parse_settings(settings).fit(chain_data, tmp_path / "auto")
    stages = run.record.stages
    assert len(asked) == 1
    assert stages["distilled-round-1"]["logit_adjustment"] == 0.15
    assert all("logit_adjustment" not in stages[name] for name in ("undistilled", "llm", "llm-round-1"))
    fixed = parse_settings(changed(settings, distill__logit_adjustment=0.15)).fit(chain_data, tmp_path / "fixed")
    none = parse_settings(changed(settings, distill__logit_adjustment=0.0)).fit(chain_data, tmp_path / "none")
    assert len(asked) == 1
    assert same(weights(run, "distilled-round-1"), weights(fixed, "distilled-round-1"))
    assert not same(weights(run, "distilled-round-1"), weights(none, "distilled-round-1"))
    assert same(weights(run, "llm-round-1"), weights(none, "llm-round-1"))


def test_teachers_published_when_nobody_asked_are_asked_later(tiny_settings, chain_data, tmp_path, monkeypatch):
    """The setting may change as long as the CRM's round has not begun, and what was published then does not know."""

    def stops(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(LLMD4Rec, "objective", stops)
        with pytest.raises(KeyboardInterrupt):
            parse_settings(changed(tiny_settings, distill__students=["model"])).fit(chain_data, tmp_path / "run")
    assert (tmp_path / "run" / "teachers" / "llm" / "teacher.json").exists()
    monkeypatch.setattr(rounds, "bearable_share", lambda judge: 0.15)
    settings = changed(tiny_settings, distill__students=["model"], distill__logit_adjustment="auto")
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert run.record.stages["distilled-round-1"]["logit_adjustment"] == 0.15


@pytest.mark.parametrize(
    ("teacher", "learns_from"),
    [
        (
            "consensus",
            ("W + undistilled + llm", "llm-round-1 + W + undistilled", "W + distilled-round-1 + llm-round-1"),
        ),
        ("partner", ("W + undistilled", "llm-round-1", "W + distilled-round-1")),
        ("self", ("llm", "W + undistilled", "llm-round-1")),
    ],
)
@pytest.mark.parametrize("wides", [1, 2])
def test_wider_crms_teach_and_are_never_served(wides, teacher, learns_from, tiny_settings, chain_data, tmp_path):
    changes = {"teacher": teacher, "ensemble__weights": "equal", "wide": 16, "wides": wides, "rounds": 2}
    changes |= {"llm__dim": "crm", "llm__init_table_from_model": True}
    run = parse_settings(untrained(tiny_settings, **changes)).fit(chain_data, tmp_path / "run")
    stages = ["teacher-1", "teacher-2"][:wides]
    down, up, down_again = (text.replace("W", " + ".join(stages)) for text in learns_from)
    assert taught_by(run) == {
        "undistilled": None, **dict.fromkeys(stages), "llm": None, "llm-round-1": down, "distilled-round-1": up,
        "llm-round-2": down_again, "distilled-round-2": up.replace("llm-round-1", "llm-round-2").replace(
            "undistilled", "distilled-round-1"
        ),
    }  # fmt: skip
    wide, llm = run.load("teacher-1"), run.load("llm")
    assert (run.load("distilled").dim, wide.dim, llm.dim) == (8, 16, 16)
    assert wides == 1 or not same(weights(run, stages[0]), weights(run, stages[1]))
    with torch.no_grad():  # the language model reads the wide one's items and starts from them
        torch.testing.assert_close(llm.injected, wide.item_table())
        torch.testing.assert_close(llm.item_table(), wide.item_table())
    assert [model for model, _ in run.models()] == ["crm", "crm", "wide", "llm", "llm"]


def test_wider_crms_of_several_kinds(tiny_settings, chain_data, tmp_path, monkeypatch):
    """Each is built, and its table trained from, what its entry says; the student from what the served one's say."""
    read, made = [], []

    def item_features(inputs: str, data: Any, vectors: Any) -> Any:
        made.append(inputs)
        return items.item_features(inputs, data, vectors)

    def sides(self: Any, inputs: str) -> Any:
        read.append(inputs)
        return sides_of(self, inputs)

    sides_of = rounds._Rounds._sides
    monkeypatch.setattr(rounds, "item_features", item_features)
    monkeypatch.setattr(rounds._Rounds, "_sides", sides)
    changes = {
        "distill__source": "self", "distill__students": ["model"], "rounds": 1, "wide": 16, "model__item_features": "id+text+neighbours",
        "model__dropout": 0.25, "model__max_length": 7, "texts__encoder": "llm",
        "wides": [{}, {"without": ["text", "attributes"]}, {"name": "gru4rec", "without": ["neighbours"]}],
    }  # fmt: skip
    run = parse_settings(untrained(tiny_settings, **changes)).fit(chain_data, tmp_path / "run")
    assert read == [
        "id+text+neighbours", "id+text+neighbours", "id+neighbours", "id+text", "id+text+neighbours"
    ]  # fmt: skip
    assert made == ["id+text+neighbours", "id+neighbours", "id+text"]
    stages = ["teacher-1", "teacher-2", "teacher-3"]
    assert run.record.stages["distilled-round-1"]["taught_by"] == " + ".join([*stages, "undistilled"])
    models = [run.load(stage) for stage in stages]
    assert [type(model).__name__ for model in models] == ["SASRecNetwork", "SASRecNetwork", "GRU4RecNetwork"]
    assert [(model.dim, model.max_length) for model in models] == [(16, 7)] * 3
    settings = run.settings.wide_crms
    assert [model.dropout for crm in settings] == [0.25, 0.25, 0.5]  # another network has its own defaults


def test_a_wider_crm_of_the_served_network_keeps_its_settings():
    served = GRU4Rec(hidden=48, layers=3, dim=8, id_dropout=0.4, item_features="id+attributes")
    assert Wide(name="gru4rec", without=("text",)).of(served, 32) == served.model_copy(update={"dim": 32})
    expected = BSARec(dim=32, id_dropout=0.4, item_features="id", max_length=served.max_length)
    assert Wide(name="bsarec", without=("attributes",)).of(served, 32) == expected


@pytest.mark.parametrize("wide", [None, 16])
def test_no_language_model_where_none_learns_or_teaches(wide, tiny_settings, chain_data, tmp_path):
    changes = {
        "distill__source": "self",
        "distill__students": ["model"],
        "wide": wide,
        "llm__model": str(tmp_path / "not there"),
    }
    run = parse_settings(untrained(tiny_settings, **changes)).fit(chain_data, tmp_path / "run")
    wides = [] if wide is None else ["teacher-1", "teacher-2"]
    assert taught_by(run) == dict.fromkeys(("undistilled", *wides)) | {
        "distilled-round-1": " + ".join([*wides, "undistilled"])
    }


def test_each_teacher_counts_as_much_as_it_was_found_to(tiny_settings, chain_data, tmp_path, monkeypatch):
    """Where the language model is left out, the lesson is the CRM's own."""
    asked = []

    def best_counts(judge: Any, start: Any) -> tuple[tuple[int, ...], float]:
        asked.append(tuple(start))
        return (0, 1), float(judge((0, 1)).mean())

    monkeypatch.setattr(rounds, "best_counts", best_counts)
    changes = {"distill__source": "ensemble", "distill__students": ["model"]}
    lessons = {}
    for consensus in ("validation", "equal"):
        settings = changed(tiny_settings, consensus=consensus, training__model__round_epochs=1, **changes)
        run = parse_settings(settings).fit(chain_data, tmp_path / consensus)
        lessons[consensus] = run.record.stages["distilled-round-1"]
    assert lessons["validation"]["teachers"] == {"llm": 0, "undistilled": 1}
    assert lessons["equal"]["teachers"] == {"llm": 1, "undistilled": 1}
    assert lessons["validation"]["taught_by"] == lessons["equal"]["taught_by"] == "llm + undistilled"
    assert asked == [(1, 1)]
    alone = changed(tiny_settings, training__model__round_epochs=1, **changes | {"distill__source": "self"})
    run = parse_settings(alone).fit(chain_data, tmp_path / "self")
    assert same(weights(run, "distilled-round-1"), weights(Run.open(tmp_path / "validation"), "distilled-round-1"))


def test_the_wide_ones_are_heard_first(tiny_settings, chain_data, tmp_path, monkeypatch):
    """Others only where they add to them, whichever model is taught."""
    begun = {}

    def best_counts(judge: Any, start: Any) -> tuple[tuple[int, ...], float]:
        begun[len(begun)] = tuple(start)
        return tuple(start), float(judge(start).mean())

    monkeypatch.setattr(rounds, "best_counts", best_counts)
    settings = untrained(tiny_settings, rounds=1, distill__source="ensemble", ensemble__weights="validation", wide=16)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert taught_by(run)["llm-round-1"] == "teacher-1 + teacher-2 + undistilled + llm"
    assert taught_by(run)["distilled-round-1"] == "llm-round-1 + teacher-1 + teacher-2 + undistilled"
    assert begun == {0: (1, 1, 0, 0), 1: (0, 1, 1, 0)}


@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
def test_dropout_of_a_taught_model(dropout, tiny_settings, chain_data, tmp_path):
    """While it is taught, and in no other training: not of the wide one, which nobody teaches."""
    changes = {"distill__dropout": dropout, "model__dropout": 0.1, "model__id_dropout": 0.1, "wide": "auto"}
    changes |= {"llm__dropout": 0.1, "llm__state_dropout": 0.1, "llm__branch_dropout": 0.1}
    run = parse_settings(untrained(tiny_settings, rounds=1, **changes)).fit(chain_data, tmp_path / "run")
    assert run.load("teacher-1").dim == 32  # four times the served one's
    rates = {}
    for stage in run.record.stages:
        model: Any = run.load_stage(stage.partition("-")[0], stage)  # type: ignore[arg-type]
        if stage.startswith("llm"):
            branches = {hook.dropout.rate for layer in model.modules() for hook in layer._forward_hooks.values()}
            rates[stage] = {model.dropout.rate, model.state_dropout.rate} | branches
            assert branches or dropout == 0
        else:
            rates[stage] = {model.dropout.rate, model.items.id_dropout}
    taught = 0.1 if dropout is None else dropout
    assert rates == {stage: {taught if "round" in stage else 0.1} for stage in run.record.stages}
    assert {"teacher-1", "teacher-2", "llm", "llm-round-1", "distilled-round-1"} < rates.keys()


def test_rate_and_epochs_of_a_round_are_those_of_no_other_training(tiny_settings, chain_data, tmp_path):
    rate = tiny_settings["training"]["model"]["learning_rate"]
    runs = {}
    for name, own in {"none": None, "same": rate, "other": rate / 4}.items():
        settings = changed(
            tiny_settings, distill__students=["model"], distill__source="self", training__model__round_learning_rate=own
        )
        runs[name] = parse_settings(settings).fit(chain_data, tmp_path / name)
    before, taught = ([weights(run, stage) for run in runs.values()] for stage in ("undistilled", "distilled-round-1"))
    assert same(before[0], before[1])
    assert same(before[0], before[2])
    assert same(taught[0], taught[1])
    assert not same(taught[0], taught[2])
    training = parse_settings(changed(tiny_settings, training__model__round_epochs=1)).training.model
    assert (training.in_round().epochs, training.epochs) == (1, 2)
    assert training.model_copy(update={"round_epochs": 5}).in_round().epochs == 2


def test_a_student_that_goes_on_starts_as_the_model_it_was(tiny_settings, chain_data, tmp_path):
    """What was folded into its table must not be mixed in again."""
    settings = changed(
        tiny_settings, distill__warm_start=["model", "llm"], model__item_features="id+neighbours", distill__students=["model"], distill__source="self",
        training__model__round_epochs=0,
    )  # fmt: skip
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert same(weights(run, "undistilled"), weights(run, "distilled-round-1"))


def test_a_width_that_the_network_cannot_have_is_refused(tiny_settings):
    with pytest.raises(ConfigError, match="wide = 15 does not fit its network, sasrec: heads = 2 does not divide dim"):
        parse_settings(changed(tiny_settings, wide=15))


def test_texts_help_to_train_the_crm_and_leave_it_as_it_was(tiny_settings, chain_data, tmp_path):
    texts = {"texts__encoder": "llm", "rounds": 0}
    runs = {
        items: parse_settings(changed(tiny_settings, model__item_features=items, **texts)).fit(
            chain_data, tmp_path / items
        )
        for items in ("id", "id+text")
    }
    plain, folded = (weights(run, "undistilled") for run in runs.values())
    assert {name: t.shape for name, t in plain.items()} == {name: t.shape for name, t in folded.items()}
    assert not torch.equal(plain["items.weight"], folded["items.weight"])
    records = [run.record.stages["undistilled"] for run in runs.values()]
    assert records[0]["parameters"] == records[1]["parameters"]
    # What is served is what was validated.
    best = next(r for r in runs["id+text"].metrics() if r["epoch"] == records[1]["best_epoch"])
    served = rounds.validation_ndcg(runs["id+text"].load("undistilled"), chain_data)
    assert served == pytest.approx(best["validation_ndcg"], abs=1e-6)


def test_no_rounds_trains_the_crm_alone(tiny_settings, chain_data, tmp_path):
    settings = changed(tiny_settings, rounds=0, llm__model=str(tmp_path / "not there"))
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert taught_by(run) == {"undistilled": None}
    assert run.models() == [("crm", "alone")]
    assert run.default_stage("crm") == "alone"
    with pytest.raises(RunError, match=r"has no distilled CRM \(it has: undistilled\)"):
        run.load("distilled")
    with pytest.raises(RunError, match="has no alone LLM"):
        run.load("llm")


# ---- where a stage starts ---------------------------------------------------------------------------------------
def crm_table(run: Run, stage: str) -> Tensor:
    return run.load(stage).item_table().detach()


@pytest.mark.parametrize("llm_start", ["restart", "continue"])
@pytest.mark.parametrize("inject", ["every-round", "once", "never"])
def test_injection(inject, llm_start, tiny_settings, chain_data, tmp_path):
    settings = untrained(tiny_settings, llm__inject=inject, llm_start=llm_start, rounds=2)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    injected = {stage: weights(run, stage)["injected"] for stage in ("llm", "llm-round-1", "llm-round-2")}
    alone, newer = crm_table(run, "undistilled"), crm_table(run, "distilled-round-1")
    assert not torch.equal(alone, newer)
    if inject == "every-round":
        assert torch.equal(injected["llm"], alone)
        assert torch.equal(injected["llm-round-1"], alone)
        # A CRM trained anew has other axes: a language model that goes on keeps the table it knows.
        assert torch.equal(injected["llm-round-2"], newer if llm_start == "restart" else alone)
    elif inject == "once":
        assert all(torch.equal(table, alone) for table in injected.values())
    else:
        for table in injected.values():
            assert not torch.equal(table, alone)
            assert not torch.equal(table, newer)
        assert torch.equal(injected["llm"], injected["llm-round-2"]) == (llm_start == "continue")


def test_a_language_model_that_goes_on_reads_a_crm_that_goes_on(tiny_settings, chain_data, tmp_path):
    settings = changed(tiny_settings, rounds=2, distill__warm_start=["model", "llm"], llm_start="continue")
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    alone, newer = crm_table(run, "undistilled"), crm_table(run, "distilled-round-1")
    assert not torch.equal(alone, newer)
    assert torch.equal(weights(run, "llm-round-1")["injected"], alone)
    assert torch.equal(weights(run, "llm-round-2")["injected"], newer)


def test_without_injection_the_item_table_is_the_language_models_own(tiny_settings):
    auto = changed(tiny_settings, llm__init_table_from_model="auto")
    settings = parse_settings(changed(auto, llm__inject="never"))
    assert settings.llm.starts_from_model(settings.crm.dim)
    assert not settings.llm_in("llm").starts_from_model(settings.crm.dim)
    assert parse_settings(auto).llm_in("llm").starts_from_model(settings.crm.dim)
    with pytest.raises(ConfigError, match="needs an injected table"):
        parse_settings(changed(tiny_settings, llm__inject="never", llm__init_table_from_model=True))


def test_settings_are_not_corrected_while_another_process_trains(tiny_settings, chain_data, tmp_path):
    """It may still be reading texts: then nothing has been trained, and all the same the folder is in use."""
    first = parse_settings(tiny_settings)
    run = Run.start(tmp_path / "run", first, chain_data)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with FileLock(run.folder / ".lock"), pytest.raises(RunError, match="trained by another process"):
        parse_settings(changed(tiny_settings, distill__weight__model=2)).fit(chain_data, run.folder)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.name != ".lock"} == before


@pytest.mark.parametrize("start", ["restart", "continue"])
@pytest.mark.parametrize("model", ["crm", "llm"])
def test_a_student_starts_afresh_or_goes_on(model, start, tiny_settings, chain_data, tmp_path):
    """The first stages are trained, the round is not: its weights are those it started with."""
    settings = changed(tiny_settings, **{f"{model}_start": start})
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    record = next(r for r in run.metrics() if (r["stage"], r["epoch"]) == (f"{model}-round-1", 0))
    before = run.record.stages[f"{model}-alone"]["validation_ndcg"]
    assert before > 0.3
    assert (record["validation_ndcg"] == before) == (start == "continue")


def test_weights_none_and_rank(tiny_settings, chain_data, tmp_path):
    means = {}
    for kind in ("rank", "none"):
        settings = changed(tiny_settings, distill__sample_weights=kind, distill__students=["llm"])
        run = parse_settings(settings).fit(chain_data, tmp_path / kind)
        means[kind] = [r["weight_mean"] for r in run.metrics() if "weight_mean" in r]
        assert {r["stage"] for r in run.metrics() if "weight_mean" in r} == {"llm-round-1"}
    assert means["none"] == [1.0, 1.0]
    assert all(mean != 1 for mean in means["rank"])


def test_ranks_of_the_rounds_start_stay_the_same_in_every_epoch(tiny_settings, chain_data, tmp_path):
    counts = {}
    for kind in ("current", "round-start"):
        run = parse_settings(changed(tiny_settings, distill__student_ranks=kind)).fit(chain_data, tmp_path / kind)
        lines = [r for r in run.metrics() if r["stage"] == "distilled-round-1" and r["epoch"]]
        counts[kind] = [r["weight_counts"] for r in lines]
    assert counts["round-start"][0] == counts["round-start"][1]
    assert counts["current"][0] != counts["current"][1]


# ---- when to stop, what to keep ---------------------------------------------------------------------------------
@pytest.mark.parametrize("patience", [1, 2])
def test_it_stops_when_rounds_bring_nothing(patience, tiny_settings, chain_data, tmp_path):
    settings = untrained(tiny_settings, distill__warm_start=["model", "llm"], rounds=4, round_patience=patience)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert f"distilled-round-{patience}" in run.record.stages
    assert f"distilled-round-{patience + 1}" not in run.record.stages
    assert run.record.stopped_because == f"round {patience} did not improve the validation NDCG@10"


@pytest.mark.parametrize("counts", [(0, 1, 1, 0), (1, 1, 1, 0), (0, 1, 0, 1)])
def test_it_stops_when_the_teachers_that_are_heard_no_longer_change(
    counts, tiny_settings, chain_data, tmp_path, monkeypatch
):
    """As when only the wide ones are; a model that goes on learning has something new to say in the next round."""

    def best_counts(judge: Any, start: Any) -> tuple[tuple[int, ...], float]:
        heard = counts if tuple(start) == (0, 1, 1, 0) else tuple(start)  # the CRM's teachers, or the LLM's
        return heard, float(judge(heard).mean())

    monkeypatch.setattr(rounds, "best_counts", best_counts)
    settings = untrained(tiny_settings, rounds=2, distill__source="ensemble", ensemble__weights="validation", wide=16)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    settled = counts == (0, 1, 1, 0)
    assert ("distilled-round-2" in run.record.stages) is not settled
    because = "in round 1 only models were heard that do not change"
    assert run.record.stopped_because == (because if settled else "all rounds done")


def test_the_best_round_is_the_distilled_model(chain_run, tmp_path):
    run = Run.open(chain_run)
    first = run.record.stages["distilled-round-1"]
    run.record.stages["distilled-round-2"] = {**first, "validation_ndcg": first["validation_ndcg"] - 0.1}
    assert run.stage_of("crm", "distilled") == "distilled-round-1"
    run.record.stages["distilled-round-2"]["validation_ndcg"] = first["validation_ndcg"] + 0.1
    assert run.stage_of("crm", "distilled") == "distilled-round-2"
    assert run.stage_of("crm", "alone") == "undistilled"


def test_what_is_served_is_the_better_on_validation(chain_run):
    run = Run.open(chain_run)
    for gain, stage in ((0.1, "distilled"), (0.0, "distilled"), (-0.1, "alone")):
        alone = run.record.stages["undistilled"]["validation_ndcg"]
        run.record.stages["distilled-round-1"]["validation_ndcg"] = alone + gain
        assert run.served_stage("crm") == stage
        served, expected = run.recommender().ranker, run.load("crm", stage)
        assert torch.equal(served.item_table(), expected.item_table())


def test_the_distilled_crm_is_the_same_network(chain_run):
    """Same parameters and shapes as trained alone: distillation adds nothing to what is served."""
    run = Run.open(chain_run)
    alone, distilled = run.load("undistilled"), run.load("distilled")
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (alone, distilled)]
    assert shapes[0] == shapes[1]
    assert count_parameters(alone) == count_parameters(distilled)
    assert str(alone) == str(distilled)
    assert run.record.stages["undistilled"]["parameters"] == run.record.stages["distilled-round-1"]["parameters"]
    assert not torch.equal(alone.item_table(), distilled.item_table())


def test_the_run_folder_has_everything(chain_run, chain_data):
    names = {path.name for path in chain_run.iterdir()}
    assert {"config.yaml", "environment.json", "run.json", "metrics.jsonl", "catalogue.parquet"} <= names
    assert not [path for path in chain_run.rglob("*.part")]
    assert not list(chain_run.rglob("last.safetensors"))
    run = Run.open(chain_run)
    answers = run.crm.recommend(["i3"], k=3)
    assert len(answers) == 3
    assert {answer.item_id for answer in answers} <= set(chain_data.item_ids) - {"i3"}
    assert len(run.llm.recommend(["i3"], k=3)) == 3


# ---- an existing folder -----------------------------------------------------------------------------------------
@pytest.fixture
def copied_run(chain_run, tmp_path) -> Path:
    return Path(shutil.copytree(chain_run, tmp_path / "copied"))


def test_a_finished_run_is_not_trained_again(copied_run, tiny_settings, chain_data):
    before = (copied_run / "metrics.jsonl").read_bytes()
    run = parse_settings(tiny_settings).fit(chain_data, copied_run)
    assert run.record.finished
    assert (copied_run / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused_by_name(copied_run, tiny_settings, chain_data):
    with pytest.raises(RunError, match=r"other settings: .*lambda_up: 4\.0 → 2\.0.*crm\.dropout: 0\.1 → 0\.2"):
        parse_settings(changed(tiny_settings, distill__weight__model=2, model__dropout=0.2)).fit(chain_data, copied_run)


@pytest.mark.parametrize(
    ("stage", "setting", "expected"),
    [
        ("undistilled", "model.dropout", True),
        ("undistilled", "training.model.batch", True),
        ("undistilled", "training.model.round_learning_rate", False),
        ("undistilled", "training.model.checkpoint_seconds", False),
        ("undistilled", "training.llm.batch", False),
        ("undistilled", "wides", False),
        ("undistilled", "llm.encoder", True),  # whose vectors its own table is trained from
        ("undistilled", "lambda_up", False),
        ("undistilled", "logit_adjustment", False),
        ("distilled-round-1", "logit_adjustment", True),
        ("teacher-2", "wide", True),
        ("teacher-2", "llm.layers", False),
        ("llm", "wides", True),  # whose items it reads
        ("llm", "llm.lora.r", True),
        ("llm", "inject", True),
        ("llm", "method.name", False),
        ("distilled-round-1", "method.name", True),
        ("llm-round-1", "training.llm.round_epochs", True),
        ("distilled-round-1", "rounds", True),
        ("distilled-round-1", "seed", True),
        ("distilled-round-1", "something.new", True),
    ],
)
def test_what_a_training_depends_on(stage, setting, expected):
    assert depends(stage, setting) is expected


def test_a_language_model_that_encodes_texts_is_every_trainings(tiny_settings):
    old, new = (parse_settings(changed(tiny_settings, llm__layers=layers)) for layers in (1, 2))
    assert refused(old, new, ["undistilled"]) == {}
    encoding = [each.model_copy(update={"llm": each.llm.model_copy(update={"encoder": "llm"})}) for each in (old, new)]
    assert refused(*encoding, ["undistilled"]) == {"llm.layers: 1 → 2": ["undistilled"]}


def test_every_setting_of_a_run_belongs_to_a_training():
    """A new setting is one of all trainings until somebody thinks about it; none is of no training by accident."""
    free = {key for key, _, _ in describe(Distillation) if not depends("distilled-round-1", key)}
    assert free == {"device", "threads", "training.model.checkpoint_seconds", "training.llm.checkpoint_seconds"}


def test_a_finished_run_goes_on_to_more_rounds_as_if_it_had_always_been_to(tiny_settings, chain_data, tmp_path):
    """What the first round came to is kept; fewer rounds than there are cannot be wanted any more."""
    settings = changed(tiny_settings, distill__source="ensemble")
    folder = tmp_path / "run"
    parse_settings(settings).fit(chain_data, folder)
    kept = (folder / "checkpoints" / "distilled-round-1" / "best.safetensors").stat().st_mtime_ns
    more = parse_settings(changed(settings, rounds=2))
    run = more.fit(chain_data, folder)
    assert (folder / "checkpoints" / "distilled-round-1" / "best.safetensors").stat().st_mtime_ns == kept
    fresh = more.fit(chain_data, tmp_path / "fresh")
    assert list(run.record.stages) == list(fresh.record.stages)
    assert all(same(weights(run, stage), weights(fresh, stage)) for stage in fresh.record.stages)
    assert Run.open(folder).settings == more
    with pytest.raises(RunError, match="other settings: rounds: 2 → 1"):
        parse_settings(settings).fit(chain_data, folder)


def test_a_language_model_is_changed_before_its_turn(tiny_settings, chain_data, tmp_path, monkeypatch):
    """As where it does not fit a GPU: the CRM before it is kept, and it is made anew."""
    settings, folder = changed(tiny_settings, rounds=1), tmp_path / "run"
    fits = rounds.fit

    def full(*args: Any, stage: str, **more: Any) -> Any:
        if stage == "llm":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more.")
        return fits(*args, stage=stage, **more)

    monkeypatch.setattr(rounds, "fit", full)
    with pytest.raises(RunError, match=r"llm: .* not enough memory: .*2\.00 GiB\.\n  Lower training\.llm\.batch"):
        parse_settings(settings).fit(chain_data, folder)
    monkeypatch.setattr(rounds, "fit", fits)
    kept = (folder / "checkpoints" / "undistilled" / "best.safetensors").stat().st_mtime_ns
    smaller = parse_settings(changed(settings, llm__lora={"r": 1}, training__llm__batch=16, distill__weight__model=2.0))
    run = smaller.fit(chain_data, folder)
    assert (folder / "checkpoints" / "undistilled" / "best.safetensors").stat().st_mtime_ns == kept
    fresh = smaller.fit(chain_data, tmp_path / "fresh")
    assert run.record.llm == fresh.record.llm
    assert all(same(weights(run, stage), weights(fresh, stage)) for stage in fresh.record.stages)


def test_a_training_that_has_begun_is_not_changed_unasked(tiny_settings, chain_data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begun = folder / "checkpoints" / "llm" / "training"
    Run.start(folder, parse_settings(tiny_settings), chain_data)
    begun.mkdir(parents=True)
    other = parse_settings(changed(tiny_settings, training__llm__batch=16))
    with pytest.raises(RunError, match=r"training\.llm\.batch: 64 → 16\n.*remove \S+llm/training to begin"):
        Run.start(folder, other, chain_data)
    shutil.rmtree(begun)
    assert Run.start(folder, other, chain_data).settings == other


def test_settings_that_came_to_nothing_may_be_corrected(tiny_settings, chain_data, tmp_path):
    """The language model could not be had; nothing was trained yet."""
    wrong = parse_settings(changed(tiny_settings, llm__model=str(tmp_path / "no-model"), seed=5))
    with pytest.raises(ModelError):
        wrong.fit(chain_data, tmp_path / "run")
    right = parse_settings(changed(tiny_settings, rounds=0))
    run = right.fit(chain_data, tmp_path / "run")
    assert run.record.finished
    again = Run.open(tmp_path / "run")
    assert (again.settings, again.record.llm) == (right, None)
    with pytest.raises(RunError, match=r"other settings: seed: 0 → 5\n"):
        wrong.fit(chain_data, tmp_path / "run")


def test_other_data_is_refused(copied_run, tiny_settings):
    with pytest.raises(RunError, match="was trained on other data"):
        parse_settings(tiny_settings).fit(chain_dataset(users=30, items=12, length=7), copied_run)


def test_device_and_threads_may_change(copied_run, tiny_settings, chain_data):
    threads = torch.get_num_threads()
    try:
        run = parse_settings(changed(tiny_settings, device="auto", threads=1)).fit(chain_data, copied_run)
    finally:
        torch.set_num_threads(threads)
    assert (run.settings.device, run.settings.threads) == ("auto", 1)
    assert Run.open(copied_run).settings == run.settings


def test_a_folder_with_something_else_is_left_alone(tiny_settings, chain_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="is not a run folder"):
        parse_settings(tiny_settings).fit(chain_data, tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        parse_settings(tiny_settings).fit(chain_data, tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_cannot_begin_leaves_nothing(tiny_settings, chain_data, tmp_path, monkeypatch):
    def fail() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmd4rec.runs.run.environment", fail)
    with pytest.raises(KeyboardInterrupt):
        parse_settings(tiny_settings).fit(chain_data, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "data": "x", "surprise": 1}'])
def test_a_damaged_run_is_named(copied_run, content):
    (copied_run / "run.json").write_text(content)
    with pytest.raises((RunError, DataError), match=r"run\.json|run format"):
        Run.open(copied_run)


# ---- exact resumption of a whole run ----------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_anywhere_comes_to_the_same_end(number, tiny_settings, chain_data, tmp_path):
    """With checkpoints where there is something to save. Killed ones are in tests/reliability."""
    settings = changed(
        tiny_settings, rounds=2, distill__rollout_length=2, llm__item_features="id+text", texts__encoder="llm", distill__student_ranks="round-start",
        distill__source="ensemble",
        model__item_features="id+text", training__model__ema=0.9,
    )  # fmt: skip
    for model in ("crm", "llm"):
        settings["training"][model] = {**settings["training"][model], "checkpoint_seconds": 0.02}

    def finish(folder: Path) -> None:
        process = start(train, settings, chain_data.path, folder)
        process.join(60)
        assert process.exitcode == 0

    finish(tmp_path / "warm up")
    begun = time.perf_counter()
    finish(tmp_path / "whole")
    duration = time.perf_counter() - begun

    rng = random.Random()  # any moment must do
    stopped, parts = 0, tmp_path / "parts"
    for attempt in range(12):
        process = start(train, settings, chain_data.path, parts)
        time.sleep(rng.uniform(0.1, 0.6) * duration)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(60)
        stopped += process.exitcode in (-signal.SIGTERM, 130)
        if stopped and (stopped == 3 or process.exitcode == 0):
            break
        if process.exitcode == 0:  # it was faster than the signal, or lost it in a destructor, as Python may
            parts = tmp_path / f"parts {attempt}"
    assert stopped > 0
    (parts / ".text_vectors.safetensors.x.part").write_bytes(b"half")  # as a process leaves it that is killed just then
    finish(parts)
    assert outcome(parts) == outcome(tmp_path / "whole")
    assert not list(parts.rglob("*.part"))


# ---- no leak ----------------------------------------------------------------------------------------------------
def test_test_items_never_touch_anything_trained_or_chosen(chain_run, tiny_settings, chain_data, tmp_path):
    items = chain_data.items.copy()
    items[chain_data.test] = 0
    altered = dataclasses.replace(chain_data, items=items, path=None)
    assert altered.fingerprint != chain_data.fingerprint
    parse_settings(tiny_settings).fit(altered, tmp_path / "run")
    a, b = outcome(chain_run), outcome(tmp_path / "run")
    for each in (a, b):
        each["record"] = each["record"]["stages"]
    assert a == b


# ---- the language model a run was trained on ------------------------------------------------------------------------
def test_other_weights_of_the_language_model_are_refused(copied_run):
    values = json.loads((copied_run / "run.json").read_text())
    assert values["llm"]["layers"] == 1
    assert Run.open(copied_run).load("llm").num_items
    values["llm"]["fingerprint"] = "0" * 32
    (copied_run / "run.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="not what this run was trained on"):
        Run.open(copied_run).load("llm")
    assert Run.open(copied_run).load("undistilled").num_items  # the served model does not depend on it


def test_a_language_model_that_cannot_be_had_costs_no_training(tiny_settings, chain_data, tmp_path):
    with pytest.raises(ModelError, match="3 layers; 99"):
        parse_settings(changed(tiny_settings, llm__layers=99)).fit(chain_data, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_widths_that_contradict_each_other_are_refused_at_once(tiny_settings):
    with pytest.raises(ConfigError, match=r"set llm\.dim to crm"):
        parse_settings(changed(tiny_settings, llm__init_table_from_model=True, llm__dim=16))


def test_other_settings_that_contradict_each_other_are_refused_at_once(tiny_settings):
    with pytest.raises(ConfigError, match=r"set llm\.item_features to id or id\+text"):
        parse_settings(
            changed(tiny_settings, llm__init_table_from_model=True, llm__dim="crm", llm__item_features="text")
        )
    with pytest.raises(ConfigError, match=r"set llm\.encoder to a sentence encoder"):
        parse_settings(changed(tiny_settings, llm__pretrained=False, texts__encoder="llm"))


@pytest.mark.parametrize(
    ("change", "width", "starts"),
    [
        ({"llm__dim": "crm"}, 8, True),
        ({"llm__dim": 8}, 8, True),
        ({"llm__dim": 16}, 16, False),
        ({"llm__dim": None}, 32, False),  # as wide as the language model
        ({"llm__dim": "crm", "llm__item_features": "text", "texts__encoder": "llm"}, 8, False),
    ],
)
def test_the_llm_starts_from_the_crms_table_wherever_it_can(change, width, starts, tiny_settings, chain_data, tmp_path):
    settings = untrained(tiny_settings, llm__init_table_from_model="auto", **change)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    llm = run.load("llm")
    assert llm.dim == width
    with torch.no_grad():
        difference = llm.item_table()[:, :8] - crm_table(run, "undistilled")
    assert bool(difference.abs().max() < 1e-6) == starts


def test_data_that_cannot_be_trained_on_leave_no_folder(tiny_settings, tmp_path):
    data = make_dataset([[0, 1, 2], [3, 4, 5]], 6)
    with pytest.raises(DataError, match="nothing to train on"):
        parse_settings(tiny_settings).fit(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_control_for_pretraining_has_the_same_network_with_other_weights(tiny_settings, chain_data, tmp_path):
    """And it is the same random one in every stage, though only adapters are saved."""
    bases = {}
    for pretrained in (True, False):
        settings = untrained(tiny_settings, llm__pretrained=pretrained, distill__students=["llm"])
        run = parse_settings(settings).fit(chain_data, tmp_path / str(pretrained))
        for stage in ("llm", "llm-round-1"):
            parameters = run.load(stage).decoder.named_parameters()  # type: ignore[union-attr]
            bases[pretrained, stage] = {name: p.detach() for name, p in parameters if "lora" not in name and p.ndim > 1}
    real, random_one = bases[True, "llm"], bases[False, "llm"]
    assert len(real) > 7
    assert same(random_one, bases[False, "llm-round-1"])
    assert {name: p.shape for name, p in real.items()} == {name: p.shape for name, p in random_one.items()}
    assert not any(torch.equal(real[name], random_one[name]) for name in real)
