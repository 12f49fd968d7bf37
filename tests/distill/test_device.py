"""Whole runs on a device that is not the CPU; see `pretended_gpu.py` for what that can show and what not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from in_another_process import changed

from llmd4rec.runs.results import score
from llmd4rec.runs.run import parse_settings
from llmd4rec.training import fit

SCRIPT = Path(__file__).resolve().parents[1] / "pretended_gpu.py"


def elsewhere(settings: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """Trains, scores and asks a run there; see the script's end for what it gives."""
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings | {"device": "pretended:0"}))
    command = [sys.executable, str(SCRIPT), str(folder / "settings.json"), str(data), str(folder / "run")]
    path = os.pathsep.join(filter(None, [str(SCRIPT.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def learned(run: Path) -> dict[tuple[str, int], dict[str, float]]:
    """The losses of each stage's epochs."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record for record in records if "ce" in record]
    assert losses
    return {
        (record["stage"], record["epoch"]): {key: record[key] for key in ("ce", "kl") if key in record}
        for record in losses
    }


def wholly(settings: dict[str, Any], llama: str, **changes: Any) -> dict[str, Any]:
    """The default recipe, small: wide teachers of three kinds, texts and the rest in the table, a language model."""
    training = settings["training"]["llm"] | {"epochs": 1}
    return changed(
        {
            "rounds": 1,
            "wide": 16,
            "logit_adjustment": "auto",
            "crm": {"dim": 8, "layers": 1, "heads": 2, "max_length": 6},
            "llm": {"model": llama, "layers": 1, "max_length": 6, "lora": {"r": 2}},
            "training": {"crm": training, "llm": training},
        },
        **changes,
    )


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True], ids=["whole catalogue", "drawn candidates"])
def test_the_default_recipe_stays_on_its_device_in_half_precision(drawn, tiny_settings, llama, chain_data, tmp_path):
    few = {"full_softmax_items": 5, "candidates": 4} if drawn else {}
    changes: dict[str, Any] = {f"training__{m}__{key}": value for m in ("crm", "llm") for key, value in few.items()}
    changes |= {"logit_adjustment": 0.2} if drawn else {}
    halves = {f"training__{model}__precision": "bf16" for model in ("crm", "llm")}
    settings = wholly(tiny_settings, llama, wide=None if drawn else 16, **changes, **halves)
    result = elsewhere(settings, chain_data.path, tmp_path / "there")
    assert "on the CPU" in result["refused"]
    models = {"crm alone", "crm distilled", "llm alone", "llm distilled"}
    assert set(result["scores"]) == models | (set() if drawn else {"wide alone"})
    assert len(set(result["best"])) == 3
    # No step of a CRM makes the host wait (drawing candidates does); what it leaves is read once in many, in fit.py.
    waiting = {file for file, *_ in result["waits"]}
    assert "training/fit.py" in waiting
    assert drawn or not waiting & {
        "models/embedding.py",
        "models/sequential/sasrec.py",
        "losses/softmax.py",
        "data/batching.py",
    }


@pytest.mark.slow
def test_a_run_on_another_device_has_the_numbers_of_the_cpu(tiny_settings, chain_data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "MIN_STEPS", 4)  # as in the script
    still = {"crm__dropout": 0.0, "llm__dropout": 0.0, "llm__lora": {"r": 2, "dropout": 0.0}}
    settings = changed(tiny_settings, **still)
    there = elsewhere(settings, chain_data.path, tmp_path / "there")
    run = parse_settings(settings).fit(chain_data, tmp_path / "here")
    here = {
        f"{model} {stage}": score(run, chain_data, model, stage, split="test").metrics["ndcg@10"]
        for model, stage in run.models()
    }
    assert there["scores"] == pytest.approx(here, abs=0.05)  # of few users: one that is ranked second makes .012
    losses, expected = learned(tmp_path / "there" / "run"), learned(tmp_path / "here")
    assert set(losses) == set(expected)
    for (stage, epoch), values in losses.items():
        # In rounds a rank that rounding turned counts as a different weight.
        assert values == pytest.approx(expected[stage, epoch], rel=1e-4 if stage.endswith("alone") else 0.1)
