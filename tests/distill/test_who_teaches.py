"""Who teaches whom: the tables of the plan, and whole runs that follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from settings_of import changed, parse_settings
from whole_runs import LooksAt, same, taught_by, untrained

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import find, plan
from llmd4rec.distillation.teachers import Teacher
from llmd4rec.features.item_features import ItemFeature, Kind, written
from llmd4rec.models.sequential import BSARec, GRU4Rec
from llmd4rec.runs.run import Run
from llmd4rec.training.trainer import Trainer

BEFORE = {"undistilled": "", "llm": ""}


def lessons(values: dict[str, Any]) -> dict[str, str]:
    """The teachers of each stage in a plan."""
    return {stage.id: " + ".join(stage.teachers) for stage in plan(parse_settings(values))}


# ---- the plan ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "students", "expected"),
    [
        (
            "partner", ["model", "llm"],
            {
                "llm-round-1": "undistilled", "distilled-round-1": "llm-round-1",
                "llm-round-2": "distilled-round-1", "distilled-round-2": "llm-round-2",
            },
        ),
        ("partner", ["model"], {"distilled-round-1": "llm", "distilled-round-2": "llm"}),
        ("partner", ["llm"], {"llm-round-1": "undistilled", "llm-round-2": "undistilled"}),
        (
            "ensemble", ["model", "llm"],
            {
                "llm-round-1": "undistilled + llm",
                "distilled-round-1": "llm-round-1 + undistilled",
                "llm-round-2": "distilled-round-1 + llm-round-1",
                "distilled-round-2": "llm-round-2 + distilled-round-1",
            },
        ),
        (
            "ensemble", ["model"],
            {"distilled-round-1": "llm + undistilled", "distilled-round-2": "llm + distilled-round-1"},
        ),
        ("ensemble", ["llm"], {"llm-round-1": "undistilled + llm", "llm-round-2": "undistilled + llm-round-1"}),
        (
            "self", ["model", "llm"],
            {
                "llm-round-1": "llm", "distilled-round-1": "undistilled",
                "llm-round-2": "llm-round-1", "distilled-round-2": "distilled-round-1",
            },
        ),
        ("self", ["llm"], {"llm-round-1": "llm", "llm-round-2": "llm-round-1"}),
    ],
)  # fmt: skip
def test_model_and_language_model(
    source: str, students: list[str], expected: dict[str, str], tiny_settings: dict[str, Any]
) -> None:
    values = changed(tiny_settings, distill__source=source, distill__students=students, rounds=2)
    assert lessons(values) == BEFORE | expected


@pytest.mark.parametrize(
    ("source", "llm_1", "model_1", "llm_2"),
    [
        ("ensemble", "W + undistilled + llm", "llm-round-1 + W + undistilled", "W + distilled-round-1 + llm-round-1"),
        ("partner", "W + undistilled", "llm-round-1", "W + distilled-round-1"),
        ("self", "llm", "W + undistilled", "llm-round-1"),
    ],
)
@pytest.mark.parametrize("wider", [["teacher-1"], ["teacher-1", "teacher-2"]])
def test_with_wider_models(
    wider: list[str], source: str, llm_1: str, model_1: str, llm_2: str, tiny_settings: dict[str, Any]
) -> None:
    values = changed(tiny_settings, distill__source=source, teachers=len(wider), rounds=2)
    model_2 = model_1.replace("llm-round-1", "llm-round-2").replace("undistilled", "distilled-round-1")
    rounds = {
        "llm-round-1": llm_1, "distilled-round-1": model_1, "llm-round-2": llm_2, "distilled-round-2": model_2
    }  # fmt: skip
    expected = {stage: text.replace("W", " + ".join(wider)) for stage, text in rounds.items()}
    assert lessons(values) == {"undistilled": "", **dict.fromkeys(wider, ""), "llm": "", **expected}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # The language model reads the items of the first.
        ({"distill__source": "partner", "distill__students": ["model"]}, ["teacher-1"]),
        ({"distill__source": "partner", "distill__students": ["model"], "llm__inject": "never"}, []),
        ({"distill__source": "self", "distill__students": ["llm"]}, ["teacher-1"]),
        ({"distill__source": "partner", "distill__students": ["llm"]}, ["teacher-1", "teacher-2"]),
        ({"distill__source": "self", "distill__students": ["model"]}, ["teacher-1", "teacher-2"]),
    ],
)
def test_no_wider_model_is_trained_for_nobody(
    changes: dict[str, Any], expected: list[str], tiny_settings: dict[str, Any]
) -> None:
    stages = plan(parse_settings(changed(tiny_settings, teachers=2, **changes)))
    assert [stage.id for stage in stages if stage.role == "teacher"] == expected


def test_a_wider_model_of_the_served_network_keeps_its_settings() -> None:
    served = GRU4Rec(hidden=48, layers=3, dim=8, id_dropout=0.4, item_features="id+attributes")
    same_kind = Teacher(name="gru4rec", dim=32, without=("text",)).network(served)
    assert same_kind == served.model_copy(update={"dim": 32})
    expected = BSARec(dim=32, id_dropout=0.4, item_features="id", max_length=served.max_length)
    assert Teacher(name="bsarec", dim=32, without=("attributes",)).network(served) == expected


def test_rate_and_epochs_of_a_round_are_those_of_no_other_training(tiny_settings: dict[str, Any]) -> None:
    rate = tiny_settings["training"]["model"]["learning_rate"]

    def trained(stage: str, **changes: Any) -> dict[str, Any]:
        changes = {f"training__model__{key}": value for key, value in changes.items()}
        return find(plan(parse_settings(changed(tiny_settings, teachers=1, **changes))), stage).identity()

    usual = {stage: trained(stage) for stage in ("undistilled", "teacher-1", "distilled-round-1")}
    for stage in ("undistilled", "teacher-1"):
        assert trained(stage, round_learning_rate=rate / 4, round_epochs=1) == usual[stage]
    assert trained("distilled-round-1", round_learning_rate=rate) == usual["distilled-round-1"]
    slower = trained("distilled-round-1", round_learning_rate=rate / 4)
    assert slower["training"] == usual["distilled-round-1"]["training"] | {"learning_rate": rate / 4}
    assert trained("distilled-round-1", round_epochs=1)["training"]["epochs"] == 1
    assert trained("distilled-round-1", round_epochs=5)["training"]["epochs"] == 2  # no more than without a teacher


# ---- whole runs -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        {"distill__source": "partner"},
        {"distill__source": "ensemble", "ensemble__weights": "equal", "teachers": [{"dim": 16}, {"dim": 16}]},
        {"distill__source": "self"},
        {"distill__weight__model": 0, "distill__weight__llm": 0},
    ],
)
def test_a_run_follows_its_plan(
    changes: dict[str, Any], tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """Each stage in its turn, taught by its teachers; no cache is kept that nobody will ask for."""

    def caches(_trainer: Trainer) -> list[str]:
        heads = sorted((tmp_path / "run").glob("teachers/*/teacher.json"))
        return [json.loads(head.read_text())["label"] for head in heads]

    at_start = LooksAt(caches)
    settings = parse_settings(untrained(tiny_settings, rounds=2, **changes))
    run = settings.fit(chain_data, tmp_path / "run", callbacks=[at_start])
    assert taught_by(run) == {stage.id: stage.teachers for stage in run.plan}
    assert list(run.record.stages) == [stage.id for stage in run.plan]
    labels = {stage.id: " + ".join(stage.teachers) for stage in run.plan}
    assert at_start.found == {stage: [label] if label else [] for stage, label in labels.items()}
    assert run.record.finished
    assert not (run.folder / "teachers").exists()
    assert [line["stage"] for line in run.metrics()] == list(run.record.stages)


def test_a_teacher_teaches_what_it_was_when_its_stage_ended(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    def cache(trainer: Trainer) -> tuple[Any, bytes] | None:
        teacher = getattr(trainer.objective, "teacher", None)
        return None if teacher is None else (teacher.table.clone(), teacher.states[:].tobytes())

    at_start = LooksAt(cache)
    settings = changed(
        tiny_settings, rounds=2, distill__warm_start=["model", "llm"], distill__teacher_precision="float32"
    )
    run = parse_settings(settings).fit(chain_data, tmp_path / "run", callbacks=[at_start])
    for stage, teaching in taught_by(run).items():
        if not teaching:
            assert at_start.found[stage] is None
        else:
            with torch.no_grad():
                table = run.load(teaching[0]).item_table()
            assert torch.equal(at_start.found[stage][0], table)
    assert len({cached[1] for cached in at_start.found.values() if cached is not None}) == 4


def test_wider_models_teach_and_are_never_served(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "teachers": [{"dim": 16}, {"dim": 16}],
        "distill__source": "ensemble",
        "ensemble__weights": "equal",
    }
    changes |= {"llm__dim": "model", "llm__init_table_from_model": True}
    run = parse_settings(untrained(tiny_settings, **changes)).fit(chain_data, tmp_path / "run")
    wider, llm = run.load("teacher-1"), run.load("llm")
    assert (run.load("distilled").dim, wider.dim, llm.dim) == (8, 16, 16)
    assert not same(run.weights_of("teacher-1"), run.weights_of("teacher-2"))  # their seeds differ
    with torch.no_grad():  # the language model reads the wider one's items and starts from them
        torch.testing.assert_close(llm.injected, wider.item_table())
        torch.testing.assert_close(llm.item_table(), wider.item_table())
    reported = ["undistilled", "teacher-1", "teacher-2", "llm", "llm-round-1", "distilled-round-1"]
    assert [stage.id for stage in run.reported()] == reported
    assert run.resolve("served") in ("undistilled", "distilled-round-1")


class Shown(ItemFeature):
    """Says that it was asked for."""

    kind: ClassVar[Kind] = "vectors"
    asked: ClassVar[list[str]] = []

    def of(self, dataset: Dataset, text_vectors: torch.Tensor | None) -> torch.Tensor:
        self.asked.append(type(self).__name__)
        return torch.ones(dataset.num_items, 1)


class Colour(Shown):
    """One of two features."""


class Shape(Shown):
    """The other one."""


def test_features_are_made_once_for_all_that_are_trained_from_the_same(
    tiny_settings: dict[str, Any], chain_data: Dataset
) -> None:
    Shown.asked.clear()
    changes = {
        "distill__source": "self", "distill__students": ["model"], "model__item_features": ["id", Colour(), Shape()],
        "teachers": [
            {"dim": 16},
            {"dim": 16, "without": [f"{__name__}:Shape"]},
            {"dim": 16, "name": "gru4rec", "without": [f"{__name__}:Colour"]},
        ],
    }  # fmt: skip
    parse_settings(untrained(tiny_settings, rounds=2, **changes)).fit(chain_data)
    assert Shown.asked == ["Colour", "Shape", "Colour", "Shape"]


def test_wider_models_of_several_kinds(tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> None:
    """Each is built, and its items trained from, what its entry says; the student from what the served one's say."""
    changes = {
        "distill__source": "self", "distill__students": ["model"], "model__item_features": "id+text+neighbours",
        "model__dropout": 0.25, "model__max_length": 7, "texts__encoder": "llm",
        "teachers": [
            {"dim": 16},
            {"dim": 16, "without": ["text", "attributes"]},
            {"dim": 16, "name": "gru4rec", "without": ["neighbours"]},
        ],
    }  # fmt: skip
    run = parse_settings(untrained(tiny_settings, **changes)).fit(chain_data, tmp_path / "run")
    networks: list[Any] = [stage.network for stage in run.plan]
    features = [written(network.item_features) for network in networks]
    assert features == ["id+text+neighbours", "id+text+neighbours", "id+neighbours", "id+text", "id+text+neighbours"]
    wider = ("teacher-1", "teacher-2", "teacher-3")
    assert taught_by(run)["distilled-round-1"] == (*wider, "undistilled")
    models = [run.load(stage) for stage in wider]
    assert [type(model).__name__ for model in models] == ["SASRecNetwork", "SASRecNetwork", "GRU4RecNetwork"]
    assert [(model.dim, model.max_length) for model in models] == [(16, 7)] * 3
    # Another network has its own defaults.
    settings: list[Any] = [find(run.plan, stage).network for stage in wider]
    assert [network.dropout for network in settings] == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("wider", [None, [{"dim": 16}, {"dim": 16}]])
def test_no_language_model_where_none_learns_or_teaches(
    wider: list[dict[str, int]] | None, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    changes = {"distill__source": "self", "distill__students": ["model"], "teachers": wider}
    changes |= {"llm__model": str(tmp_path / "not there")}
    run = parse_settings(untrained(tiny_settings, **changes)).fit(chain_data, tmp_path / "run")
    ids = ("teacher-1", "teacher-2") if wider else ()
    assert taught_by(run) == dict.fromkeys(("undistilled", *ids), ()) | {"distilled-round-1": (*ids, "undistilled")}


@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
def test_dropout_of_a_taught_model(
    dropout: float | None, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """While it is taught, and in no other training: not of the wider one, which nobody teaches."""
    changes = {"distill__dropout": dropout, "model__dropout": 0.1, "model__id_dropout": 0.1, "teachers": 2}
    changes |= {"llm__dropout": 0.1, "llm__state_dropout": 0.1, "llm__branch_dropout": 0.1}
    run = Run.start(tmp_path / "run", parse_settings(changed(tiny_settings, **changes)), chain_data)
    rates: dict[str, set[float]] = {}
    for stage in run.plan:
        model: Any = run.build(stage)
        if stage.role == "llm":
            branches = {hook.dropout.rate for layer in model.modules() for hook in layer._forward_hooks.values()}
            rates[stage.id] = {model.dropout.rate, model.state_dropout.rate} | branches
            assert branches or (dropout == 0 and stage.round)
        else:
            rates[stage.id] = {model.dropout.rate, model.items.id_dropout}
    taught = 0.1 if dropout is None else dropout
    assert rates == {stage.id: {taught if stage.round else 0.1} for stage in run.plan}
    assert {"teacher-1", "teacher-2", "llm", "llm-round-1", "distilled-round-1"} < rates.keys()
    assert run.build(find(run.plan, "teacher-1")).dim == 32  # four times the served one's
