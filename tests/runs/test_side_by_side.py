"""Independent stages side by side: the same numbers as one after the other, and nothing lost when they are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from in_another_process import call_command, outcome, start
from settings_of import changed, parse_settings

from llmd4rec.config.settings import save_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError

TEACHERS = [{"dim": 16}, {"name": "gru4rec", "dim": 16}]


def settings_of(tiny_settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return changed(tiny_settings, llm=None, teachers=TEACHERS, distill__source="ensemble", threads=1, **changes)


def test_side_by_side_gives_the_numbers_of_one_after_the_other(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    settings = parse_settings(settings_of(tiny_settings))
    one = settings.fit(chain_data, tmp_path / "one")
    two = settings.fit(chain_data, tmp_path / "two", jobs=2)
    assert set(one.record.stages) == {"undistilled", "teacher-1", "teacher-2", "distilled-round-1"}
    a, b = outcome(one.folder), outcome(two.folder)
    # They are recorded as they come in.
    a["record"]["stages"], b["record"]["stages"] = (dict(sorted(x["record"]["stages"].items())) for x in (a, b))
    assert a == b
    assert not list(two.folder.rglob("result.json"))


def test_a_stage_that_fails_is_named_and_the_others_stay(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    values = settings_of(tiny_settings, training__model__learning_rate=1e30) | {"teachers": TEACHERS[:1]}
    with pytest.raises(RunError, match=r"(undistilled|teacher-\d) stopped with exit code 2: .*diverged"):
        parse_settings(values).fit(chain_data, tmp_path / "run", jobs=2)


def begun(tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> Any:
    """A long training that has begun two stages."""
    values = settings_of(tiny_settings, rounds=1)
    values["training"]["model"] |= {"epochs": 3000, "patience": 3000, "checkpoint_seconds": 0.0}
    save_settings(parse_settings(values), tmp_path / "settings.yaml")
    command = ["train", str(tmp_path / "settings.yaml"), "--data", str(chain_data.path)]
    process = start(call_command, [*command, "--run", str(tmp_path / "run"), "--jobs", "2"], tmp_path)
    waiting = ["undistilled", "teacher-1"]
    deadline = time.monotonic() + 120
    while any(not (tmp_path / "run/checkpoints" / name / "training/last.safetensors").exists() for name in waiting):
        assert process.is_alive(), (tmp_path / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def workers(tmp_path: Path) -> bytes:
    found = subprocess.run(["pgrep", "-f", f"llmd4rec.runs.worker {tmp_path}"], capture_output=True, check=False)
    return found.stdout


def test_a_stopped_command_stops_its_workers_with_a_checkpoint(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    process = begun(tiny_settings, chain_data, tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    said = (tmp_path / "err").read_text()
    assert process.exitcode == 128 + signal.SIGTERM, said
    assert "a checkpoint was written" in said
    assert not workers(tmp_path)


def test_a_killed_command_leaves_no_workers(tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> None:
    process = begun(tiny_settings, chain_data, tmp_path)
    assert workers(tmp_path)
    process.kill()
    process.join(120)
    deadline = time.monotonic() + 20
    while workers(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
