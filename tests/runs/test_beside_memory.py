"""The model that is taught beside the memory, and served with it: plan, run, and where it stands back."""

from __future__ import annotations

import logging
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.examples import make_dataset
from in_another_process import outcome
from made_once import MadeOnce
from refreshed import data_of
from settings_of import changed, parse_settings
from test_ageing import changing
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import find, plan, rounds_of
from llmd4rec.errors import ConfigError
from llmd4rec.estimators import Distillation
from llmd4rec.evaluation.evaluator import Evaluator
from llmd4rec.export.write import ExportOptions, export_run
from llmd4rec.inference.recommender import Recommender
from llmd4rec.log import logger
from llmd4rec.report.from_run import write_run_report
from llmd4rec.runs.memory import is_wanted, validation_alone, validation_with
from llmd4rec.runs.probe import probe
from llmd4rec.runs.refit import refit
from llmd4rec.runs.results import score_run
from llmd4rec.runs.run import Run
from llmd4rec.runs.update import update

STAGE = "beside-memory"
ITEMS = 60


def settings(tiny_settings: dict[str, Any], epochs: int = 6) -> Distillation:
    distill = {"source": "ensemble", "memory": True, "beside_memory": True, "logit_adjustment": 0.0}
    memory = {"content": None, "recency": None}
    short = {"training__model__epochs": epochs, "training__model__learning_rate": 0.01}
    return parse_settings(changed(tiny_settings, rounds=1, llm=None, memory=memory, distill=distill, **short))


@pytest.fixture(scope="module")
def data(made_once: MadeOnce) -> Dataset:
    """The last item says the next one, which transitions find; so does the first, which only a network reads."""
    rng = np.random.default_rng(0)
    after = rng.permutation(ITEMS)
    histories = []
    for first in rng.integers(0, 3, 300).tolist():
        history = [first, int(rng.integers(3, ITEMS))]
        while len(history) < 8:
            known = int(after[history[-1]]) if rng.random() < 0.5 else 3 + (7 * first + len(history)) % (ITEMS - 3)
            history.append(known if rng.random() < 0.9 else int(rng.integers(ITEMS)))
        histories.append(history)
    folder = made_once("beside-memory-data", lambda folder: make_dataset(histories, ITEMS).save(folder / "data"))
    return Dataset.load(folder / "data")


@pytest.fixture(scope="module")
def run(made_once: MadeOnce, data: Dataset, tiny_settings: dict[str, Any]) -> Run:
    folder = made_once("beside-memory", lambda folder: settings(tiny_settings).fit(data, folder / "run"))
    return Run.open(folder / "run")


def test_the_plan_has_it_where_the_memory_teaches_and_it_is_asked_for() -> None:
    asked = {"rounds": 2, "memory": "auto", "llm": {}, "teachers": "default"}
    for memory, beside in ((True, True), (True, False), (False, True)):
        stages = plan(parse_settings({**asked, "distill": {"memory": memory, "beside_memory": beside}}))
        assert (STAGE in [stage.id for stage in stages]) == (memory and beside)
        assert [stage.id for stage in rounds_of(stages, "model")] == ["distilled-round-1", "distilled-round-2"]
        assert [stage.beside_memory for stage in stages] == [stage.id == STAGE for stage in stages]
        if memory and beside:
            found, taught = find(stages, STAGE), find(stages, "distilled-round-1")
            assert (found.teachers, found.network) == (taught.teachers, taught.network)
            assert found.seed_key != taught.seed_key
            assert found.training == taught.training


def test_its_epochs_are_chosen_with_the_memory(run: Run, data: Dataset) -> None:
    """What the record says is the value of both, with the weights by which the memory taught."""
    assert run.record.memory is not None
    evaluator = Evaluator(["ndcg@10"])
    alone, both = (
        evaluator.evaluate(run, data, "valid", stage=name).metrics["ndcg@10"] for name in (STAGE, f"{STAGE}+memory")
    )
    assert run.record.stages[STAGE]["memory_teaches"] == run.record.stages["distilled-round-1"]["memory_teaches"]
    assert run.validation_of(STAGE) > alone + 0.05
    assert run.validation_of(STAGE) == pytest.approx(both, abs=0.05)  # whose weights were fitted anew
    assert run.record.memory["beside"][STAGE]["validation"] == pytest.approx(both, abs=1e-6)
    assert is_wanted(run, STAGE)


def test_it_is_served_with_the_memory_alone(run: Run, data: Dataset) -> None:
    """Tables show it with the memory and never without; without, another model is the best."""
    results = {each.name: each for each in score_run(run, data)}
    assert STAGE not in results
    assert {f"{STAGE}+memory", "distilled-round-1", "distilled-round-1+memory"} <= set(results)
    assert run.record.memory is not None
    of = {name: float(entry["validation"]) for name, entry in run.record.memory["beside"].items()}
    best = max(of, key=lambda name: of[name])
    assert run.resolve("served") == best == STAGE
    assert results[f"{STAGE}+memory"].served
    assert run.resolve("distilled") == "distilled-round-1"
    alone = {name: run.validation_of(name) for name in ("undistilled", "distilled-round-1")}
    assert run.resolve_alone() == max(alone, key=lambda name: alone[name])


def test_of_several_rounds_those_are_compared_that_are_worth_something_with_the_memory(
    data: Dataset, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    """The memory is not weighed beside every round; and what is selected with it is no match for what was without."""
    rounds = changed(settings(tiny_settings).model_dump(mode="json"), rounds=2, round_patience=2)
    run = parse_settings(rounds).fit(data, tmp_path / "run")
    assert run.record.memory is not None
    of = {name: float(entry["validation"]) for name, entry in run.record.memory["beside"].items()}
    assert "distilled-round-1" not in of
    assert {"undistilled", "distilled-round-2", STAGE} == set(of)
    assert run.resolve("served") == max(of, key=lambda name: of[name])
    values = validation_with(run, ["distilled-round-1", STAGE])
    assert list(values) == [STAGE]


def test_its_own_value_is_without_the_memory(run: Run, data: Dataset, tmp_path: Path) -> None:
    """What the record calls its validation is that of both."""
    value, label = validation_alone(run, STAGE)
    assert label == "NDCG@10"
    assert value == pytest.approx(Evaluator(["ndcg@10"]).evaluate(run, data, "valid", stage=STAGE).metrics["ndcg@10"])
    assert validation_alone(run, "undistilled")[0] == run.validation_of("undistilled")
    other = Run.open(run.folder)  # of a run that is selected by another metric
    by_hits = changed(other.settings.model_dump(mode="json"), evaluation__selection="hr@10")
    other.settings = parse_settings(by_hits)
    names = ("undistilled", "undistilled+memory", STAGE, f"{STAGE}+memory")
    assert [other.recommender(name).info.selection for name in names] == ["HR@10", "NDCG@10", "NDCG@10", "NDCG@10"]
    export_run(run, data, tmp_path / "export", STAGE)
    found = Recommender.load(tmp_path / "export")
    assert run.record.memory is not None
    assert found.info.validation == run.record.memory["beside"][STAGE]["validation"]
    assert found.model_alone().info.validation == run.recommender(STAGE).info.validation == pytest.approx(value)
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert f"by itself it has validation NDCG@10 {value:.4f}, and is not meant to be used so" in card


def test_an_export_without_the_memory_is_of_another_model(run: Run, data: Dataset, tmp_path: Path) -> None:
    export_run(run, data, tmp_path / "with", "served", options=ExportOptions())
    found = Recommender.load(tmp_path / "with")
    assert found.info.stage == f"{STAGE}+memory"
    ours, theirs = (each.recommend(["i3", "i4"], k=3).items for each in (found, run.recommender()))
    assert [item.item_id for item in ours] == [item.item_id for item in theirs]
    assert [item.score for item in ours] == pytest.approx([item.score for item in theirs], abs=1e-4)
    export_run(run, data, tmp_path / "without", "served", options=ExportOptions(memory="off"))
    assert Recommender.load(tmp_path / "without").info.stage == run.resolve_alone()
    with pytest.raises(ConfigError, match="stand beside the memory"):
        export_run(run, data, tmp_path / "no", STAGE, options=ExportOptions(memory="off"))
    with pytest.raises(ConfigError, match=r"served\+memory is to be exported without its memory"):
        export_run(run, data, tmp_path / "no", "served+memory", options=ExportOptions(memory="off"))
    refused = ["export", str(run.folder), "--out", str(tmp_path / "no"), "--stage", "served+memory", "--memory", "off"]
    assert CliRunner().invoke(app, refused).exit_code == 2
    assert not (tmp_path / "no").exists()
    command = ["export", str(run.folder), "--out", str(tmp_path / "cli"), "--memory", "off"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert Recommender.load(tmp_path / "cli").info.stage == run.resolve_alone()


def test_a_refit_trains_it_again_and_an_update_takes_another(run: Run, data: Dataset, tmp_path: Path) -> None:
    made = refit(run, data, tmp_path / "refit")
    assert made.resolve("served") == STAGE
    assert made.record.stages[STAGE]["best_epoch"] == run.record.stages[STAGE]["best_epoch"]
    assert made.record.memory is not None
    assert run.record.memory is not None
    assert made.record.memory["beside"][STAGE]["weights"] == run.record.memory["beside"][STAGE]["weights"]
    updated = update(run, data, tmp_path / "update")  # an update learns without the memory
    assert list(updated.record.stages) == [run.resolve_alone()]
    assert updated.resolve("served") == run.resolve_alone()
    assert len(updated.recommender().recommend(["i3", "i4"], k=3).items) == 3


def test_side_by_side_it_comes_to_the_same_numbers(
    run: Run, data: Dataset, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Two processes learn from teachers that were cached once."""
    said = StringIO()
    logger.addHandler(handler := logging.StreamHandler(said))
    two = settings(tiny_settings).fit(data, tmp_path / "run", jobs=2)
    logger.removeHandler(handler)
    assert "validation takes" not in said.getvalue()  # until the memory is weighed, nobody knows what is served
    begun = [line for line in said.getvalue().splitlines() if line.endswith("begins")]
    assert begun == ["distilled-round-1  begins", f"{STAGE}  begins"]
    a, b = outcome(run.folder), outcome(two.folder)
    # They are recorded as they come in.
    a["record"]["stages"], b["record"]["stages"] = (dict(sorted(x["record"]["stages"].items())) for x in (a, b))
    shared = {name for name in a if not name.startswith("evaluation")}  # other tests have evaluated that run
    assert f"checkpoints/{STAGE}/best.safetensors" in shared
    assert {name: a[name] for name in shared} == {name: b[name] for name in b}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("why", ["a moment divides the data", "the memory does not teach", "the newest days come last"])
def test_it_is_left_out_where_it_would_be_in_vain(
    tiny_settings: dict[str, Any], tmp_path: Path, why: str, jobs: int
) -> None:
    given = data_of(changing(), path=tmp_path / "data")
    if why == "the memory does not teach":  # every history is another one, and nothing follows anything
        rng = np.random.default_rng(1)
        given = make_dataset([rng.permutation(40)[:6].tolist() for _ in range(60)], 40)
    asked = settings(tiny_settings, epochs=1)
    if why == "the newest days come last":
        histories = [[(user + place) % 40 for place in range(6)] for user in range(60)]
        given = make_dataset(histories, 40, [[86_400 * (user + place) for place in range(6)] for user in range(60)])
        newest = {"training__newest_days": 10, "training__model__epochs": 1}
        asked = parse_settings(changed(asked.model_dump(mode="json"), **newest))
    made = asked.fit(given, tmp_path / "run", jobs=jobs)
    assert list(made.record.stages) == ["undistilled", "distilled-round-1"]
    assert ("memory_teaches" in made.record.stages["distilled-round-1"]) == (why != "the memory does not teach")
    assert made.record.finished
    assert made.resolve("served") in made.record.stages
    assert made.resolve_alone() == made.resolve("served")
    if why == "a moment divides the data":  # nor in a refit of other data, which no moment divides
        histories = [[(user + place) % 40 for place in range(6)] for user in range(60)]
        given = make_dataset(histories, 40, [[86_400 * (user + place) for place in range(6)] for user in range(60)])
    assert list(refit(made, given, tmp_path / "refit").record.stages) == list(made.record.stages)


def test_a_probe_counts_it(data: Dataset, tiny_settings: dict[str, Any]) -> None:
    found = {each.stage: each for each in probe(settings(tiny_settings), data).stages}
    assert found[STAGE].most_epochs == found["distilled-round-1"].most_epochs
    assert found[STAGE].teachers == 0 < found["distilled-round-1"].teachers
    assert found[STAGE].step > 0


def test_the_report_names_it(run: Run, data: Dataset, tmp_path: Path) -> None:
    """The figures at its top are of two models that are served without a memory; this one is a third."""
    page = write_run_report(run, data, score_run(run, data), tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"served beside a third model, {STAGE}" in page
    assert f"That of {STAGE} is of the model and the memory together" in page
