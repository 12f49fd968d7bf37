"""A memory beside the models of a run: counted, weighed, named, evaluated, and taken along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.examples import make_dataset
from made_once import MadeOnce
from settings_of import changed, parse_settings
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError
from llmd4rec.evaluation.evaluator import Evaluator
from llmd4rec.report.from_run import report_content, write_run_report
from llmd4rec.runs.memory import counted_to, is_wanted, memory_of
from llmd4rec.runs.opening import tidy
from llmd4rec.runs.pipeline import train
from llmd4rec.runs.refit import refit
from llmd4rec.runs.results import best_baseline, is_below, score_run
from llmd4rec.runs.run import Run
from llmd4rec.scoring.memory.settings import Content, Memory
from llmd4rec.scoring.memory.state import count_memory

NO_TEXTS = {"content": None}


@pytest.fixture(scope="module")
def pairs(made_once: MadeOnce) -> Dataset:
    """Everybody walks through the same cycle of 40 items with leaps, which counting finds and two epochs do not."""
    rng = np.random.default_rng(0)
    order = rng.permutation(40)
    after = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    sequences = []
    for start in rng.integers(0, 40, 120).tolist():
        sequence = [start]
        for _ in range(7):
            sequence.append(after[sequence[-1]] if rng.random() < 0.8 else int(rng.integers(40)))
        sequences.append(sequence)
    folder = made_once("pairs", lambda folder: make_dataset(sequences, 40).save(folder / "pairs"))
    return Dataset.load(folder / "pairs")


@pytest.fixture(scope="module")
def made(made_once: MadeOnce, pairs: Dataset, tiny_settings: dict[str, Any]) -> Path:
    settings = parse_settings(
        changed(
            tiny_settings,
            rounds=0,
            llm=None,
            memory=NO_TEXTS,
            training__model__epochs=1,
            training__model__learning_rate=1e-4,
        )
    )
    return made_once("memory", lambda folder: settings.fit(pairs, folder / "run")) / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    shutil.copytree(made, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_whether_it_helps_is_judged_on_the_users_that_choose_models(
    pairs: Dataset, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Not on the targets that its weights are fitted on, which here are more, and in large data are fewer."""
    more = {"training__model__epochs": 1, "evaluation__validation_users": 50}
    run = parse_settings(changed(tiny_settings, rounds=0, llm=None, memory=NO_TEXTS, **more)).fit(
        pairs, tmp_path / "run"
    )
    assert run.record.memory is not None
    beside = run.record.memory["beside"]["undistilled"]
    evaluator = Evaluator(["ndcg@10"], max_users=50, seed=run.settings.seed)
    alone, both = (
        evaluator.evaluate(run, pairs, "valid", stage=name).metrics["ndcg@10"]
        for name in ("undistilled", "undistilled+memory")
    )
    assert beside["model_validation"] == pytest.approx(alone, abs=1e-6)
    assert beside["validation"] == pytest.approx(both, abs=1e-6)
    assert beside["wanted"]


def test_what_only_counting_finds_is_found_with_the_memory(run: Run, pairs: Dataset) -> None:
    evaluator = Evaluator(["ndcg@10"])
    alone, both, memory = (
        evaluator.evaluate(run, pairs, stage=name).metrics["ndcg@10"]
        for name in ("undistilled", "undistilled+memory", "memory")
    )
    assert memory > 0.6
    assert both > 0.6
    assert alone < 0.5
    assert run.record.memory is not None
    assert run.record.memory["missing"].keys() == {"recency"}
    assert is_wanted(run, "undistilled")
    # What is served has it, and what is called the model has not.
    assert run.scorer().stage == "undistilled+memory"
    assert run.scorer("undistilled").stage == "undistilled"
    assert run.model_scorer("served").stage == "undistilled"


def test_the_table_has_models_with_and_without_it_and_what_needs_no_training(run: Run, pairs: Dataset) -> None:
    results = score_run(run, pairs)
    names = [result.name for result in results]
    assert names == [
        "undistilled", "undistilled+memory", "memory", "popularity", "transitions", "item-knn",
    ]  # fmt: skip
    assert [result.name for result in results if result.served] == ["undistilled+memory"]
    bar = best_baseline(results)
    assert bar is not None
    assert bar.name in ("memory", "transitions")
    assert is_below(results[0], bar)
    written = [result.to_json() for result in results]
    assert written[0]["role"] == "model"
    assert written[2]["role"] == "baseline"
    assert written[2]["parameters"] is None
    content = report_content(run, pairs, results)
    assert [row.stage for row in content.rows] == names
    assert content.rows[0].below_baseline
    page = write_run_report(run, pairs, results, run.folder / "page.html").read_text()
    assert "The memory alone, which needs no training, reaches" in page
    assert "below the best baseline" in page


def test_the_command_names_what_it_evaluates(run: Run, pairs: Dataset) -> None:
    command = ["evaluate", str(run.folder), "--stage", "undistilled+memory", "--json"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["stage"] == "undistilled+memory"
    command = ["compare", str(run.folder), str(run.folder), "--stage-a", "undistilled", "--stage-b", "memory", "--json"]
    compared = CliRunner().invoke(app, command)
    assert compared.exit_code == 0, compared.output
    assert json.loads(compared.stdout)["overall"]["metrics"]["ndcg@10"]["difference"] > 0


def test_a_finished_run_is_given_a_memory_later_and_other_weights(
    tmp_path: Path, pairs: Dataset, tiny_settings: dict[str, Any]
) -> None:
    plain = changed(tiny_settings, rounds=0, llm=None)
    run = parse_settings(plain).fit(pairs, tmp_path / "run")
    checksum = run.checksum_of("undistilled")
    assert run.record.memory is None
    with pytest.raises(RunError, match="no memory"):
        run.scorer("memory")
    with_it = parse_settings(changed(plain, memory=NO_TEXTS)).fit(pairs, tmp_path / "run")
    assert with_it.record.memory is not None
    assert with_it.checksum_of("undistilled") == checksum  # nothing was trained again
    score_run(with_it, pairs)
    assert (tmp_path / "run" / "evaluation" / "transitions-test").exists()
    (rolling := tmp_path / "run" / "evaluation" / "rolling-undistilled").mkdir()
    given = {**NO_TEXTS, "transitions": {"gaps": 1}}
    other = parse_settings(changed(plain, memory=given)).fit(pairs, tmp_path / "run")
    memory, _ = memory_of(other)
    assert memory.settings.transitions is not None
    assert memory.settings.transitions.gaps == 1
    assert not (tmp_path / "run" / "evaluation" / "transitions-test").exists()  # it was of other counts
    assert not rolling.exists()
    without = parse_settings(plain).fit(pairs, tmp_path / "run")
    assert without.record.memory is None
    assert not (tmp_path / "run" / "memory").exists()


def test_the_memory_beside_a_model_has_the_directions_that_it_was_weighed_with(run: Run, pairs: Dataset) -> None:
    """Whatever the settings say today; a run of before there was a choice has all of them."""
    asked = Memory(recency=None, content=Content(dim=6, dim_beside=2))
    texts = np.random.default_rng(0).normal(size=(pairs.num_items, 8)).astype(np.float32)
    counted = count_memory(asked, pairs, texts)
    assert counted is not None
    counted.save(run.folder / "memory")
    assert run.record.memory is not None
    entry = run.record.memory["beside"]["undistilled"]
    widths = []
    for dim in (3, None):
        entry["content_dim"] = dim
        content = memory_of(run, "undistilled")[0].content
        assert content is not None
        widths.append(content.vectors_ID.shape[1])
    assert widths == [3, 6]
    content = memory_of(run)[0].content
    assert content is not None
    assert content.vectors_ID.shape[1] == 6


def test_a_lost_memory_is_counted_again(run: Run, pairs: Dataset) -> None:
    before = memory_of(run, "undistilled")
    shutil.rmtree(run.folder / "memory")
    with pytest.raises(Exception, match="memory"):
        memory_of(run)
    tidy(run)
    assert not run.record.finished
    again = train(run.settings, pairs, run.folder)
    after = memory_of(again, "undistilled")
    assert after[0].weights == before[0].weights
    assert after[1] == before[1]


def test_a_refit_counts_every_row_and_keeps_the_weights(run: Run, pairs: Dataset, tmp_path: Path) -> None:
    made = refit(run, pairs, tmp_path / "refit")
    ours, theirs = memory_of(made, "undistilled"), memory_of(run, "undistilled")
    assert ours[0].weights == theirs[0].weights
    assert ours[1] == theirs[1]
    counts = [memory.transitions for memory in (ours[0], theirs[0])]
    assert all(count is not None for count in counts)
    sums = [sum(float(array.sum()) for array in count.arrays()[2:]) for count in counts if count is not None]
    assert sums[0] > sums[1]


def test_weights_that_are_given_are_judged_and_served(
    pairs: Dataset, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    memory = {**NO_TEXTS, "weights": {"item_knn": 2.0, "transitions": 1.0}}
    more = {"training__model__epochs": 1, "memory": memory}
    run = parse_settings(changed(tiny_settings, rounds=0, llm=None, **more)).fit(pairs, tmp_path / "run")
    assert run.record.memory is not None
    evaluator = Evaluator(["ndcg@10"])
    for name, entry in (
        ("memory", run.record.memory["alone"]),
        ("undistilled+memory", run.record.memory["beside"]["undistilled"]),
    ):
        found = evaluator.evaluate(run, pairs, "valid", stage=name).metrics["ndcg@10"]
        assert entry["validation"] == pytest.approx(found, abs=1e-6)
        assert entry["wanted"]
        assert entry["weights"] == {"transitions": 1.0, "item_knn": 2.0}
        recommender = run.recommender(name)
        assert recommender.info.validation == pytest.approx(found, abs=1e-6)
        assert len(recommender.recommend(["i3", "i4"], k=3).items) == 3


def test_item_knn_without_a_weight_is_neither_kept_nor_counted_in_a_refit(
    run: Run, pairs: Dataset, tmp_path: Path
) -> None:
    assert run.record.memory is not None
    weights = [run.record.memory["alone"]["weights"], run.record.memory["beside"]["undistilled"]["weights"]]
    assert [each["item_knn"] for each in weights] == [0, 0]
    refitted = refit(run, pairs, tmp_path / "refit")
    for each in (run, refitted):
        assert list(memory_of(each, "undistilled")[0].parts) == ["transitions"]
        assert not list((each.folder / "memory").glob("item_knn*"))


def test_item_knn_teaches_also_where_it_is_not_worth_serving(
    pairs: Dataset, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    short = {"training__model__epochs": 1, "training__model__learning_rate": 1e-4}
    distill = {"source": "ensemble", "memory": True, "logit_adjustment": 0.0}
    settings = parse_settings(changed(tiny_settings, rounds=1, llm=None, memory=NO_TEXTS, distill=distill, **short))
    run = settings.fit(pairs, tmp_path / "run")
    assert run.record.memory is not None
    served = run.record.memory["beside"]["undistilled"]
    assert served["left_out"]["item_knn"] == "validation is not surely better with it"
    assert run.record.stages["distilled-round-1"]["memory_teaches"]["item_knn"] > 0


def test_counts_age_from_the_end_of_a_temporal_split_only(pairs: Dataset) -> None:
    assert counted_to(pairs) is None
    assert Memory.model_validate(NO_TEXTS).content is None


def test_nothing_is_counted_where_none_is_named(tiny_settings: dict[str, Any]) -> None:
    values = {name: value for name, value in tiny_settings.items() if name != "memory"}
    assert parse_settings(values).memory is None
    assert parse_settings({**values, "memory": "auto"}).memory == Memory()
    with pytest.raises(Exception, match="must be `auto`"):
        parse_settings({**values, "memory": "yes"})
    with pytest.raises(Exception, match="must be `auto`"):
        parse_settings({**values, "memory": True})
