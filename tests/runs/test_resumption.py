"""A run that is stopped anywhere comes to the same end, and held-out items leave no trace in it."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from in_another_process import nothing, outcome, start, train
from made_once import MadeOnce
from settings_of import changed, parse_settings

from llmd4rec.data.dataset import Dataset


@pytest.fixture(scope="module")
def whole(
    made_once: MadeOnce, tiny_settings: dict[str, Any], chain_data: Dataset
) -> tuple[dict[str, Any], Path, float]:
    """Settings with checkpoints where there is something to save, a run that nobody stopped, and how long it took."""
    settings = changed(
        tiny_settings,
        rounds=2,
        distill__source="ensemble",
        distill__rollout_length=2,
        distill__student_ranks="round-start",
        model__item_features="id+text",
        llm__item_features="id+text",
        texts__encoder="llm",
        training__model__ema=0.9,
        training__model__checkpoint_seconds=0.02,
        training__llm__checkpoint_seconds=0.02,
    )

    def make(folder: Path) -> None:
        start(nothing).join(60)  # the server that processes are forked from is slow once
        begun = time.perf_counter()
        finish(settings, chain_data, folder / "whole")
        (folder / "seconds").write_text(str(time.perf_counter() - begun))

    folder = made_once("never stopped", make)
    return settings, folder / "whole", float((folder / "seconds").read_text())


def finish(settings: dict[str, Any], data: Dataset, folder: Path) -> None:
    process = start(train, settings, data.path, folder)
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_anywhere_comes_to_the_same_end(
    number: int, whole: tuple[dict[str, Any], Path, float], chain_data: Dataset, tmp_path: Path
) -> None:
    """Killed ones are in tests/reliability."""
    settings, expected, duration = whole
    rng = random.Random()  # any moment must do
    stopped, parts = 0, tmp_path / "parts"
    for attempt in range(12):
        process = start(train, settings, chain_data.path, parts)
        time.sleep(rng.uniform(0.1, 0.6) * duration)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(60)
        stopped += process.exitcode in (-signal.SIGTERM, 130)
        if stopped and (stopped == 3 or process.exitcode == 0):
            break
        if process.exitcode == 0:  # it was faster than the signal, or lost it in a destructor, as Python may
            parts = tmp_path / f"parts {attempt}"
    assert stopped > 0
    for name in ("text_vectors.safetensors", "run.json", "config.yaml"):
        (parts / f".{name}.x.part").write_bytes(b"half")  # as a process leaves it that is stopped just then
    finish(settings, chain_data, parts)
    assert outcome(parts) == outcome(expected)
    assert not list(parts.rglob("*.part"))


def test_test_items_never_touch_anything_trained_or_chosen(
    chain_run: Path, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    items = chain_data.items.copy()
    items[chain_data.test] = 0
    altered = dataclasses.replace(chain_data, items=items, path=None)
    assert altered.fingerprint != chain_data.fingerprint
    parse_settings(tiny_settings).fit(altered, tmp_path / "run")
    a, b = outcome(chain_run), outcome(tmp_path / "run")
    for each in (a, b):
        each["record"] = each["record"]["stages"]
    assert a == b
