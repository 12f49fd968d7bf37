"""Real processes, killed at 12 moments of a whole run, from the first file to the report, or short of disk space."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_another_process import DISK_FULL, nothing, outcome, start, train_and_score
from settings_of import changed

from llmd4rec.data.dataset import Dataset

KILLS = 12
#: Different stages of a run that they must have met.
PLACES = 5


@pytest.mark.slow
def test_a_run_killed_at_12_moments_ends_as_one_never_stopped(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, log, record and metrics, byte for byte.

    `KILL_SEED` repeats the moments as far as they are events.
    """
    seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    monkeypatch.setenv("LLMD4REC_CACHE", str(tmp_path / "cache"))
    settings = changed(
        tiny_settings, rounds=2, distill__rollout_length=2, distill__student_ranks="round-start",
        distill__source="ensemble", texts__encoder="llm", llm__item_features="id+text", model__item_features="id+text",
        training__model__ema=0.9, training__model__checkpoint_seconds=0, training__llm__checkpoint_seconds=0.03,
    )  # fmt: skip

    def run(folder: Path, die_at: int = 0, kill_after: float | None = None, count: Path | None = None) -> int:
        process = start(train_and_score, settings, chain_data.path, folder, die_at, count)
        process.join(kill_after)
        if process.is_alive() and kill_after is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL), f"KILL_SEED={seed}"
        return int(process.exitcode)

    start(nothing).join(120)  # the server that processes are forked from is slow once
    begun = time.perf_counter()
    assert run(tmp_path / "whole", count=tmp_path / "count") == 0
    duration, events = time.perf_counter() - begun, int((tmp_path / "count").read_text())
    whole = outcome(tmp_path / "whole")
    assert {name.split("/")[0] for name in whole} == {"record", "log", "checkpoints", "evaluation"}

    kills, number = 0, 0
    places: list[str] = []

    def more() -> bool:  # chance may spare most places at first
        return kills < KILLS or (len(set(places)) < PLACES and kills < 4 * KILLS)

    while more():
        folder = tmp_path / f"run {number}"
        while more():
            # Far enough apart that 12 of them reach the end of more than one run.
            if kills % 2:
                code = run(folder, kill_after=rng.uniform(0.02, 0.3) * duration)
            else:
                code = run(folder, die_at=rng.randint(1, events // 4))
            if code == 0:
                break
            kills += 1
            places.append(place(folder))
        assert run(folder) == 0
        compare(outcome(folder), whole, seed)
        assert not list(folder.glob("checkpoints/**/.*")), f"KILL_SEED={seed}"
        number += 1
    print(*places, sep="\n")
    assert len(set(places)) >= PLACES, f"KILL_SEED={seed}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 kB to begin with; :func:`enlarge` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def enlarge(disk: Path, by: int) -> None:
    size = os.statvfs(disk)
    command = ["mount", "-o", f"remount,size={size.f_blocks * size.f_frsize + by}", str(disk)]
    subprocess.run(command, check=True)


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_ends_as_one_with_room(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it fills up, the run says so, and goes on when there is more space."""
    monkeypatch.setenv("LLMD4REC_CACHE", str(tmp_path / "cache"))
    settings = changed(
        tiny_settings, distill__rollout_length=2, distill__source="ensemble", texts__encoder="llm",
        llm__item_features="id+text", model__item_features="id+text",
        training__model__checkpoint_seconds=0, training__llm__checkpoint_seconds=0,
    )  # fmt: skip
    code, full = None, 0
    rng = random.Random(0)
    while code != 0:
        process = start(train_and_score, settings, chain_data.path, disk / "run")
        process.join(120)
        code = process.exitcode
        assert code in (0, DISK_FULL)
        if code:
            full += 1
            assert not list(disk.rglob(".*.part"))
            enlarge(disk, rng.randrange(4096, 57344, 4096))
    print(f"full {full} times")
    assert full >= 8
    process = start(train_and_score, settings, chain_data.path, tmp_path / "whole")
    process.join(120)
    compare(outcome(disk / "run"), outcome(tmp_path / "whole"), 0)


def place(folder: Path) -> str:
    """Where a killed run stands."""
    if not (folder / "run.json").exists():
        return "not begun"
    record = json.loads((folder / "run.json").read_text())
    return "finished, not scored" if record["finished"] else f"{len(record['stages'])} stages"


def compare(run: dict[str, Any], whole: dict[str, Any], seed: int) -> None:
    assert run.keys() == whole.keys(), f"KILL_SEED={seed}"
    different = [name for name in whole if run[name] != whole[name]]
    assert not different, f"KILL_SEED={seed}"
