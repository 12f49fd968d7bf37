"""The efforts of the command line: what each trains, and that a file of settings is laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from llmd4rec.config.settings import load_settings
from llmd4rec.distillation.efforts import EFFORTS, RECIPE, Effort
from llmd4rec.distillation.plan import plan
from llmd4rec.distillation.settings import DistillationSettings, parse_settings
from llmd4rec.distillation.teachers import Teacher
from llmd4rec.errors import ConfigError
from llmd4rec.models.sequential import BSARec, SASRec


def stages(effort: str, *overrides: str, path: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Which stages are trained, and who teaches each."""
    settings = load_settings(DistillationSettings, path, overrides, base=EFFORTS[effort])
    return {stage.id: stage.taught_by for stage in plan(settings)}


def test_more_effort_trains_more() -> None:
    assert tuple(EFFORTS) == get_args(Effort)
    assert stages("fast") == {"undistilled": ()}
    assert set(stages("fast")) < set(stages("default")) < set(stages("best"))
    assert "llm" in stages("best")
    assert "llm" not in stages("default")
    assert RECIPE is EFFORTS["default"]


@pytest.mark.parametrize("effort", EFFORTS)
def test_the_memory_stands_beside_every_model(effort: str) -> None:
    assert load_settings(DistillationSettings, None, base=EFFORTS[effort]).memory is not None


@pytest.mark.parametrize(("dim", "width"), [(None, 256), ("2x", 128), (96, 96)])
def test_a_teacher_is_so_many_times_as_wide(dim: int | str | None, width: int) -> None:
    assert Teacher(name="bsarec", dim=dim).network(SASRec(dim=64)).dim == width


@pytest.mark.parametrize("dim", [0, -2, 2.5, True, "x2", "0x", "2", "2 x"])
def test_what_is_no_width_is_refused(dim: object) -> None:
    with pytest.raises(ConfigError, match=r"teachers\.0\.dim: must be a whole number above 0, or .* such as 2x"):
        parse_settings({"teachers": [{"dim": dim}], "rounds": 1})


def test_a_file_is_laid_over_an_effort(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rounds: 1\nteachers: [{name: bsarec, dim: 96}]\n", encoding="utf-8")
    settings = load_settings(DistillationSettings, path, ["seed=3"], base=EFFORTS["fast"])
    found = plan(settings)
    assert [stage.id for stage in found] == ["undistilled", "teacher-1", "distilled-round-1"]
    assert isinstance(found[1].network, BSARec)
    assert found[1].network.dim == 96
    assert settings.seed == 3
    assert settings.memory is not None


@pytest.mark.parametrize(("width", "rate"), [(16, 8e-3), (64, 8e-3), (128, 4e-3), (256, 2e-3)])
def test_wider_networks_are_trained_at_a_lower_rate(width: int, rate: float) -> None:
    settings = load_settings(DistillationSettings, None, [f"model.dim={width}"], base=EFFORTS["fast"])
    assert settings.training.model.peak_rate(width) == pytest.approx(rate)
    named = load_settings(DistillationSettings, None, ["training.model.learning_rate=0.001"], base=EFFORTS["fast"])
    assert named.training.model.peak_rate(width) == 0.001
