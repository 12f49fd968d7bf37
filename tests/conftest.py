"""What more than one room's tests need: one thread, a tiny language model, a small trained run."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_once import MadeOnce
from onnx_operators import remember_operators

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset

# Before torch is imported, and inherited by the commands that tests start: these models are so small that threads
# would only wait for each other, and one thread makes sums come out the same every time.
os.environ["OMP_NUM_THREADS"] = "1"

# Whatever is written is flushed to the disk, thousands of times in all; in memory that is free.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# A script's shell makes what it starts in the background deaf to the Ctrl-C that tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    gc.collect()
    gc.freeze()  # what was imported stays, and need not be looked through again and again


def pytest_runtest_setup() -> None:
    if "torch.onnx._internal.exporter._registration" in sys.modules:
        remember_operators()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    return MadeOnce(tmp_path_factory)


@pytest.fixture(scope="session")
def llama(made_once: MadeOnce) -> str:
    from tiny_llama import llama_model, save

    return str(made_once("llama", lambda folder: save(folder, llama_model())))


@pytest.fixture(scope="session")
def tiny_settings(llama: str) -> dict[str, Any]:
    """Settings of a run that takes a second or two, the paper's method; tests change what they are about."""
    training = {"epochs": 2, "patience": 5, "batch": 64, "warmup": 2, "learning_rate": 0.01, "min_steps": 4}
    return {
        "rounds": 1,
        "round_patience": 3,
        "teachers": None,
        "memory": None,
        "distill": {"source": "partner", "weight": {"model": 4.0}, "logit_adjustment": 0.0, "dropout": None},
        "model": {"dim": 8, "layers": 1, "heads": 2, "dropout": 0.1, "max_length": 6, "item_features": "id"},
        "llm": {
            "model": llama, "layers": 1, "item_features": "id", "dim": 8, "max_length": 6, "prompt": "given items",
            "lora": {"r": 2}, "init_table_from_model": False, "tie_table": False, "dropout": 0.1, "state_dropout": 0.0,
            "branch_dropout": 0.0,
        },
        "training": {"model": {**training, "ema": 0.0, "round_learning_rate": None}, "llm": training},
        "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="session")
def chain_data(made_once: MadeOnce) -> Dataset:
    """A small saved data set in which item i is followed by item i + 1; with identifiers that are hard to print."""
    from evaluation.examples import chain_dataset

    from llmd4rec.data.dataset import Dataset

    folder = made_once("data", lambda folder: chain_dataset(users=30, items=12, length=8).save(folder / "chain"))
    return Dataset.load(folder / "chain")


@pytest.fixture(scope="session")
def chain_run(made_once: MadeOnce, tiny_settings: dict[str, Any], chain_data: Dataset) -> Path:
    """The folder of a finished run of one round on `chain_data`; copy it before changing it."""
    from settings_of import parse_settings

    settings = parse_settings(tiny_settings)
    return made_once("run", lambda folder: settings.fit(chain_data, folder / "chain")) / "chain"
