"""Scripts of benchmarks/ that no machine here can run whole: their parts, on the CPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from settings_of import changed, parse_settings
from torch.profiler import ProfilerActivity

from llmd4rec.data.dataset import Dataset

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/gpu.py; the scripts there import each other by their bare names."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", FOLDER / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def test_some_steps_of_each_stage_are_profiled(
    gpu: ModuleType, tiny_settings: dict[str, Any], chain_data: Dataset
) -> None:
    watch = gpu.Watch([ProfilerActivity.CPU], warmup=1, steps=2)
    settings = parse_settings(changed(tiny_settings, llm=None, teachers=1, distill__source="ensemble"))
    figures = gpu.measured(settings, chain_data, 1, watch, peak=1e9)
    assert [figure.what.split(":")[0] for figure in figures[::2]] == ["undistilled", "teacher-1", "distilled-round-1"]
    assert [figure.unit for figure in figures] == ["s", "%"] * 3
    assert all(figure.value > 0 for figure in figures)
    assert all(figure.note.count("%") == 3 for figure in figures[1::2])


def test_the_slowest_kernels_have_their_share_of_all(gpu: ModuleType) -> None:
    found = gpu.Profiled(1.0, 0.0, {"a": 1.0, "b": 5.0, "c": 2.0, "d": 2.0})
    assert found.slowest(2) == [("b", 0.5), ("c", 0.2)]
    assert gpu.Profiled(1.0, 0.0, {}).slowest() == []
