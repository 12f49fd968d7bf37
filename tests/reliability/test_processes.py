"""One model trained by two processes, against the same by one."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_another_process import outcome, start, train, train_as, train_with_ddp
from made_once import MadeOnce
from settings_of import changed

from llmd4rec.data.dataset import Dataset
from llmd4rec.runs.run import Run


def together(
    settings: dict[str, Any], data: Path | None, folder: Path, count: int = 2, target: Callable[..., None] = train_as
) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(target, rank, count, port, settings, data, folder) for rank in range(count)]


def finish(processes: list[Any]) -> None:
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.fixture(scope="module")
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    """Without dropout, of which each process draws its own. A batch of 50 positions has 10 windows, or 5 of each."""
    return changed(
        tiny_settings, distill__rollout_length=2, distill__source="ensemble", model__dropout=0.0, llm__dropout=0.0,
        llm__lora={"r": 2, "dropout": 0.0},
        training__model__ema=0.9, training__model__clip=1.0, training__llm__epochs=8, training__llm__patience=8,
        training__model__checkpoint_seconds=0.0, training__llm__checkpoint_seconds=0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def by_two(settings: dict[str, Any], chain_data: Dataset, made_once: MadeOnce) -> Path:
    return made_once("two", lambda folder: finish(together(settings, chain_data.path, folder / "run"))) / "run"


def test_two_processes_train_what_one_trains(
    settings: dict[str, Any], by_two: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    """Sums are in another order, which optimisation magnifies: losses and weights agree to 1e-3."""
    finish([start(train, settings, chain_data.path, tmp_path / "one")])
    assert_close(Run.open(tmp_path / "one"), Run.open(by_two))


def test_ddp_trains_the_same(settings: dict[str, Any], by_two: Path, chain_data: Dataset, tmp_path: Path) -> None:
    finish(together(settings, chain_data.path, tmp_path / "ddp", target=train_with_ddp))
    assert_close(Run.open(by_two), Run.open(tmp_path / "ddp"))


def assert_close(one: Run, two: Run) -> None:
    assert list(one.record.stages) == list(two.record.stages)
    for a, b in zip(one.metrics(), two.metrics(), strict=True):
        assert (a["stage"], a["epoch"]) == (b["stage"], b["epoch"])
        for name in {"ce", "kl", "weight_mean", "validation"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-3), (a["stage"], a["epoch"], name)
        assert sum(a.get("weight_counts", [])) == sum(b.get("weight_counts", []))
    for stage in one.record.stages:
        ours, theirs = one.weights_of(stage), two.weights_of(stage)
        for name in ours:
            distance = torch.linalg.vector_norm(ours[name] - theirs[name])
            assert distance <= 1e-3 * torch.linalg.vector_norm(ours[name]) + 1e-6, (stage, name)


def test_two_processes_that_are_killed_or_stopped_go_on_to_the_same_bits(
    settings: dict[str, Any], by_two: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for stage, number in (
        ("undistilled", signal.SIGKILL),
        ("llm", signal.SIGTERM),
        ("distilled-round-1", signal.SIGKILL),
    ):
        processes = together(settings, chain_data.path, folder)
        end = time.monotonic() + 120
        while not list(folder.glob(f"checkpoints/{stage}/training/before-last.safetensors")):
            assert time.monotonic() < end
            time.sleep(0.005)
        # One is enough: a training asks all of them to stop, and torchrun ends those whose partner has died.
        os.kill(processes[1].pid, number)
        if number == signal.SIGKILL:
            os.kill(processes[0].pid, number)
        for process in processes:
            process.join(60)
        assert {process.exitcode for process in processes} <= {-number, 130}
    finish(together(settings, chain_data.path, folder))
    assert outcome(folder) == outcome(by_two)
