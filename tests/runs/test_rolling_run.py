from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from experiment_scripts import script
from made_once import MadeOnce
from settings_of import parse_settings
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError, DataError, RunError
from llmd4rec.evaluation.rolling_evaluation import RollingEvaluation
from llmd4rec.evaluation.windows import Rolling
from llmd4rec.runs.refit import refit
from llmd4rec.runs.rolling import folder_of, models_of, score_rolling
from llmd4rec.runs.run import Run
from llmd4rec.training import checkpoint

DAY = 86_400


@pytest.fixture(scope="session")
def temporal_run(made_once: MadeOnce, tiny_settings: dict[str, Any]) -> Path:
    """A finished run on a temporal split: sixty days in which items follow one another; copy it before changing it."""

    def make(folder: Path) -> None:
        rng = np.random.default_rng(0)
        rows = []
        for user in range(60):
            start, first = int(rng.integers(0, 12)), int(rng.integers(0, 40))
            for step in range(int(rng.integers(4, 10))):
                rows.append((f"u{user}", f"i{(start + step) % 12}", (first + 3 * step) * DAY + user))
        log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        data = Dataset.from_frames(log, split="temporal", test_fraction=0.3, valid_fraction=0.1)
        data.save(folder / "data")
        settings = parse_settings(tiny_settings | {"rounds": 0, "llm": None})
        settings.fit(Dataset.load(folder / "data"), folder / "run")

    return made_once("temporal", make)


@pytest.fixture
def run(temporal_run: Path, tmp_path: Path) -> Run:
    shutil.copytree(temporal_run, tmp_path / "copy")
    return Run.open(tmp_path / "copy" / "run")


def asked(data: Dataset, **more: Any) -> Rolling:
    return Rolling(**({"windows": 3, "every": 4 * DAY, "choose_on": 1} | more))


def test_models_beside_the_memory_are_saved(run: Run, temporal_run: Path) -> None:
    data = Dataset.load(temporal_run / "data")
    question = asked(data)
    found = score_rolling(run, data, asked=question, modes=["frozen", "updated"])
    models = [name for name, kind in found.kinds.items() if kind == "model"]
    assert models == ["frozen", "updated"]
    saved = RollingEvaluation.load(folder_of(run, "undistilled", question))
    assert saved.to_json() == found.to_json()
    assert {(each.first, each.second) for each in found.differences()} >= {("memory", "frozen"), ("memory", "updated")}
    # The frozen model has not seen what came since; each update goes on from the one before.
    frozen, updated = (found.per_target.filter(scorer=name)["rank"].to_numpy() for name in models)
    assert (frozen != updated).any()
    origins = [json.loads((path / "run.json").read_text()) for path in sorted(run.folder.glob("rolling/*/window-*"))]
    assert len(origins) == 3


def test_updates_are_not_repeated(run: Run, temporal_run: Path) -> None:
    data = Dataset.load(temporal_run / "data")
    first = score_rolling(run, data, asked=asked(data), modes=["updated"])
    weights = sorted(run.folder.glob("rolling/**/best.safetensors"))
    times = [path.stat().st_mtime_ns for path in weights]
    again = score_rolling(run, data, asked=asked(data, targets="all"), modes=["updated"])
    assert [path.stat().st_mtime_ns for path in weights] == times
    assert again.targets() == first.targets()


def test_refitted_for_each_window(run: Run, temporal_run: Path) -> None:
    data = Dataset.load(temporal_run / "data")
    found = score_rolling(run, data, asked=asked(data, windows=2, choose_on=0), modes=["refitted"])
    assert len(list(run.folder.glob("rolling/refitted/*/run.json"))) == 2
    assert found.figure("refitted", "ndcg@10") is not None


def test_what_was_trained_of_the_run_as_it_was_is_trained_anew(run: Run, temporal_run: Path) -> None:
    """A run may be trained further, so that its windows come from something else; no one could name another folder."""
    data = Dataset.load(temporal_run / "data")
    question = asked(data, windows=2, choose_on=0)
    score_rolling(run, data, asked=question, modes=["refitted", "updated"])
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("rolling/**/best.safetensors")}
    run.record.stages["undistilled"]["best_epoch"] = 1
    run.record.stages["undistilled"]["checksum"] = checkpoint_changed(run)
    run.save()
    score_rolling(Run.open(run.folder), data, asked=question, modes=["refitted", "updated"])
    after = {path: path.stat().st_mtime_ns for path in run.folder.glob("rolling/**/best.safetensors")}
    assert after.keys() == before.keys()
    assert all(after[path] != before[path] for path in before)


def checkpoint_changed(run: Run) -> str:
    """Other weights of the undistilled model, and their checksum."""
    model = run.load("undistilled")
    with torch.no_grad():
        model.items.weight.add_(0.01)  # type: ignore[union-attr, operator]
    path = run.checkpoint_of("undistilled") / "best.safetensors"
    return checkpoint.save(path, model.saved_state(), {"stage": "undistilled", "epoch": 1, "value": 0.0})


def test_what_cannot_be_rolled_is_said(run: Run, temporal_run: Path, tmp_path: Path) -> None:
    data = Dataset.load(temporal_run / "data")
    with pytest.raises(ConfigError, match="memory is no model"):
        score_rolling(run, data, "memory", asked=asked(data))
    with pytest.raises(DataError, match=r"(?s)1 window behind the cut.*--choose-on"):
        score_rolling(run, data, asked=asked(data, windows=10, every=40 * DAY, choose_on=3))
    refitted = refit(run, data, tmp_path / "refit")
    with pytest.raises(RunError, match=r"(?s)trained on every row.*copy/run"):
        score_rolling(refitted, data, asked=asked(data))


def test_options_that_would_be_ignored_are_refused(run: Run, temporal_run: Path) -> None:
    for command, said in (
        (["evaluate", str(run.folder), "--modes", "updated"], "--modes is for --rolling"),
        (["evaluate", str(run.folder), "--rolling", "--split", "valid"], "--split has no meaning with --rolling"),
        (["baselines", str(temporal_run / "data"), "--cut-fraction", "0.2"], "--cut-fraction is for --rolling"),
    ):
        told = CliRunner().invoke(app, command)
        assert told.exit_code == 2
        assert said in told.output


def test_updates_are_compared_with_refits_before_single_windows(run: Run, temporal_run: Path) -> None:
    found = script("weeks").figures(run, Dataset.load(temporal_run / "data"), [1], 4 * DAY)
    assert list(found) == [1]
    assert {"frozen", "updated", "refitted"} == found[1]["ndcg@10"].keys()
    assert next((each["first"], each["second"]) for each in found[1]["differences"]) == ("refitted", "updated")
    assert all(found[1]["seconds"][mode] > 0 for mode in ("updated", "refitted"))
    # Updates go on from one window to the next; refits are made where they are asked for.
    assert len(list(run.folder.glob("rolling/updated-every-4-days/*/run.json"))) == 2
    assert len(list(run.folder.glob("rolling/refitted/*/run.json"))) == 1


def test_wrong_modes_are_refused(run: Run, temporal_run: Path) -> None:
    data = Dataset.load(temporal_run / "data")
    with pytest.raises(ConfigError, match=r"(?s)no mode 'thawed'.*frozen, updated, refitted"):
        models_of(run, data, "undistilled", ["thawed"])


def test_the_command(run: Run, temporal_run: Path) -> None:
    command = ["evaluate", str(run.folder), "--rolling", "--windows", "3", "--every", "4d", "--choose-on", "1"]
    command += ["--data", str(temporal_run / "data")]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert [window["shown"] for window in found["windows"]] == [False, True, True]
    assert {"memory", "frozen", "frozen + memory"} <= found["scorers"].keys()
    assert "windows of 4 days from" in CliRunner().invoke(app, command).stdout


def test_a_run_on_another_split_is_refused(chain_run: Path, chain_data: Dataset) -> None:
    with pytest.raises(DataError, match=r"(?s)no moment behind which everything is held out.*--split temporal"):
        score_rolling(Run.open(chain_run), chain_data, asked=Rolling())
