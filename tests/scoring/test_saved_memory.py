"""A memory in and out of a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmd4rec.errors import DataError
from llmd4rec.scoring.memory.settings import Content, Memory, Recency, Transitions
from llmd4rec.scoring.memory.state import CountedMemory

from .memories import ITEMS, counted_memory
from .memory_oracle import (
    DAY,
    random_log,
    random_texts,
)


# ---- in and out -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("observed", [0, 20])
@pytest.mark.parametrize("dim", [3, 128])
def test_a_saved_memory_answers_as_before(tmp_path: Path, observed: int, dim: int) -> None:
    data, texts = random_log(5), random_texts(5, ITEMS)
    assert data.times is not None
    asked = Memory(content=Content(dim=dim), transitions=Transitions(half_life_days=20.0, ties="half"))
    before = int(np.quantile(data.times, 0.7))
    memory = counted_memory(asked, data, texts, before=before).with_weights({"content": 2.0, "recency": 1.0})
    for number in range(observed):
        memory.observe([number % 5], number % ITEMS, before + number * 7000)
    memory.save(tmp_path / "memory")
    loaded = CountedMemory.load(tmp_path / "memory")
    assert (loaded.settings, loaded.weights, loaded.as_of) == (memory.settings, memory.weights, memory.as_of)
    for now in (before, before + 10 * DAY, before - 20 * DAY, None):
        for name, part in memory.parts.items():
            found, expected = (
                each.prepare([[1, 2], []], [None] * 2, [now] * 2).scores() for each in (loaded.parts[name], part)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    loaded.observe([1], 2, before + 30 * DAY)
    memory.observe([1], 2, before + 30 * DAY)
    found, expected = (each.prepare([[1]], [None], [None]).scores() for each in (loaded, memory))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def _saved(folder: Path) -> Path:
    memory = counted_memory(Memory(), random_log(6), random_texts(6, ITEMS))
    memory.save(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("content", lambda array: array[:-1]),
        ("content", lambda array: np.where(array == array.max(), np.nan, array).astype(np.float32)),
        ("content", lambda array: array.astype(np.float64)),
        ("transition_items", lambda array: array + 1),
        ("transition_items", lambda array: array[::-1].copy()),
        ("transition_starts", lambda array: array + (array > 0)),
        ("transition_starts", lambda array: np.concatenate([array[:1] + 1, array[1:]])),
        ("transition_counts", lambda array: -array),
        ("recency_items", lambda array: array + 100),
        ("recency_items", lambda array: array[1:]),
        ("recency_times", None),
    ],
)
def test_a_damaged_memory_is_refused(tmp_path: Path, name: str, change: Any) -> None:
    folder = _saved(tmp_path / "memory")
    path = folder / f"{name}.npy"
    if change is None:
        path.unlink()
    else:
        changed = change(np.load(path))
        np.save(path, changed)
        about = json.loads((folder / "memory.json").read_text())
        about["arrays"][name] = [changed.dtype.str, list(changed.shape)]
        (folder / "memory.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=name):
        CountedMemory.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"items": 5},
        {"items": None},
        {"parts": ["content", "secret"]},
        {"settings": {"content": 3}},
        {"weights": {"content": "heavy"}},
        {"arrays": {"../../etc/passwd": ["<f4", [1]]}},
        {"as_of": "now"},
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = _saved(tmp_path / "memory")
    about = json.loads((folder / "memory.json").read_text())
    (folder / "memory.json").write_text(json.dumps(about | change))
    with pytest.raises(DataError):
        CountedMemory.load(folder)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "memory")
    path = folder / "transition_counts.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="transition_counts"):
        CountedMemory.load(folder)
    path.write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"\n"
    )
    with pytest.raises(DataError, match="transition_counts"):
        CountedMemory.load(folder)


def test_settings_are_data() -> None:
    asked = Memory(content=None, recency=Recency(window_days=14.0), weights={"transitions": 2.0})
    assert Memory.model_validate(asked.model_dump(mode="json")) == asked
    data = replace(random_log(0), text_fields=())
    assert counted_memory(asked, data, None).weights == {"transitions": 2.0, "recency": 0.0, "item_knn": 0.0}
