"""What the report takes from a run folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.examples import LastItemModel, evaluate

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import network_name
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.losses.sample_weights import WEIGHT_BINS
from llmd4rec.report import render
from llmd4rec.report.from_run import report_content, write_run_report
from llmd4rec.runs.results import Result, score_run
from llmd4rec.runs.run import Run

#: The served model, two teachers of one network and one of another, and a language model that is never built.
SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "model": {"dim": 8, "heads": 2},
    "teachers": [{}, {"name": "gru4rec", "dim": 16}, {"name": "gru4rec", "dim": 16}],
    "llm": {"model": "someone/Tiny-Llama"},
}


def record(ndcg: float, teachers: Mapping[str, int] = {}, **more: object) -> dict[str, Any]:
    return {
        "validation": ndcg,
        "best_epoch": 2,
        "epochs": 3,
        "seconds": 10.0,
        "teachers": dict(teachers),
        "parameters": 1000,
        **more,
    }


#: A run that ended after the first of two rounds.
RECORD = {
    "undistilled": record(0.10),
    "teacher-1": record(0.12),
    "teacher-2": record(0.11),
    "teacher-3": record(0.11),
    "llm": record(0.08),
    "llm-round-1": record(0.09, {"teacher-1": 1, "teacher-2": 1, "teacher-3": 0, "undistilled": 0, "llm": 0}),
    "distilled-round-1": record(
        0.13,
        {"llm-round-1": 0, "teacher-1": 2, "teacher-2": 1, "teacher-3": 1, "undistilled": 0},
        logit_adjustment=0.2,
        half_life_days=60.0,
        newest_days=28.0,
        best_epoch=0,
    ),
}


@pytest.fixture
def make_run(tmp_path: Path, chain_data: Dataset) -> Callable[..., Run]:
    def make(stages: Mapping[str, dict[str, Any]] = RECORD, **settings: Any) -> Run:
        run = Run.start(tmp_path / "run", DistillationSettings.model_validate(SETTINGS | settings), chain_data)
        run.record.stages.update(stages)
        for stage in run.plan:
            if stage.id not in stages:
                continue
            run.checkpoint_of(stage.id).mkdir(parents=True)
            for epoch in range(4):
                weights = {"weight_mean": 0.9 + epoch / 100, "weight_counts": [epoch] * WEIGHT_BINS}
                line = {
                    "stage": stage.id,
                    "epoch": epoch,
                    "validation": stages[stage.id]["validation"],
                    "ce": 1.0,
                }
                run.log_of(stage.id).append(**line, **(weights if stage.teachers and epoch else {}))
        return run

    return make


def results(run: Run, data: Dataset, served: str) -> list[Result]:
    """Of models that were never trained."""
    found: list[Result] = []
    for stage in run.reported():
        table = torch.randn(data.num_items, 4, generator=torch.Generator().manual_seed(len(found)))
        evaluation = evaluate(LastItemModel(table), data, name=network_name(stage), stage=stage.id)
        found.append(Result(stage, evaluation, stage.id == served, 1000 + len(found), 20.0, 1.5))
    return found


def test_all_stages_have_a_row_and_the_served_one_is_marked(make_run: Callable[..., Run], chain_data: Dataset) -> None:
    run = make_run()
    content = report_content(run, chain_data, results(run, chain_data, "distilled-round-1"))
    assert [(row.stage, row.role, row.round, row.network, row.served) for row in content.rows] == [
        ("undistilled", "model", 0, "SASRec 8", False),
        ("teacher-1", "teacher", 0, "SASRec 32", False),
        ("teacher-2", "teacher", 0, "GRU4Rec 16", False),
        ("teacher-3", "teacher", 0, "GRU4Rec 16", False),
        ("llm", "llm", 0, "Tiny-Llama", False),
        ("llm-round-1", "llm", 1, "Tiny-Llama", False),
        ("distilled-round-1", "model", 1, "SASRec 8", True),
    ]
    assert (content.model, content.llm) == ("SASRec 8", "Tiny-Llama")
    page = render(content)
    assert page.count("<b>served</b>") == 1
    for stage in RECORD:
        assert f"{stage}<small>" in page


def test_the_undistilled_model_is_compared_with_the_served_one(
    make_run: Callable[..., Run], chain_data: Dataset
) -> None:
    stages = RECORD | {"llm-round-2": record(0.09), "distilled-round-2": record(0.12)}
    run = make_run(stages)
    scored = results(run, chain_data, "distilled-round-1")
    assert [result.name for result in scored if result.stage is not None and result.stage.round] == [
        "distilled-round-1", "llm-round-2", "distilled-round-2",
    ]  # fmt: skip
    content = report_content(run, chain_data, scored)
    assert (content.undistilled, content.distilled) == ("undistilled", "distilled-round-1")
    assert content.comparison is not None
    assert content.comparison.first == "undistilled (SASRec 8)"
    assert content.comparison.second == "distilled-round-1 (SASRec 8)"
    assert content.llm_comparison is not None
    assert content.llm_comparison.first == "distilled-round-1 (SASRec 8)"
    assert content.llm_comparison.second == "llm-round-2 (Tiny-Llama)"
    figures = {result.name: result.evaluation.metrics["ndcg@10"] for result in scored}
    d = content.comparison.overall.metrics["ndcg@10"]
    assert (d.first, d.second) == pytest.approx((figures["undistilled"], figures["distilled-round-1"]))


def test_where_the_undistilled_model_is_served_the_last_round_is_compared(
    make_run: Callable[..., Run], chain_data: Dataset
) -> None:
    stages = RECORD | {"llm-round-2": record(0.09), "distilled-round-2": record(0.12)}
    run = make_run(stages | {"undistilled": record(0.2)})
    content = report_content(run, chain_data, results(run, chain_data, "undistilled"))
    assert content.distilled == "distilled-round-2"
    assert "the undistilled model is better, so it is the one that is served" in render(content)


def test_a_model_without_rounds_is_compared_with_nothing(make_run: Callable[..., Run], chain_data: Dataset) -> None:
    run = make_run({"undistilled": record(0.1)}, rounds=0, teachers=None, llm=None)
    content = report_content(run, chain_data, results(run, chain_data, "undistilled"))
    assert content.comparison is content.llm_comparison is None
    assert not content.examples
    assert "SASRec 8 (undistilled) reaches" in render(content)


def test_the_plan_holds_what_was_trained_and_what_was_not(make_run: Callable[..., Run], chain_data: Dataset) -> None:
    run = make_run()
    run.record.stopped_because = "round 1 did not improve the validation NDCG@10"
    content = report_content(run, chain_data, [])
    rows = {row.stage: row for row in content.plan}
    assert list(rows) == [*RECORD, "llm-round-2", "distilled-round-2"]
    taught = rows["distilled-round-1"]
    assert taught.teachers == RECORD["distilled-round-1"]["teachers"]
    assert list(taught.teachers) == list(run.plan[6].teachers)
    assert (taught.logit_adjustment, taught.best_epoch, taught.epochs, taught.seconds) == (0.2, 0, 3, 10.0)
    assert (taught.half_life_days, rows["undistilled"].half_life_days) == (60, None)
    assert (taught.newest_days, rows["undistilled"].newest_days) == (28, None)
    assert rows["llm-round-1"].starts_from == "llm"
    assert rows["llm"].item_embeddings_of == "teacher-1"
    assert rows["distilled-round-2"].seconds is None
    assert set(rows["distilled-round-2"].teachers.values()) == {None}
    page = render(content)
    assert "teacher-1 (50%), teacher-2 (25%) and teacher-3 (25%); unused: llm-round-1, undistilled" in page
    assert "round 1 did not improve" in page


def test_each_stage_has_a_line_of_its_own(make_run: Callable[..., Run], chain_data: Dataset) -> None:
    content = report_content(make_run(), chain_data, [])
    points = {(point.stage, point.role, point.round): point.value for point in content.curves if point.epoch == 1}
    assert points == {
        ("undistilled", "model", 0): 0.10,
        ("teacher-1", "teacher", 0): 0.12,
        ("teacher-2", "teacher", 0): 0.11,
        ("teacher-3", "teacher", 0): 0.11,
        ("llm", "llm", 0): 0.08,
        ("llm-round-1", "llm", 1): 0.09,
        ("distilled-round-1", "model", 1): 0.13,
    }
    assert {point.epoch for point in content.curves} == {1, 2, 3}
    learning = render(content).partition("round by round")[2].partition("</section>")[0]
    for stage in RECORD:
        assert f"<th scope='row'>{stage}</th>" in learning
    assert "Teachers: SASRec 32 and GRU4Rec 16" in learning
    assert "Tiny-Llama" in learning


def test_a_run_without_a_language_model_does_not_speak_of_one(
    make_run: Callable[..., Run], chain_data: Dataset
) -> None:
    stages = {name: done for name, done in RECORD.items() if not name.startswith("llm")}
    run = make_run(
        stages | {"distilled-round-1": record(0.13, {"teacher-1": 1, "teacher-2": 1, "teacher-3": 1})}, llm=None
    )
    page = render(report_content(run, chain_data, []))
    assert "language model" not in page.partition("round by round")[2].partition("</section>")[0]
    assert "(language model)" not in page


def test_sample_weights_are_those_of_the_epoch_that_was_kept(make_run: Callable[..., Run], chain_data: Dataset) -> None:
    """And of the first where the best was before it."""
    found = report_content(make_run(), chain_data, []).weights
    assert [(each.stage, each.role, each.round, each.mean) for each in found] == [
        ("llm-round-1", "llm", 1, 0.92),
        ("distilled-round-1", "model", 1, 0.91),
    ]
    assert list(found[0].counts) == [2] * WEIGHT_BINS
    assert (found[0].edges[0], found[0].edges[-1], len(found[0].edges)) == (0, 2, WEIGHT_BINS + 1)


def test_what_orders_the_histories_is_said(make_run: Callable[..., Run], chain_data: Dataset) -> None:
    run = make_run()
    assert "ordered by" not in report_content(run, dataclasses.replace(chain_data, report={}), []).facts
    ties = {"broken_by": "row", "neighbours": 8, "tied": 2, "tied_share": 0.25, "ascending_by_identifier": 1.0}
    data = dataclasses.replace(chain_data, report={"interactions": {"ordered_by": "timestamp", "ties": ties}})
    facts = report_content(run, data, []).facts
    assert facts["ordered by"] == "time"
    assert facts["tied neighbours"] == "25.0%, 100% of them ascending by identifier"


def test_a_trained_run_makes_a_page(chain_run: Path, chain_data: Dataset, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(chain_run, tmp_path / "run"))
    scored = score_run(run, chain_data)
    path = write_run_report(run, chain_data, scored, tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    page = path.read_text(encoding="utf-8")
    for result in scored:
        assert f"{result.name}<small>" in page
    assert "Distillation" in page
    assert "Sample weights" in page


def test_the_page_is_in_the_run_folder_where_nothing_else_is_said(
    make_run: Callable[..., Run], chain_data: Dataset
) -> None:
    run = make_run()
    assert write_run_report(run, chain_data, []) == run.folder / "report.html"
    assert "not been evaluated" in (run.folder / "report.html").read_text(encoding="utf-8")
