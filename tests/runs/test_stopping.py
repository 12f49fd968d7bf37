"""When a run has no more rounds, and what it says of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from settings_of import changed, parse_settings
from whole_runs import chosen_by, taught_by, untrained

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError

UNCHANGED = "in round 1 only teachers were used that do not change"


@pytest.mark.parametrize("patience", [1, 2])
def test_it_stops_when_rounds_bring_nothing(
    patience: int, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    settings = untrained(tiny_settings, distill__warm_start=["model", "llm"], rounds=4, round_patience=patience)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert f"distilled-round-{patience}" in run.record.stages
    assert f"distilled-round-{patience + 1}" not in run.record.stages
    assert run.record.stopped_because == f"round {patience} did not improve the validation NDCG@10"


@pytest.mark.parametrize(("students", "stage"), [(["model"], "distilled-round"), (["llm"], "llm-round")])
def test_rounds_of_one_student_go_on_while_it_is_among_its_teachers(
    students: list[str], stage: str, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    usual = untrained(tiny_settings, distill__students=students, ensemble__weights="equal", rounds=2)
    run = parse_settings(changed(usual, distill__source="ensemble")).fit(chain_data, tmp_path / "ensemble")
    first, other = {"model": ("undistilled", "llm"), "llm": ("llm", "undistilled")}[students[0]]
    lessons = [taught_by(run)[f"{stage}-{number}"] for number in (1, 2)]
    assert [set(lesson) for lesson in lessons] == [{other, first}, {other, f"{stage}-1"}]
    assert run.record.stopped_because == "all rounds done"
    partner = parse_settings(usual).fit(chain_data, tmp_path / "partner")
    assert f"{stage}-2" not in partner.record.stages
    assert partner.record.stopped_because == UNCHANGED


@pytest.mark.parametrize("weights", [(0, 1, 1, 0), (1, 1, 1, 0), (0, 1, 0, 1)])
def test_it_stops_when_the_teachers_that_are_used_no_longer_change(
    weights: tuple[int, ...],
    tiny_settings: dict[str, Any],
    chain_data: Dataset,
    tmp_path: Path,
) -> None:
    """As when only the wider ones are; a model that goes on learning has something new to teach in the next round."""

    def choose_weights(
        judge: Callable[[Sequence[int]], NDArray[np.float64]], start: Sequence[int]
    ) -> tuple[tuple[int, ...], float]:
        used = weights if tuple(start) == (0, 1, 1, 0) else tuple(start)  # the model's teachers, or the LLM's
        return used, float(judge(used).mean())

    settings = untrained(tiny_settings, rounds=2, distill__source="ensemble", teachers=[{"dim": 16}, {"dim": 16}])
    run = chosen_by(parse_settings(settings), chain_data, tmp_path / "run", choose_weights=choose_weights)
    unchanged = weights == (0, 1, 1, 0)
    assert ("distilled-round-2" in run.record.stages) is not unchanged
    assert run.record.stopped_because == (UNCHANGED if unchanged else "all rounds done")


def test_no_rounds_trains_the_model_alone(tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> None:
    settings = changed(tiny_settings, rounds=0, llm__model=str(tmp_path / "not there"))
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert taught_by(run) == {"undistilled": ()}
    assert [stage.id for stage in run.reported()] == ["undistilled"]
    assert run.resolve() == "undistilled"
    for name in ("distilled", "llm"):
        with pytest.raises(RunError, match=rf"{name}.*it has: undistilled"):
            run.load(name)
