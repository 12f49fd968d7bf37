"""A refit carries out the plan on every row, with what validation chose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from refreshed import DAY, SETTINGS, data_of, rows, stopping, trained
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError
from llmd4rec.export.write import export_run
from llmd4rec.runs.refit import refit
from llmd4rec.runs.results import score
from llmd4rec.runs.run import Run
from llmd4rec.training.runtime import Interrupted

TAUGHT = {
    "rounds": 1,
    "teachers": 1,
    "training": {"model": {**SETTINGS["training"]["model"], "epochs": 3, "round_learning_rate": None}},
}


def test_it_trains_on_every_row_for_as_many_epochs_as_validation_chose(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    run.record.stages["undistilled"]["best_epoch"] = 2  # whatever it was, and not the last
    run.save()
    made = refit(Run.open(tmp_path / "run"), None, tmp_path / "refit")
    assert made.record.stages["undistilled"]["epochs"] == 2
    assert made.record.stages["undistilled"]["validation"] == run.validation_of("undistilled")
    assert made.record.origin is not None
    assert made.record.origin["kind"] == "refit"
    log = made.log_of("undistilled").read()
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert "validation" not in log[1]
    counts = np.load(tmp_path / "refit" / "counts.npy")
    assert counts.tolist() == data.whole().train_counts.tolist()


def test_with_the_settings_of_a_plain_run_it_trains_the_same_weights(tmp_path: Path) -> None:
    """On the rows that the run itself was trained on, a refit is the run."""
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    cut = int(np.asarray(data.times)[data.train_end - 1].max()) + 1
    first = refit(run, data.until(cut), tmp_path / "refit")
    for name, tensor in run.weights_of("undistilled").items():
        assert torch.allclose(first.weights_of("undistilled")[name], tensor, atol=1e-6), name


def test_the_learning_rate_is_halved_where_it_was_in_the_run(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    more = {"schedule": "plateau", "epochs": 12, "patience": 12, "learning_rate": 0.004}
    training = {**SETTINGS["training"]["model"], **more}
    run = trained(data, tmp_path / "run", training={"model": training})
    chosen = run.record.stages["undistilled"]
    assert chosen["halved_after"][0] < chosen["best_epoch"]  # or nothing is repeated
    cut = int(np.asarray(data.times)[data.train_end - 1].max()) + 1
    again = refit(run, data.until(cut), tmp_path / "refit")
    for name, tensor in run.weights_of("undistilled").items():
        assert torch.allclose(again.weights_of("undistilled")[name], tensor, atol=1e-6), name


def test_what_validation_chose_is_kept_in_rounds_too(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run", **TAUGHT)
    made = refit(run, data, tmp_path / "refit")
    assert list(made.record.stages) == list(run.record.stages)
    assert made.resolve() == run.resolve()
    for stage, values in run.record.stages.items():
        assert made.record.stages[stage]["teachers"] == values["teachers"]
        assert made.record.stages[stage].get("logit_adjustment") == values.get("logit_adjustment")
        assert made.record.stages[stage]["epochs"] == values["best_epoch"]


@pytest.mark.parametrize("weights", [{"transitions": 1.0, "item_knn": 2.0}, {"transitions": 1.0}])
def test_a_memory_that_has_taught_teaches_again(weights: dict[str, float], tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    asked = {"distill": {"memory": True}, "memory": {"content": None, "weights": weights}}
    run = trained(data, tmp_path / "run", **TAUGHT | asked)
    made = refit(run, data, tmp_path / "refit")
    for each in (run, made):
        assert each.record.stages["distilled-round-1"]["memory_teaches"] == {"model": 1.0, **weights}


def test_kept_teachers_are_those_of_the_run(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run", **TAUGHT)
    made = refit(run, data, tmp_path / "refit", keep_teachers=True)
    assert made.checksum_of("teacher-1") == run.checksum_of("teacher-1")
    assert made.checksum_of("undistilled") != run.checksum_of("undistilled")
    with pytest.raises(RunError, match="holds the refit of"):
        refit(run, data, tmp_path / "refit")
    fewer = trained(data, tmp_path / "other-run", **TAUGHT)
    refit(fewer, data, tmp_path / "refit-2")
    fewer.record.stages["undistilled"]["best_epoch"] += 1  # trained again, with another choice
    with pytest.raises(RunError, match="with other weights, data or options"):
        refit(fewer, data, tmp_path / "refit-2")
    other = data_of([*rows(8), ("u1", "another", 10**6)])
    with pytest.raises(RunError, match="teachers can be kept only"):
        refit(run, other, tmp_path / "other", keep_teachers=True)


def test_its_own_data_are_no_test(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    made = refit(run, data, tmp_path / "refit")
    for given in (data, data.whole()):
        with pytest.raises(RunError, match="nothing is held out"):
            score(made, given)
        with pytest.raises(RunError, match="nothing is held out"):
            score(made, given, other_data=True)
    newer = data_of(rows(10))
    assert score(made, newer, other_data=True).other_data is not None
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "refit")])
    assert result.exit_code != 0


def test_an_export_carries_the_figures_of_the_run_that_it_came_from(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    figures = score(run, data).metrics
    made = refit(run, data, tmp_path / "refit")
    export_run(made, data, tmp_path / "export")
    head = json.loads((tmp_path / "export" / "export.json").read_text())
    assert head["origin"] == {"kind": "refit", "run": "run", "metrics": figures}
    if found := head.get("memory"):  # timed on the last events, as nothing is held out
        assert found["milliseconds"] > 0
    card = (tmp_path / "export" / "README.md").read_text()
    assert "the refit of the run `run`" in card
    assert f"ndcg@10 {figures['ndcg@10']:.4f}" in card


def test_the_report_has_the_figures_of_the_run_that_it_came_from(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    figures = score(run, data).metrics
    refit(run, data, tmp_path / "refit")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "refit")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "refit" / "report.html").read_text()
    assert "nothing is held out to evaluate it on" in page
    assert "not been evaluated yet" not in page
    assert "test ndcg@10 of run" in page
    assert f"{figures['ndcg@10']:.4f}" in page
    assert "llmd4rec refit run --data data --out refit" in page


def test_an_interrupted_refit_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run", **TAUGHT)
    whole = refit(run, data, tmp_path / "whole")
    part = refit(run, data, tmp_path / "part")
    # As it is left where a process dies behind the second stage.
    del part.record.stages["distilled-round-1"]
    part.record.finished = False
    part.save()
    again = refit(run, data, tmp_path / "part")
    assert again.record.finished
    for stage in whole.record.stages:
        assert again.checksum_of(stage) == whole.checksum_of(stage), stage


def test_stopped_within_a_training_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    run.record.stages["undistilled"]["best_epoch"] = 3
    whole = refit(run, data, tmp_path / "whole")
    stopping(run)
    with pytest.raises(Interrupted):
        refit(run, data, tmp_path / "part")
    assert refit(run, data, tmp_path / "part").checksum_of("undistilled") == whole.checksum_of("undistilled")


def test_processes_side_by_side_train_on_the_rows_before_a_moment_alone(tmp_path: Path) -> None:
    late = [("late", "i0", 7 * DAY + 100), ("late", "i1", 7 * DAY + 101), ("late", "i2", 7 * DAY + 102)]
    data = data_of([*rows(8), *late], path=tmp_path / "data")
    run = trained(data, tmp_path / "run", **TAUGHT | {"threads": 1})
    times = np.asarray(data.times)
    early = data.until(int(np.sort(times)[len(times) * 3 // 4]))
    one, two = refit(run, early, tmp_path / "one"), refit(run, early, tmp_path / "two", jobs=2)
    assert {stage: one.checksum_of(stage) for stage in one.record.stages} == {
        stage: two.checksum_of(stage) for stage in two.record.stages
    }
    assert np.load(tmp_path / "two" / "counts.npy").sum() == early.num_interactions < data.num_interactions


def test_unfinished_runs_are_refused(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    run.record.finished = False
    with pytest.raises(RunError, match="not finished"):
        refit(run, data, tmp_path / "refit")


def test_the_command(tmp_path: Path) -> None:
    data_of(rows(8), path=tmp_path / "data")
    trained(Dataset.load(tmp_path / "data"), tmp_path / "run")
    result = CliRunner().invoke(app, ["refit", str(tmp_path / "run"), "--out", str(tmp_path / "refit")])
    assert result.exit_code == 0, result.output
    assert Run.open(tmp_path / "refit").record.finished
