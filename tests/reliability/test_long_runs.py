"""What must not grow while a training runs: memory, checkpoints, the log; and what is said meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.examples import chain_dataset
from torch import nn

from llmd4rec import log as progress
from llmd4rec.distillation.cache import open_cache, write_cache
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.sequential import SASRec
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.progress_bar import ProgressBar
from llmd4rec.training.callbacks.spare_memory import SpareMemory
from llmd4rec.training.fit import DEFAULTS, fit
from llmd4rec.training.loggers.json_lines import JSONLines
from llmd4rec.training.settings import Training
from llmd4rec.training.trainer import Trainer

STEPS, EPOCHS = 1200, 30


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("this system does not say how much memory a process holds")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_1200_steps_leave_memory_log_and_folder_as_large_as_400(tmp_path: Path) -> None:
    """With a teacher, checkpoints, validations and averages; a leak of 1 kB a step would be 1 MB."""
    data = chain_dataset(users=60, items=20, length=10)
    network = SASRec(dim=16, layers=1, max_length=8).build(20, 0)
    write_cache(SASRec(dim=8, layers=1, max_length=8).build(20, 1), data, tmp_path / "teacher", label="t")
    teacher = open_cache(tmp_path / "teacher", data, torch.device("cpu"), "int8")
    steps: list[int] = []
    sizes: list[int] = []

    def watch(module: nn.Module, *_: object) -> None:
        if module.training:
            steps.append(resident())

    def validate(model: SequenceEncoder) -> float:
        folder = tmp_path / "fit"
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()) if folder.exists() else 0)
        return validation_value(model, data) + len(sizes)  # every epoch is a better one

    network.norm_in.register_forward_hook(watch)
    settings = Training(epochs=EPOCHS, patience=EPOCHS, batch=10, ema=0.9, clip=1.0, checkpoint_seconds=0.05)
    fit(
        network, data, settings, tmp_path / "fit", stage="undistilled", seed=0, validate=validate,
        callbacks=[JSONLines()], log_folder=tmp_path,
        objective=RankingObjective(settings, teacher, DistillationTerm()),
    )  # fmt: skip
    assert len(steps) >= STEPS
    later = np.asarray(steps[400:], dtype=float)
    slope = np.polyfit(np.arange(len(later)), later, 1)[0]
    print(f"{slope:.0f} bytes a step, {(later[-1] - later[0]) / 2**20:.1f} MB in {len(later)} steps")
    assert slope < 1024
    last, best = (next((tmp_path / "fit").glob(f"{name}*")).stat().st_size for name in ("last", "best"))
    assert max(sizes) < 1.01 * (2 * last + 3 * best)
    assert (tmp_path / "metrics.jsonl").stat().st_size < 500 * (EPOCHS + 1)


_SCATTERED = """
import ctypes, os, sys
import torch
from llmd4rec.training.callbacks.spare_memory import SpareMemory, _private_bytes
from llmd4rec.training.runtime import keep_freed_memory

if _private_bytes() is None or not hasattr(ctypes.CDLL(None), "malloc_trim"):
    sys.exit(77)
if os.fork():  # the child begins with the same memory: starting another process takes longer than all of this
    most = 100
    assert os.wait()[1] == 0
else:
    most = 1000
keep_freed_memory()
malloc = ctypes.CDLL(None).malloc
spare = SpareMemory(most << 20)
spare.on_step_end(None)  # what is held now is needed
blocks = []
for _ in range(300):  # what is small and stays between them keeps 300 MB from being one piece again
    blocks.append(torch.ones(1 << 18))
    malloc(1 << 16)
full = _private_bytes()
blocks.clear()
spare.on_step_end(None)
print(most, (full - _private_bytes()) / 2**20, flush=True)
"""


def test_memory_freed_in_pieces_goes_back_once_there_is_much_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", _SCATTERED], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this system's C library cannot give memory back")
    assert done.returncode == 0, done.stderr
    given_back = {int(most): float(given) for most, given in map(str.split, done.stdout.splitlines())}
    assert given_back.keys() == {100, 1000}
    assert given_back[100] > 250 >= given_back[1000]


class Counting(SpareMemory):
    def __init__(self) -> None:
        super().__init__()
        self.looked = 0

    def on_step_end(self, trainer: Trainer) -> None:
        super().on_step_end(trainer)
        self.looked += 1


def test_a_training_looks_at_its_spare_memory_after_each_step(tmp_path: Path) -> None:
    assert SpareMemory in DEFAULTS
    spare = Counting()
    data = chain_dataset(users=60, items=20, length=10)
    network = SASRec(dim=8, layers=1, max_length=8).build(20, 0)
    steps: list[int] = []
    network.norm_in.register_forward_hook(lambda module, *_: steps.append(1) if module.training else None)
    settings = Training(epochs=2, patience=2, batch=10)
    fit(
        network, data, settings, tmp_path / "fit", stage="undistilled", seed=0,
        validate=lambda model: validation_value(model, data), callbacks=[JSONLines(), spare], log_folder=tmp_path,
        objective=RankingObjective(settings),
    )  # fmt: skip
    assert spare.looked == len(steps) > 60


def test_without_a_terminal_a_line_now_and_then_says_how_far_and_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = chain_dataset(users=60, items=20, length=10)
    settings = Training(epochs=3, patience=3, batch=10)

    def train(folder: Path, *callbacks: Callback) -> list[str]:
        capsys.readouterr()
        fit(
            SASRec(dim=8, layers=1, max_length=8).build(20, 0), data, settings, folder, stage="undistilled", seed=0,
            validate=lambda model: validation_value(model, data), callbacks=callbacks,
            objective=RankingObjective(settings),
        )  # fmt: skip
        return str(capsys.readouterr().err).splitlines()

    assert train(tmp_path / "a") == []  # what takes less than a minute needs no line
    lines = [line for line in train(tmp_path / "b", ProgressBar(line_seconds=0.0)) if line.startswith("undistilled")]
    assert len(lines) > 90
    pattern = (
        r"undistilled epoch (\d) of at most 3: (\d+) of \d+ steps, .* steps/s, \d+ s left; "
        r"loss [\d.]+, best [\d.]+, stage at most \d+ s"
    )
    assert all(re.fullmatch(pattern, line) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (6000, "1 h 40 min"), (90000, "25 h 0 min")],
)
def test_spans_of_time_are_for_people(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
