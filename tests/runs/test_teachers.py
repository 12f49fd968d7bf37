"""How the teachers of a stage teach in whole runs: ensemble weights, logit adjustment, sample weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.examples import make_dataset
from numpy.typing import NDArray
from settings_of import changed, parse_settings
from whole_runs import StopsBefore, chosen_by, same, taught_by, untrained

from llmd4rec.data.dataset import Dataset
from llmd4rec.runs.results import score


# ---- ensemble weights -------------------------------------------------------------------------------------------
def test_each_teacher_counts_as_much_as_it_was_found_to(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """Where the language model is unused, the model is taught by itself alone."""
    asked = []

    def choose_weights(
        judge: Callable[[Sequence[int]], NDArray[np.float64]], start: Sequence[int]
    ) -> tuple[tuple[int, ...], float]:
        asked.append(tuple(start))
        return (0, 1), float(judge((0, 1)).mean())

    usual = changed(tiny_settings, distill__students=["model"], training__model__round_epochs=1)
    runs = {}
    for weights in ("validation", "equal"):
        settings = changed(usual, distill__source="ensemble", ensemble__weights=weights)
        runs[weights] = chosen_by(
            parse_settings(settings), chain_data, tmp_path / weights, choose_weights=choose_weights
        )
    found = {name: run.record.stages["distilled-round-1"]["teachers"] for name, run in runs.items()}
    assert found == {"validation": {"llm": 0, "undistilled": 1}, "equal": {"llm": 1, "undistilled": 1}}
    assert asked == [(1, 1)]
    alone = parse_settings(changed(usual, distill__source="self")).fit(chain_data, tmp_path / "self")
    assert same(alone.weights_of("distilled-round-1"), runs["validation"].weights_of("distilled-round-1"))


def test_models_that_are_there_to_teach_count_from_the_start(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """Others only where they add to them, whichever model is taught."""
    begun = []

    def choose_weights(
        judge: Callable[[Sequence[int]], NDArray[np.float64]], start: Sequence[int]
    ) -> tuple[tuple[int, ...], float]:
        begun.append(tuple(start))
        return tuple(start), float(judge(start).mean())

    values = untrained(tiny_settings, distill__source="ensemble", teachers=[{"dim": 16}, {"dim": 16}])
    run = chosen_by(parse_settings(values), chain_data, tmp_path / "run", choose_weights=choose_weights)
    assert taught_by(run)["llm-round-1"] == ("teacher-1", "teacher-2", "undistilled", "llm")
    assert taught_by(run)["distilled-round-1"] == ("llm-round-1", "teacher-1", "teacher-2", "undistilled")
    assert begun == [(1, 1, 0, 0), (0, 1, 1, 0)]


# ---- logit adjustment -------------------------------------------------------------------------------------------
def test_a_model_that_is_taught_to_leave_popularity_out_serves_rarer_items(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Where items follow nothing but their popularity: all that there is to learn is left out."""
    drawn = np.random.default_rng(0).choice(60, (300, 8), p=1 / np.arange(1, 61) / (1 / np.arange(1, 61)).sum())
    make_dataset(list(drawn), 60).save(tmp_path / "data")
    data = Dataset.load(tmp_path / "data")
    usual = changed(
        tiny_settings,
        model__dropout=0.0,
        training__model__epochs=10,
        training__model__batch=128,
        training__llm__batch=256,
        distill__students=["model"],
        evaluation__filter_seen=False,
    )
    shown = {}
    for tau in (0.0, 1.0):
        run = parse_settings(changed(usual, distill__logit_adjustment=tau)).fit(data, tmp_path / str(tau))
        before, taught = (score(run, data, stage).metrics["popularity@10"] for stage in ("undistilled", "distilled"))
        shown[tau] = taught / before
    assert shown[0.0] > 0.85
    assert shown[1.0] < 0.6


def test_teachers_say_how_much_popularity_the_served_model_leaves_out(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """Once for each round of the model; what they say counts as if it had been set."""
    asked = []

    def choose_tau(judge: Callable[[float], NDArray[np.float64]]) -> float:
        asked.append(judge(0.0).mean())
        return 0.15

    runs = {}
    for tau in ("auto", 0.15, 0.0):
        settings = parse_settings(changed(tiny_settings, distill__logit_adjustment=tau))
        runs[tau] = chosen_by(settings, chain_data, tmp_path / str(tau), choose_tau=choose_tau)
    stages = runs["auto"].record.stages
    assert len(asked) == 1
    assert stages["distilled-round-1"]["logit_adjustment"] == 0.15
    assert all("logit_adjustment" not in stages[name] for name in ("undistilled", "llm", "llm-round-1"))
    auto, fixed, none = (run.weights_of("distilled-round-1") for run in runs.values())
    assert same(auto, fixed)
    assert not same(auto, none)
    assert same(runs["auto"].weights_of("llm-round-1"), runs[0.0].weights_of("llm-round-1"))


def test_teachers_cached_when_nobody_asked_are_asked_later(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """The setting may change as long as the model's round has not begun, and what was cached then does not know."""

    first = parse_settings(changed(tiny_settings, distill__students=["model"]))
    with pytest.raises(KeyboardInterrupt):
        first.fit(chain_data, tmp_path / "run", callbacks=[StopsBefore("distilled-round-1")])
    assert (tmp_path / "run" / "teachers" / "llm" / "teacher.json").exists()
    settings = changed(tiny_settings, distill__students=["model"], distill__logit_adjustment="auto")
    run = chosen_by(parse_settings(settings), chain_data, tmp_path / "run", choose_tau=lambda judge: 0.15)
    assert run.record.stages["distilled-round-1"]["logit_adjustment"] == 0.15


# ---- sample weights ---------------------------------------------------------------------------------------------
def test_sample_weights_by_rank_or_none(tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> None:
    means = {}
    for kind in ("rank", "none"):
        settings = changed(tiny_settings, distill__sample_weights=kind, distill__students=["llm"])
        run = parse_settings(settings).fit(chain_data, tmp_path / kind)
        lines = [line for line in run.metrics() if "weight_mean" in line]
        means[kind] = [line["weight_mean"] for line in lines]
        assert {line["stage"] for line in lines} == {"llm-round-1"}
    assert means["none"] == [1.0, 1.0]
    assert all(mean != 1 for mean in means["rank"])


def test_ranks_of_the_rounds_start_stay_the_same_in_every_epoch(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    counts = {}
    for kind in ("current", "round-start"):
        run = parse_settings(changed(tiny_settings, distill__student_ranks=kind)).fit(chain_data, tmp_path / kind)
        lines = [line for line in run.metrics() if line["stage"] == "distilled-round-1" and line["epoch"]]
        counts[kind] = [line["weight_counts"] for line in lines]
    assert counts["round-start"][0] == counts["round-start"][1]
    assert counts["current"][0] != counts["current"][1]
