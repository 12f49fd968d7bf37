"""The plan of a run: which stages, in which order, who teaches whom, and what a changed setting invalidates."""

from __future__ import annotations

from typing import Any

import pytest

from llmd4rec.config.settings import load_settings
from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.plan import Stage, find, plan, ready, rounds_of
from llmd4rec.distillation.settings import DistillationSettings, parse_settings
from llmd4rec.errors import ConfigError, RunError
from llmd4rec.features.item_features import written
from llmd4rec.models.sequential import BSARec, GRU4Rec, SASRec
from llmd4rec.runs.invalidation import conflicts, invalidated

LLM_AND_AFTER = {"llm", "llm-round-1", "distilled-round-1", "beside-memory", "llm-round-2", "distilled-round-2"}


def recipe(**changes: Any) -> DistillationSettings:
    return parse_settings(dict(EFFORTS["best"]) | {"training": {}} | changes)


def ids(settings: DistillationSettings) -> list[str]:
    return [stage.id for stage in plan(settings)]


def test_the_default_recipe() -> None:
    stages = plan(recipe())
    assert [stage.id for stage in stages] == [
        "undistilled", "teacher-1", "teacher-2", "teacher-3", "llm",
        "llm-round-1", "distilled-round-1", "beside-memory", "llm-round-2", "distilled-round-2",
    ]  # fmt: skip
    by_id = {stage.id: stage for stage in stages}
    teachers = ("teacher-1", "teacher-2", "teacher-3")
    assert by_id["llm-round-1"].teachers == (*teachers, "undistilled", "llm")
    assert by_id["distilled-round-1"].teachers == ("llm-round-1", *teachers, "undistilled")
    assert by_id["beside-memory"].taught_by == by_id["distilled-round-1"].taught_by
    assert by_id["llm-round-2"].teachers == (*teachers, "distilled-round-1", "llm-round-1")
    assert by_id["distilled-round-2"].teachers == ("llm-round-2", *teachers, "distilled-round-1")
    assert by_id["llm"].item_embeddings_of == "teacher-1"
    assert by_id["llm-round-2"].starts_from == "llm-round-1"
    assert by_id["distilled-round-2"].starts_from is None
    assert [type(by_id[name].network) for name in teachers] == [SASRec, GRU4Rec, BSARec]
    assert {by_id[name].network.dim for name in teachers} == {256}


def test_a_stage_stands_behind_all_that_it_needs() -> None:
    for settings in (recipe(), recipe(teachers=None), recipe(distill={"source": "self"}), recipe(llm=None)):
        seen: set[str] = set()
        for stage in plan(settings):
            assert seen.issuperset(stage.needs), stage.id
            seen.add(stage.id)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds": 0}, ["undistilled"]),
        (
            {"llm": None, "rounds": 1},
            ["undistilled", "teacher-1", "teacher-2", "teacher-3", "distilled-round-1", "beside-memory"],
        ),
        (
            {"llm": None, "rounds": 1, "memory": None},
            ["undistilled", "teacher-1", "teacher-2", "teacher-3", "distilled-round-1"],
        ),
        # The model learns from the language model alone, which learns from the teachers.
        (
            {"teachers": 1, "rounds": 1, "distill": {"source": "partner"}},
            ["undistilled", "teacher-1", "llm", "llm-round-1", "distilled-round-1"],
        ),
        # With students: [model] nobody learns from teacher-2: the language model, its one source, reads teacher-1.
        (
            {"teachers": 2, "rounds": 1, "distill": {"source": "partner", "students": ["model"]}},
            ["undistilled", "teacher-1", "llm", "distilled-round-1"],
        ),
        (
            {"rounds": 1, "distill": {"source": "self", "students": ["model"]}, "teachers": None},
            ["undistilled", "distilled-round-1"],
        ),
        ({"rounds": 1, "teachers": None, "distill": {"students": ["llm"]}}, ["undistilled", "llm", "llm-round-1"]),
    ],
)  # fmt: skip
def test_only_what_somebody_learns_from_is_trained(changes: dict[str, Any], expected: list[str]) -> None:
    assert ids(recipe(**changes)) == expected


def test_what_python_does_not_name_is_not_trained() -> None:
    assert ids(DistillationSettings(rounds=0)) == ["undistilled"]
    assert "llm" not in ids(DistillationSettings(teachers=1))
    with pytest.raises(ValueError, match="nothing teaches"):
        DistillationSettings()


def test_without_dropout_only_while_taught() -> None:
    stages = {stage.id: stage for stage in plan(recipe())}
    networks: dict[str, Any] = {stage: each.network for stage, each in stages.items()}
    assert networks["undistilled"].dropout == 0.5
    assert networks["distilled-round-1"].dropout == networks["distilled-round-1"].id_dropout == 0
    assert networks["llm-round-1"].branch_dropout == 0
    assert stages["distilled-round-1"].training.learning_rate == 4e-3
    kept: Any = find(plan(recipe(distill={"dropout": None})), "distilled-round-1").network
    assert kept.dropout == 0.5


def test_a_weight_of_zero_trains_as_often_and_is_taught_by_nobody() -> None:
    stage = find(plan(recipe(distill={"weight": {"model": 0.0}})), "distilled-round-1")
    assert stage.teachers == ()
    assert stage.teaching is None
    assert isinstance(stage.network, SASRec)
    assert stage.network.dropout == 0


def test_a_model_trained_anew_has_other_axes_and_is_not_injected() -> None:
    settings = recipe(teachers=None)
    second = find(plan(settings), "llm-round-2")
    assert second.item_embeddings_of is None
    assert "other axes" in second.note
    warm = recipe(teachers=None, distill={"warm_start": ["model", "llm"]})
    assert find(plan(warm), "llm-round-2").item_embeddings_of == "distilled-round-1"


def test_teachers_name_what_they_change() -> None:
    settings = recipe(teachers=[{"name": "gru4rec", "dim": 96, "hidden": 32, "without": ["text"]}], model={"dim": 32})
    network = find(plan(settings), "teacher-1").network
    assert isinstance(network, GRU4Rec)
    assert (network.dim, network.hidden) == (96, 32)
    assert written(network.item_features) == "id+words+attributes+neighbours"
    assert find(plan(settings), "llm").item_dim == 96


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"name": "gru4rec", "heads": 2}, "'heads' is no setting of gru4rec"),
        ({"dim": 63, "heads": 2}, "does not divide"),
        ({"name": "bert4rec"}, "teachers.0.name"),
    ],
)
def test_wrong_teachers(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(teachers=[teacher])


def test_independent_stages() -> None:
    stages = plan(recipe())
    assert [stage.id for stage in ready(stages, ())] == ["undistilled", "teacher-1", "teacher-2", "teacher-3"]
    assert [stage.id for stage in ready(stages, ["teacher-1"])][-1] == "llm"


def test_finding_a_stage() -> None:
    stages = plan(recipe())
    assert [stage.round for stage in rounds_of(stages, "llm")] == [1, 2]
    with pytest.raises(RunError, match="undistilled, teacher-1"):
        find(stages, "teacher-9")


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"device": "cpu", "threads": 1, "training": {"model": {"checkpoint_seconds": 1}}}, set()),
        ({"evaluation": {"cutoffs": [3]}}, set()),
        ({"rounds": 3}, set()),
        ({"rounds": 1}, {"llm-round-2", "distilled-round-2"}),
        (
            {"distill": {"weight": {"model": 1.0}}},
            {"distilled-round-1", "beside-memory", "llm-round-2", "distilled-round-2"},
        ),
        ({"distill": {"memory": "auto", "beside_memory": False}}, {"beside-memory"}),
        ({"llm": {"layers": 3}}, LLM_AND_AFTER),
        ({"training": {"llm": {"epochs": 9}}}, LLM_AND_AFTER),
        ({"seed": 1}, set(ids(recipe()))),
        ({"texts": {"fields": ["title"]}}, set(ids(recipe()))),
    ],
)  # fmt: skip
def test_what_a_setting_invalidates(changes: dict[str, Any], lost: set[str]) -> None:
    assert invalidated(recipe(), recipe(**changes)) == lost


def test_a_teacher_invalidates_its_pupils_and_not_the_model() -> None:
    changed = recipe(teachers=[{}, {"name": "gru4rec", "dim": 128}, {"name": "bsarec"}])
    lost = invalidated(recipe(), changed)
    assert "teacher-2" in lost
    assert "distilled-round-1" in lost
    assert not {"undistilled", "teacher-1", "teacher-3", "llm"} & lost


def test_the_settings_that_stand_in_the_way_are_named() -> None:
    new = recipe(llm={"layers": 3}, rounds=4, training={"llm": {"epochs": 9}}, device="cpu")
    assert conflicts(recipe(), new, ["undistilled", "teacher-1"]) == {}
    found = conflicts(recipe(), new, ["undistilled", "llm"])
    assert sorted(line.partition(":")[0] for line in found) == ["llm.layers", "training.llm.epochs"]
    assert all(stages == ["llm"] for stages in found.values())


def test_less_patience_than_a_round_was_trained_with() -> None:
    old, new = recipe(round_patience=2), recipe(round_patience=1)
    assert conflicts(old, new, ["undistilled"]) == {}
    assert list(conflicts(old, new, ["undistilled", "llm-round-1"])) == ["round_patience: 2 → 1"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("crm.dim=32", "model"),
        ("wide=128", "teachers"),
        ("lambda_up=2", "distill.weight.model"),
        ("llm.items=id", "llm.item_features"),
        ("training.crm.epochs=3", "training.model"),
        ("training.llm.average=0.9", "training.llm.ema"),
        ("evaluation.seen=keep", "evaluation.filter_seen"),
        ("direction=up", "distill.students"),
    ],
)
def test_an_old_key_names_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(DistillationSettings, None, [old], base=dict(EFFORTS["best"]))
    assert new in caught.value.what


def test_equal_settings_have_equal_plans() -> None:
    def plain(stages: list[Stage]) -> list[dict[str, Any]]:
        return [stage.identity() for stage in stages]

    assert plain(plan(recipe())) == plain(plan(parse_settings(recipe().model_dump(mode="json"))))
