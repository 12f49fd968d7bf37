"""Metrics of a user's own, from settings to every place where figures are shown."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from settings_of import parse_settings
from typer.testing import CliRunner

from llmd4rec import Evaluator, Run
from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation import Evaluation

from .outside_metrics import MeanRank, TitleLength

HERE = "evaluation.outside_metrics"
METRICS = ["ndcg", "novelty@10", f"{HERE}:MeanRank", {"name": f"{HERE}:TitleLength", "k": 3}, f"{HERE}:Vectors@10"]


def llmd4rec(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any], chain_data: Dataset) -> Path:
    values = copy.deepcopy(tiny_settings)
    values["evaluation"] = {"cutoffs": [1, 10], "metrics": METRICS}
    folder = tmp_path_factory.mktemp("outside") / "run"
    parse_settings(values).fit(chain_data, folder)
    return folder


def test_settings_name_them(run: Path) -> None:
    assert Run.open(run).settings.evaluation.metrics[2:4] == (MeanRank(), TitleLength(3))
    written = (run / "config.yaml").read_text()
    assert f"{HERE}:MeanRank" in written


def test_evaluate_shows_and_keeps_them(run: Path) -> None:
    value = json.loads(llmd4rec("evaluate", run, "--json"))
    names = ["ndcg@1", "ndcg@10", "novelty@10", "mean_rank", "title_length@3", "vectors@10"]
    assert list(value["metrics"]) == names
    assert value["metrics"]["vectors@10"] == 8
    assert set(value["slices"]["short_history"]) <= {"users", *names[:-1]}
    table = llmd4rec("evaluate", run)
    assert all(word in table for word in ("NDCG", "Novelty", "MeanRank", "TitleLength", "vectors@10 8"))
    saved = Evaluation.load(run / "evaluation" / f"{value['stage']}-test")
    assert saved.per_user["mean_rank"].mean() == pytest.approx(value["metrics"]["mean_rank"])
    assert saved.info("title_length@3").higher_is_better is False


def test_compare_tests_them(run: Path) -> None:
    value = json.loads(llmd4rec("compare", run, run, "--stage-a", "undistilled", "--stage-b", "llm", "--json"))
    found = value["overall"]["metrics"]
    assert {"ndcg@1", "novelty@10", "mean_rank", "title_length@3"} <= set(found)
    assert 0 < found["title_length@3"]["p"] <= 1
    first, second = (Evaluation.load(run / "evaluation" / f"{stage}-test") for stage in ("undistilled", "llm"))
    smaller = int((second.per_user["mean_rank"].to_numpy() < first.per_user["mean_rank"].to_numpy()).sum())
    assert found["mean_rank"]["better"] == smaller  # a smaller rank is the better one
    assert "mean_rank" in llmd4rec("compare", run, run, "--stage-a", "undistilled")


def test_the_report_shows_them(run: Path) -> None:
    table = llmd4rec("report", run)
    page = (run / "report.html").read_text()
    for label in ("NDCG@10", "MeanRank", "TitleLength@3"):
        assert label in table
        assert label in page


def test_an_evaluator_takes_instances_names_and_paths(run: Path, chain_data: Dataset) -> None:
    evaluator = Evaluator([MeanRank(), f"{HERE}:TitleLength@3", "hr"], cutoffs=(10,))
    found = evaluator.evaluate(Run.open(run), chain_data, stage="undistilled")
    assert list(found.metrics) == ["hr@10", "mean_rank", "title_length@3"]
    assert (found.model, found.stage) == ("SASRec 8", "undistilled")
    again = evaluator.evaluate(Run.open(run).load("undistilled"), chain_data)
    assert again.metrics == found.metrics


def test_targets_of_the_command_line(run: Path) -> None:
    value = json.loads(llmd4rec("evaluate", run, "--targets", "all", "--split", "valid", "--json"))
    assert (value["targets"], value["num_targets"]) == ("all", value["users"])  # leave-one-out
    assert "targets next:3" in llmd4rec("evaluate", run, "--targets", "next:3")
    llmd4rec("compare", run, run, "--targets", "all")
    refused = CliRunner().invoke(app, ["evaluate", str(run), "--targets", "next:0"])
    assert refused.exit_code != 0
