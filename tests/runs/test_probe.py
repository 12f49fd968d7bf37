"""How long a run will take, foretold; on data so small that only the structure of what is said can be tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.examples import chain_dataset
from settings_of import changed, parse_settings
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import Stage, plan
from llmd4rec.errors import DataError
from llmd4rec.log import logger
from llmd4rec.models.llm.assemble import text_encoder
from llmd4rec.models.llm.item_text import unknown_texts
from llmd4rec.runs.estimates import RunEstimate, StageEstimate
from llmd4rec.runs.probe import TEXTS, probe


@pytest.fixture(scope="module")
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    """A teacher, and a model that is taught; no language model."""
    return changed(
        tiny_settings, llm=None, teachers=1, distill__source="ensemble", memory={"content": None}, distill__memory=True
    )


@pytest.fixture(scope="module")
def estimate(settings: dict[str, Any], chain_data: Dataset) -> RunEstimate:
    return probe(parse_settings(settings), chain_data)


def test_every_stage_of_the_plan_is_measured(settings: dict[str, Any], estimate: RunEstimate) -> None:
    stages = {each.stage: each for each in estimate.stages}
    assert list(stages) == ["undistilled", "teacher-1", "distilled-round-1"]
    for found in stages.values():
        assert found.step > 0
        assert found.validation > 0
        # 30 users of 8 items, two of them held out: 150 positions in batches of at most 64, four steps at least.
        assert found.steps == 4
        assert found.epochs == (2, 2, 2)
        assert found.most_epochs == 2
    assert not stages["undistilled"].teachers
    assert stages["distilled-round-1"].teachers > 0
    assert estimate.memory > 0
    json.dumps(estimate.to_json())


def test_a_stage_is_its_teachers_its_epochs_and_a_validation_more_than_those() -> None:
    found = StageEstimate("a", 0.5, 10, 2.0, teachers=30.0, epochs=(3, 4, 5), most_epochs=100)
    assert found.epoch == 7
    assert found.expected == pytest.approx((53, 60, 67))
    assert found.at_most == 732


def stages_of(settings: dict[str, Any]) -> list[Stage]:
    return plan(parse_settings(changed(settings, teachers=2)))


def with_seconds(stages: list[Stage], seconds: list[float], jobs: int) -> RunEstimate:
    each = [
        StageEstimate(stage.id, 0, 1, 0, teachers=took, epochs=(1, 1, 1), most_epochs=1)
        for stage, took in zip(stages, seconds, strict=True)
    ]
    return RunEstimate(each, texts=1, memory=2, jobs=jobs, plan=stages)


@pytest.mark.parametrize(
    ("jobs", "done", "wall"),
    [
        (1, [], 10 + 20 + 15 + 5 + 3),
        (2, [], 25 + 5 + 3),  # the second teacher begins when the model is done
        (3, [], 20 + 5 + 3),
        (2, ["teacher-1"], 15 + 5 + 3),
        (1, ["undistilled", "teacher-1", "teacher-2"], 5 + 3),
    ],
)
def test_side_by_side_a_run_is_as_long_as_its_schedule(
    settings: dict[str, Any], jobs: int, done: list[str], wall: float
) -> None:
    assert with_seconds(stages_of(settings), [10, 20, 15, 5], jobs).wall(done) == wall


@pytest.mark.parametrize(
    ("jobs", "done", "wall"),
    [
        (1, [], 10 + 20 + 50 + 30 + 3),
        (2, [], 20 + 50 + 3),  # the 50 are 7 of caching and 43 of training, the 30 of training alone
        (2, ["distilled-round-1"], 20 + 30 + 3),
    ],
)
def test_side_by_side_the_models_of_a_round_wait_for_the_teachers_once(
    settings: dict[str, Any], jobs: int, done: list[str], wall: float
) -> None:
    stages = plan(parse_settings(changed(settings, distill__beside_memory=True)))
    each = [
        StageEstimate(stage.id, 0, 1, took - cached, teachers=cached, epochs=(0, 0, 0), most_epochs=1)
        for stage, took, cached in zip(stages, [10.0, 20.0, 50.0, 30.0], [0.0, 0.0, 7.0, 0.0], strict=True)
    ]
    assert RunEstimate(each, texts=1, memory=2, jobs=jobs, plan=stages).wall(done) == wall


def test_a_probe_changes_nothing_of_its_process(settings: dict[str, Any], chain_data: Dataset) -> None:
    threads, level = torch.get_num_threads(), logger.level
    with pytest.raises(DataError, match="no validation targets"):
        probe(parse_settings(settings), replace(chain_data, valid=np.empty(0, np.int64)))
    assert (torch.get_num_threads(), logger.level) == (threads, level)


def test_longer_histories_are_drawn_for_the_probe_too(tiny_settings: dict[str, Any], chain_data: Dataset) -> None:
    values = changed(
        tiny_settings,
        llm=None,
        teachers=1,
        distill__source="ensemble",
        distill__rollout_length=2,
        distill__warm_start=[],
    )
    assert probe(parse_settings(values), chain_data).stages[-1].teachers > 0


def test_a_language_model_is_probed_like_the_others(tiny_settings: dict[str, Any], chain_data: Dataset) -> None:
    found = probe(parse_settings(tiny_settings), chain_data, jobs=2)
    assert [each.stage for each in found.stages] == ["undistilled", "llm", "llm-round-1", "distilled-round-1"]
    assert found.jobs == 2


def test_the_plan_shows_what_was_probed(settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(json.dumps(settings))
    command = ["train", str(path), "--plan", "--probe", "--data", str(chain_data.path), "--run", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "250", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    assert "expected" in shown.stdout
    assert "All of it about" in shown.stdout
    assert not (tmp_path / "run").exists()
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [stage["id"] for stage in found["stages"]] == list(found["estimate"]["stages"])
    assert set(found["estimate"]["seconds"]) == {"few", "usual", "many"}


@pytest.mark.parametrize("options", [["--probe"], ["--plan", "--probe"]])
def test_a_probe_needs_data_and_is_of_a_plan(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["train", *options], env={"COLUMNS": "250", "TERM": "dumb"})
    assert result.exit_code == 2
    assert "give it with --plan and --data" in result.stderr


def test_texts_that_nobody_has_encoded_are_encoded_in_part(
    tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD4REC_CACHE", str(tmp_path))
    data = chain_dataset(users=30, items=500, length=8)
    values = changed(tiny_settings, texts__encoder="llm", model__item_features="id+text")
    settings = parse_settings(values)
    assert probe(settings, data).texts > 0
    encoder = text_encoder(settings.texts, settings.llm, torch.device("cpu"))
    assert len(unknown_texts(data.texts(), "llm", llm=encoder)) == 500 - TEXTS
