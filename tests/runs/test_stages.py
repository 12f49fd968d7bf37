"""Naming the stages of a run: by id, as the last round's, or as what validation chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmd4rec.errors import RunError
from llmd4rec.runs.results import training_seconds
from llmd4rec.runs.run import Run


def test_the_last_round_is_distilled_and_the_best_is_served(chain_run: Path) -> None:
    run = Run.open(chain_run)
    first = run.record.stages["distilled-round-1"]
    run.settings = run.settings.model_copy(update={"rounds": 2})
    worse = {**first, "validation": first["validation"] - 0.01}
    run.record.stages["distilled-round-2"] = worse
    run.record.stages["undistilled"]["validation"] = worse["validation"] - 0.01
    assert run.resolve("distilled") == "distilled-round-2"
    assert run.resolve("served") == "distilled-round-1"
    assert [stage.id for stage in run.reported()] == [
        "undistilled", "llm", "llm-round-1", "distilled-round-1", "distilled-round-2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "served"), [(0.1, "distilled-round-1"), (0.0, "distilled-round-1"), (-0.1, "undistilled")]
)
def test_what_is_served_is_the_better_on_validation(
    gain: float, served: str, chain_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(chain_run)
    value = run.validation_of("undistilled")
    run.record.stages["distilled-round-1"]["validation"] = value + gain
    assert run.resolve("served") == served
    assert run.resolve() == served
    assert served in [stage.id for stage in run.reported()]
    # Said once, however often it is asked.
    assert capsys.readouterr().err.count("validation takes undistilled (") == (served == "undistilled")


@pytest.mark.parametrize(
    ("undistilled", "distilled", "served"),
    [
        ((0.5, 0.3, True), (0.6, 0.4, False), "undistilled"),  # .5 with the memory, .4 without
        ((0.5, 0.3, True), (0.6, 0.4, True), "distilled-round-1"),
        ((0.5, 0.45, False), (0.2, 0.4, False), "undistilled"),
    ],
)
def test_stages_are_compared_as_they_would_be_served(
    undistilled: tuple[float, float, bool], distilled: tuple[float, float, bool], served: str, chain_run: Path
) -> None:
    """With the memory where validation wants it there, whatever the models are worth alone."""
    run = Run.open(chain_run)
    run.record.stages["distilled-round-1"]["validation"] = run.validation_of("undistilled") + 0.1
    names = ("validation", "model_validation", "wanted")
    run.record.memory = {
        "beside": {
            "undistilled": dict(zip(names, undistilled, strict=True)),
            "distilled-round-1": dict(zip(names, distilled, strict=True)),
        }
    }
    assert run.resolve("served") == served
    # A value without the memory is no match for one with it: what has not been weighed is not compared.
    del run.record.memory["beside"]["distilled-round-1"]
    assert run.resolve("served") == "undistilled"


@pytest.mark.parametrize(
    ("name", "hint"), [("alone", "undistilled"), ("teacher-1", "it has: undistilled"), ("x", "llm")]
)
def test_a_stage_that_is_not_there(name: str, hint: str, chain_run: Path) -> None:
    with pytest.raises(RunError, match=hint):
        Run.open(chain_run).load(name)


def test_seconds_are_those_of_all_that_a_stage_needs(chain_run: Path) -> None:
    run = Run.open(chain_run)
    for number, stage in enumerate(run.record.stages.values()):
        stage["seconds"] = 10.0**number
    assert list(run.record.stages) == ["undistilled", "llm", "llm-round-1", "distilled-round-1"]
    assert training_seconds(run, run.stage("undistilled")) == 1
    assert training_seconds(run, run.stage("llm")) == 11  # which reads the model's item embeddings
    assert training_seconds(run, run.stage("distilled")) == 1111


def test_attributes_of_before_name_the_new_ones(chain_run: Path) -> None:
    run = Run.open(chain_run)
    with pytest.raises(AttributeError, match=r"it is now run\.recommender\(\)"):
        getattr(run, "crm")  # noqa: B009
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(run, "nothing")  # noqa: B009


def test_an_older_run_says_what_to_do(chain_run: Path, tmp_path: Path) -> None:
    text = (chain_run / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"format": 3', '"format": 2'))
    with pytest.raises(RunError, match=r"run format 2; this version reads 3\n.*CHANGELOG"):
        Run.open(tmp_path)
