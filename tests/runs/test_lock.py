"""Two trainings and one folder, with real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from in_another_process import outcome, start, train
from settings_of import changed, parse_settings

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError
from llmd4rec.runs.run import Run


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_trainings_do_not_share_a_folder_and_a_dead_ones_lock_is_gone(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    settings = changed(tiny_settings, rounds=0, training__model__epochs=60, training__model__patience=60)
    process = start(train, settings, chain_data.path, tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoints" / "undistilled" / "training")
    with pytest.raises(RunError, match="being trained by another process"):
        parse_settings(settings).fit(chain_data, tmp_path / "run")
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not Run.open(tmp_path / "run").record.finished
    assert parse_settings(settings).fit(chain_data, tmp_path / "run").record.finished
    with FileLock(tmp_path / "run" / ".lock", timeout=0):
        pass  # and it was released


def test_of_trainings_that_begin_one_folder_together_one_makes_it(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """The others say so, or find it finished; none of them harms what the first one makes."""
    settings = changed(tiny_settings, rounds=0)
    start(train, settings, chain_data.path, tmp_path / "whole").join(60)
    for number in range(3):
        folder = tmp_path / f"run {number}"
        processes = [start(train, settings, chain_data.path, folder) for _ in range(4)]
        for process in processes:
            process.join(60)
        assert {process.exitcode for process in processes} <= {0, 1}
        assert 0 in {process.exitcode for process in processes}
        assert outcome(folder) == outcome(tmp_path / "whole")
        assert not list(tmp_path.glob(".*.part"))


def test_settings_are_not_corrected_while_another_process_trains(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """It may still be reading texts: then nothing has been trained, and all the same the folder is in use."""
    run = Run.start(tmp_path / "run", parse_settings(tiny_settings), chain_data)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with FileLock(run.folder / ".lock"), pytest.raises(RunError, match="trained by another process"):
        parse_settings(changed(tiny_settings, distill__weight__model=2)).fit(chain_data, run.folder)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.name != ".lock"} == before
