"""Scripts of benchmarks/ that no machine here can run whole: their parts, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from settings_of import changed, parse_settings
from torch.profiler import ProfilerActivity

from llmd4rec.data.dataset import Dataset

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of benchmarks/, which import each other by their bare names."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("gpu", monkeypatch)


def test_what_was_measured_before_stays_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"processor": "a", "cores": 2, "memory_gb": 1, "system": "b", "threads": {}}
    figures = [{"what": "seconds", "value": 5.0, "unit": "s", "target": "", "met": None, "note": ""}]
    record = {"title": "Recipe", "machine": machine, "versions": {}, "commit": "c", "date": "2030-01-01", "notes": []}
    (tmp_path / "recipe.json").write_text(json.dumps(record | {"figures": figures}))
    page = tmp_path / "results.md"
    page.write_text("# Benchmarks\n\nOld.\n\n## Recipe\n\n9 s\n\n## Memory\n\n3 GB\n")
    found = script("run", monkeypatch).markdown(tmp_path, page)
    assert [line for line in found.splitlines() if line.startswith("## ")] == ["## Recipe", "## Memory"]
    assert "3 GB" in found
    assert "9 s" not in found
    assert "| seconds | 5 s |" in found


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
