"""Whole runs on a device that is not the CPU; see `pretended_gpu.py` for what that can show and what not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_once import MadeOnce
from settings_of import changed, parse_settings

from llmd4rec.data.dataset import Dataset
from llmd4rec.runs.results import score
from llmd4rec.runs.run import Run

SCRIPT = Path(__file__).resolve().parents[1] / "pretended_gpu.py"


@pytest.fixture(scope="module")
def there(made_once: MadeOnce, tiny_settings: dict[str, Any], llama: str, chain_data: Dataset) -> Path:
    """Runs that one process has trained, scored and asked there; see the script's end for what it gives."""
    every = {
        "whole catalogue": in_halves(tiny_settings, llama),
        "drawn candidates": in_halves(tiny_settings, llama, drawn=True),
        "still": still(tiny_settings),
    }

    def make(folder: Path) -> None:
        for name, settings in every.items():
            (folder / name).mkdir()
            (folder / name / "settings.json").write_text(json.dumps(settings | {"device": "pretended:0"}))
        command = [sys.executable, str(SCRIPT), str(chain_data.path), *(str(folder / name) for name in every)]
        path = os.pathsep.join(filter(None, [str(SCRIPT.parent), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]

    return made_once("pretended", make)


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def losses_of(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """The losses of each stage's epochs."""
    lines = [line for line in Run.open(folder).metrics() if "ce" in line]
    assert lines
    return {(line["stage"], line["epoch"]): {key: line[key] for key in ("ce", "kl") if key in line} for line in lines}


def recipe(settings: dict[str, Any], llama: str, **changes: Any) -> dict[str, Any]:
    """The default recipe, small: wide teachers of three kinds, texts and all other item features, a language model."""
    training = settings["training"]["llm"] | {"epochs": 1}
    return changed(
        {
            "rounds": 1,
            "teachers": [{"dim": 16}, {"name": "gru4rec", "dim": 16}, {"name": "bsarec", "dim": 16}],
            "model": {"dim": 8, "layers": 1, "heads": 2, "max_length": 6},
            "llm": {"model": llama, "layers": 1, "max_length": 6, "lora": {"r": 2}},
            "memory": {"content": None},
            "distill": {"memory": True, "exclude_seen": True},
            "training": {"model": training, "llm": training},
        },
        **changes,
    )


def in_halves(settings: dict[str, Any], llama: str, drawn: bool = False) -> dict[str, Any]:
    """The default recipe in half precision, of the whole catalogue or of candidates."""
    values: dict[str, Any] = {"precision": "bf16"}
    changes: dict[str, Any] = {}
    if drawn:
        values |= {"full_softmax_items": 5, "num_candidates": 4}
        changes |= {"teachers": None, "distill__logit_adjustment": 0.2}
    changes |= {f"training__{student}__{key}": value for student in ("model", "llm") for key, value in values.items()}
    return recipe(settings, llama, **changes)


def still(settings: dict[str, Any]) -> dict[str, Any]:
    """Without dropout, which has other random numbers there."""
    return changed(settings, model__dropout=0.0, llm__dropout=0.0, llm__lora={"r": 2, "dropout": 0.0})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole catalogue", "drawn candidates"])
def test_the_default_recipe_stays_on_its_device_in_half_precision(name: str, there: Path) -> None:
    result, drawn = result_of(there / name), name == "drawn candidates"
    assert "on the CPU" in result["refused"]
    stages = {"undistilled", "llm", "llm-round-1", "distilled-round-1"}
    assert set(result["scores"]) == stages | (set() if drawn else {"teacher-1", "teacher-2", "teacher-3"})
    assert len(set(result["best"])) == 3
    # No step of a model makes the host wait, whoever teaches it; what it leaves is read once in many, with its figures.
    # (The item features of drawn candidates do, and the language model where it is made.)
    waiting = {file for file, *_ in result["waits"]}
    assert "training/figures.py" in waiting
    steps = ["losses/", "models/sequential/", "data/batching", "training/trainer"]
    steps += [] if drawn else ["models/embedding"]
    assert not {file for file in waiting if file.startswith(tuple(steps))}


@pytest.mark.slow
def test_a_run_on_another_device_has_the_numbers_of_the_cpu(
    there: Path, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    run = parse_settings(still(tiny_settings)).fit(chain_data, tmp_path / "here")
    here = {stage.id: score(run, chain_data, stage.id).metrics["ndcg@10"] for stage in run.reported()}
    # Of few users: one that is ranked second makes .012.
    assert result_of(there / "still")["scores"] == pytest.approx(here, abs=0.05)
    losses, expected = losses_of(there / "still" / "run"), losses_of(tmp_path / "here")
    assert set(losses) == set(expected)
    for (stage, epoch), values in losses.items():
        # In rounds a rank that rounding turned counts as a different weight.
        assert values == pytest.approx(expected[stage, epoch], rel=0.1 if "round" in stage else 1e-4)
