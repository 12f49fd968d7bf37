"""The folder of a run: what it holds, what it is refused for, and what a run that cannot be leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from evaluation.examples import make_dataset
from settings_of import changed, parse_settings

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError, ModelError, RunError
from llmd4rec.models.base import count_parameters
from llmd4rec.runs.run import Run


@pytest.fixture
def copied_run(chain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain_run, tmp_path / "copied"))


# ---- a finished run ---------------------------------------------------------------------------------------------
def test_the_distilled_model_is_the_same_network(chain_run: Path) -> None:
    """Same parameters and shapes as undistilled: distillation adds nothing to what is served."""
    run = Run.open(chain_run)
    before, distilled = run.load("undistilled"), run.load("distilled")
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (before, distilled)]
    assert shapes[0] == shapes[1]
    assert count_parameters(before) == count_parameters(distilled)
    assert str(before) == str(distilled)
    assert run.record.stages["undistilled"]["parameters"] == run.record.stages["distilled-round-1"]["parameters"]
    assert not torch.equal(before.item_table(), distilled.item_table())


@pytest.mark.parametrize(("gain", "served"), [(0.1, "distilled-round-1"), (-0.1, "undistilled")])
def test_what_validation_chose_is_what_answers(gain: float, served: str, chain_run: Path) -> None:
    run = Run.open(chain_run)
    run.record.stages["distilled-round-1"]["validation"] = run.validation_of("undistilled") + gain
    assert run.recommender().info.stage == served
    assert torch.equal(run.load().item_table(), run.load(served).item_table())


def test_the_run_folder_has_everything(chain_run: Path, chain_data: Dataset) -> None:
    names = {path.name for path in chain_run.iterdir()}
    assert {"config.yaml", "environment.json", "run.json", "checkpoints", "catalogue.parquet"} <= names
    assert not {"teachers", "rollouts"} & names
    assert not list(chain_run.rglob("*.part"))
    run = Run.open(chain_run)
    for stage in run.record.stages:
        assert {path.name for path in run.checkpoint_of(stage).iterdir()} == {"best.safetensors", "metrics.jsonl"}
    for name in ("served", "llm"):
        answers = [answer.item_id for answer in run.recommender(name).recommend(["i3"], k=3).items]
        assert len(answers) == 3
        assert set(answers) <= set(chain_data.item_ids) - {"i3"}


def test_a_finished_run_is_not_trained_again(
    copied_run: Path, tiny_settings: dict[str, Any], chain_data: Dataset
) -> None:
    files = sorted((copied_run / "checkpoints").rglob("*.*"))
    before = [(path, path.stat().st_mtime_ns) for path in files]
    assert parse_settings(tiny_settings).fit(chain_data, copied_run).record.finished
    assert [(path, path.stat().st_mtime_ns) for path in files] == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 3}', '{"format": 3, "data": "x", "surprise": 1}'])
def test_a_damaged_run_is_named(copied_run: Path, content: str) -> None:
    (copied_run / "run.json").write_text(content)
    with pytest.raises((RunError, DataError), match=r"run\.json"):
        Run.open(copied_run)


def test_other_weights_of_the_language_model_are_refused(copied_run: Path) -> None:
    values = json.loads((copied_run / "run.json").read_text())
    assert values["llm"]["layers"] == 1
    assert Run.open(copied_run).load("llm").num_items
    values["llm"]["fingerprint"] = "0" * 32
    (copied_run / "run.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="not what this run was trained on"):
        Run.open(copied_run).load("llm")
    assert Run.open(copied_run).load("undistilled").num_items  # the served model does not depend on it


# ---- runs that cannot be ----------------------------------------------------------------------------------------
def test_a_folder_with_something_else_is_left_alone(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(RunError, match="is not a run folder"):
            parse_settings(tiny_settings).fit(chain_data, path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


class InterruptedCounting(Dataset):
    """Data in whose counting somebody presses Ctrl-C."""

    @property
    def train_counts(self) -> NoReturn:
        raise KeyboardInterrupt


def test_a_run_that_cannot_begin_leaves_nothing(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    data = InterruptedCounting(**{part.name: getattr(chain_data, part.name) for part in fields(chain_data)})
    with pytest.raises(KeyboardInterrupt):
        parse_settings(tiny_settings).fit(data, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_language_model_that_cannot_be_had_costs_no_training(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="3 layers; 99"):
        parse_settings(changed(tiny_settings, llm__layers=99)).fit(chain_data, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_that_cannot_be_trained_on_leave_no_folder(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    data = make_dataset([[0, 1, 2], [3, 4, 5]], 6)
    with pytest.raises(DataError, match="nothing to train on"):
        parse_settings(tiny_settings).fit(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
