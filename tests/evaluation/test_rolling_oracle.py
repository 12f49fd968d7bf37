"""Rolling figures against a script that computes them from a log's file alone, where it lies beside the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation.rolling import rolling
from llmd4rec.evaluation.windows import Rolling
from llmd4rec.scoring.memory.settings import LAST, Content, Memory, Recency, Transitions

SHARED = Path(__file__).parents[2].parent / "shared"
SCRIPT = SHARED / "reference" / "memory_reference.py"
BEAUTY, VECTORS = SHARED / "data" / "amazon2014_beauty", SHARED / "reference" / "beauty_minilm.npy"
DAY = 86_400
#: What the script calls its scorers.
NAMES = {
    "popularity": "popularity",
    "recency": "recency, half-life 4 days",
    "transitions": "transitions",
    "content": "content",
    "memory": "memory",
}
#: The script forgets what is 24 days old, and its pairs do not age; its weights and gaps are fixed.
MEMORY = Memory(
    content=Content(dim=1000, whitening=0, last=LAST),
    transitions=Transitions(gaps=1, recent_weight=0.0),
    recency=Recency(half_life_days=4.0, window_days=24 - 1e-6),
    weights={"content": 1.0, "transitions": 1.5, "recency": 1.0},
)


@pytest.mark.shared
def test_windows_of_a_part_of_beauty_are_those_of_the_script(tmp_path: Path) -> None:
    if not (SCRIPT.is_file() and BEAUTY.is_dir() and VECTORS.is_file()):
        pytest.skip("the reference and its data are not beside the repository")
    whole = pl.read_parquet(BEAUTY / "interactions.parquet")
    log = whole.filter(pl.col("timestamp").is_not_null(), pl.col("user_id") % 30 == 7).drop("position")
    assert 3_000 < log.height < 12_000
    log.write_parquet(tmp_path / "log.parquet")
    every = np.unique(whole["item_id"].to_numpy())
    vectors = np.load(VECTORS)[np.searchsorted(every, np.unique(log["item_id"].to_numpy()))]
    np.save(tmp_path / "vectors.npy", vectors - vectors.astype(np.float32).mean(axis=0))  # the package does so itself
    command = [sys.executable, str(SCRIPT), "rolling", str(tmp_path / "log.parquet"), "--weeks", "6"]
    command += ["--vectors", str(tmp_path / "vectors.npy")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    data = Dataset.from_frames(log)
    assert data.times is not None
    start = int(np.sort(data.times)[int(0.9 * len(data.times))] // DAY * DAY)
    order = np.argsort(np.argsort(np.array(data.item_ids).astype(int)))
    texts_IT = vectors.astype(np.float32)[order]
    found = rolling(data, Rolling(windows=6, choose_on=3, cut=start), memory=MEMORY, texts_IT=texts_IT)

    lines = re.findall(r"^week (\d+): (\d+) targets; (.*)$", said, re.MULTILINE)
    assert found.targets() == [int(count) for _, count, _ in lines]
    for name, called in NAMES.items():
        theirs = [float(re.findall(rf"{called} ([0-9.]+)", figures)[0]) for _, _, figures in lines]
        assert found.by_window(name, "ndcg@10") == pytest.approx(theirs, abs=1e-4), name
        total = re.findall(rf"^{called}, weeks 3 on +n +\d+ +HR@10 ([0-9.]+) +NDCG@10 ([0-9.]+)", said, re.MULTILINE)[0]
        ours = [found.figure(name, metric) for metric in ("hr@10", "ndcg@10")]
        assert ours == pytest.approx([float(figure) for figure in total], abs=1e-4), name
