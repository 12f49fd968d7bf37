"""The effort `best` on a GPU, the language model with all of its layers: seconds per stage, and what the chip does.

    python benchmarks/gpu.py [--data DATA] [--epochs 1] [--set KEY=VALUE ...]

Each stage of the plan is trained for an epoch. Some of its steps run beneath PyTorch's profiler, which counts the
arithmetic of matrix products and the time of each kernel. The chip's rate is that of its own large product in 16-bit
floats, measured first. Without a GPU it says so, and ends.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Figure, beauty, report
from torch.profiler import ProfilerActivity, profile

from llmd4rec.config.settings import load_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.runs.pipeline import train
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.stop_after import StopAfter
from llmd4rec.training.trainer import Trainer

#: The steps of a stage that are profiled: behind so many to warm up, so many.
WARMUP, STEPS = 8, 16


@dataclass(frozen=True)
class Profiled:
    """Some steps of a stage: how long they took, their arithmetic, and the seconds of each kernel."""

    seconds: float
    flops: float
    kernels: dict[str, float]

    @classmethod
    def of(cls, profiler: profile, seconds: float) -> Profiled:
        """What a profiler has seen; on a machine without a GPU its operations stand for kernels."""
        events = profiler.key_averages()
        on_gpu = {event.key: event.self_device_time_total / 1e6 for event in events if event.self_device_time_total}
        on_cpu = {event.key: event.self_cpu_time_total / 1e6 for event in events}
        return cls(seconds, float(sum(event.flops or 0 for event in events)), on_gpu or on_cpu)

    def slowest(self, count: int = 3) -> list[tuple[str, float]]:
        """The kernels that take most of all kernels' time, each with its share."""
        total = sum(self.kernels.values()) or 1.0
        ranked = sorted(self.kernels.items(), key=lambda each: -each[1])
        return [(name, seconds / total) for name, seconds in ranked[:count]]


class Watch(Callback):
    """When each training ended, and what a profiler saw of some of its steps."""

    def __init__(self, activities: Sequence[ProfilerActivity], warmup: int = WARMUP, steps: int = STEPS) -> None:
        self._activities, self._from, self._to = list(activities), warmup, warmup + steps
        self.ends: dict[str, float] = {}
        self.profiled: dict[str, Profiled] = {}

    def on_step_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if trainer.progress.total_steps == self._from:
            _wait(trainer.device)
            self._profiler = profile(activities=self._activities, with_flops=True)
            self._profiler.start()
            self._begun = time.perf_counter()

    def on_step_end(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if trainer.progress.total_steps == self._to:
            _wait(trainer.device)
            seconds = time.perf_counter() - self._begun
            self._profiler.stop()
            self.profiled[trainer.stage] = Profiled.of(self._profiler, seconds)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        _wait(trainer.device)
        self.ends[trainer.stage] = time.perf_counter()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """The arithmetic per second of a large product in 16-bit floats."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        one @ other
    _wait(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        one @ other
    _wait(device)
    return 2.0 * size**3 * repeats / (time.perf_counter() - begun)


def figures_of(watch: Watch, begun: float, peak: float) -> list[Figure]:
    """The figures of all stages, in the order in which they were trained."""
    figures = []
    for stage, end in watch.ends.items():
        figures.append(Figure(f"{stage}: teachers, an epoch, validation", end - begun, "s"))
        begun = end
        if stage in watch.profiled:
            found = watch.profiled[stage]
            share = 100 * found.flops / found.seconds / peak
            note = "; ".join(f"{part:.0%} {name[:60]}" for name, part in found.slowest())
            figures.append(Figure(f"{stage}: of the chip's rate", share, "%", note=note))
    return figures


def measured(settings: DistillationSettings, data: Dataset, epochs: int, watch: Watch, peak: float) -> list[Figure]:
    """Trains each stage of the plan for so many epochs."""
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as folder:
        begun = time.perf_counter()
        train(settings, data, Path(folder, "run"), callbacks=[watch, StopAfter(epochs)])
    return figures_of(watch, begun, peak)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: a synthetic log of Beauty's shape)")
    parser.add_argument("--epochs", type=int, default=1, help="of each stage")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that PyTorch can use: nothing is measured")
        return
    overrides = ["device=cuda", "rounds=1", *arguments.overrides]
    settings = load_settings(DistillationSettings, None, overrides, base=dict(EFFORTS["best"]))
    peak = peak_rate(torch.device("cuda"))
    watch = Watch([ProfilerActivity.CPU, ProfilerActivity.CUDA])
    figures = measured(settings, beauty(arguments.data), arguments.epochs, watch, peak)
    notes = [f"{torch.cuda.get_device_name()}; its product of large matrices in bf16: {peak / 1e12:.0f} TFLOP/s"]
    report("gpu", "The effort `best` on a GPU", figures, notes)


if __name__ == "__main__":
    main()
