"""What needs no training: by hand, by the evaluator, and from the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from evaluation.examples import make_dataset
from numpy.typing import NDArray
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation import Evaluator
from llmd4rec.evaluation.baselines import evaluate_baselines
from llmd4rec.scoring.baselines import BASELINES, baseline_scorers, memory_scorer
from llmd4rec.scoring.memory.settings import LAST, Content, Memory, Recency, Transitions
from llmd4rec.scoring.memory.state import count_memory

from .memory_oracle import random_log, random_texts

SHARED = Path(__file__).parents[2].parent / "shared"
SCRIPT, VECTORS = SHARED / "reference" / "memory_reference.py", SHARED / "reference" / "beauty_minilm.npy"
BEAUTY = SHARED / "data" / "amazon2014_beauty" / "interactions.parquet"
WEIGHTS = {"content": 3.0, "transitions": 0.7, "recency": 0.4}


def test_popularity_is_of_the_training_part() -> None:
    data = make_dataset([[0, 0, 1, 2, 3], [0, 4, 4, 4]], 5)
    scorer = baseline_scorers(data, None)["popularity"]
    found = Evaluator(["ndcg@10"], filter_seen=False).evaluate(scorer, data, split="valid")
    # Counts are 3, 1, 0, 0, 1: item 2 ties with item 3 behind all others, item 4 with item 1 behind item 0.
    assert found.per_user["rank"].to_list() == [5, 3]
    assert (found.model, found.stage) == ("no training", "popularity")


def test_what_a_data_set_cannot_give_is_left_out() -> None:
    assert list(baseline_scorers(random_log(0, timed=False), None)) == ["popularity", "transitions", "item-knn"]
    assert tuple(baseline_scorers(random_log(0), random_texts(0, 12))) == BASELINES
    without = Memory(content=None, transitions=None)
    assert tuple(baseline_scorers(random_log(0), random_texts(0, 12), without)) == BASELINES
    found = evaluate_baselines(random_log(0, timed=False), None, Memory(weights={"transitions": 1.0}))
    assert found.left_out["recency"] == "the data set has no times"
    assert found.figures["memory"] == found.figures["transitions"]


@pytest.mark.parametrize("filter_seen", [True, False])
def test_one_pass_has_the_figures_of_the_evaluator(filter_seen: bool) -> None:
    data, texts = random_log(3, users=60, items=40), random_texts(3, 40)
    asked = Memory(weights=WEIGHTS)
    found = evaluate_baselines(data, texts, asked, filter_seen=filter_seen)
    counted = count_memory(asked, data, texts)
    assert counted is not None
    scorers = baseline_scorers(data, texts, asked) | {"memory": memory_scorer(counted)}
    assert list(found.figures) == list(scorers)
    for name, scorer in scorers.items():
        expected = Evaluator(["ndcg@10", "hr@10"], filter_seen=filter_seen).evaluate(scorer, data)
        assert found.figures[name] == pytest.approx(expected.metrics)
        for metric, value in found.next_day[name].items():
            assert value == pytest.approx(expected.slices["next_day"][metric])
    assert found.users == 60
    assert found.weights == WEIGHTS | {"item_knn": 0}


def prepared(folder: Path, split: str = "leave-one-out") -> Path:
    """A shop where the next item is one further, written to Parquet and prepared."""
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{(start + step) % 20}", "timestamp": 86_400 * (day + step)}
        for user, (start, day) in enumerate(rng.integers(0, [20, 60], (60, 2)))
        for step in range(8)
    ]
    pl.DataFrame(rows).write_parquet(folder / "log.parquet")
    data = Dataset.from_frames(pl.read_parquet(folder / "log.parquet"), split=split)
    data.save(folder / "data")
    return folder / "data"


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    result = CliRunner().invoke(app, ["baselines", str(data), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found["figures"]) == ["popularity", "recency", "transitions", "item-knn", "memory"]
    assert found["figures"]["transitions"]["ndcg@10"] == 1.0
    assert found["left_out"]["content"] == "the items have no texts"
    shown = CliRunner().invoke(app, ["baselines", str(data), "--split", "valid", "--no-filter-seen"])
    assert shown.exit_code == 0, shown.output
    for said in ("popularity", "item-knn", "memory =", "no content: the items have no texts", "seen items kept"):
        assert said in shown.stdout


def test_the_command_evaluates_windows_of_time(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["baselines", str(prepared(tmp_path)), "--rolling", "--windows", "4", "--choose-on", "1", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert {"memory", "transitions", "recency"} <= set(json.loads(result.stdout)["scorers"])


# ---- the script that measured first --------------------------------------------------------------------------------
def _script(log: Path, vectors: Path) -> dict[str, tuple[float, float]]:
    """Name → HR@10 and NDCG@10, leave-one-out."""
    command = [sys.executable, str(SCRIPT), "leave-one-out", str(log), "--vectors", str(vectors)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split("  n ") for line in printed.splitlines()]
    return {name.strip(): (float(rest.split()[2]), float(rest.split()[4])) for name, rest in lines}


def _figures(data: Dataset, texts: NDArray[np.float32], *names: str) -> dict[str, tuple[float, float]]:
    """The same by the package, or some of it: gaps 1 to 3 without age, the last 14 days, and the script's weights."""
    asked = Memory(
        content=Content(dim=1000, whitening=0, last=LAST),
        transitions=Transitions(recent_weight=0),
        recency=Recency(half_life_days=None, window_days=14),
        weights={"content": 4.0, "transitions": 0.5, "recency": 0.3},
    )
    counted = count_memory(asked, data, texts)
    assert counted is not None
    scorers = {
        "content": baseline_scorers(data, texts, asked, counted=counted)["content"],
        "transitions": baseline_scorers(data, texts, asked, counted=counted)["transitions"],
        "memory": memory_scorer(counted),
        "memory without recency": memory_scorer(counted.with_weights({"content": 2.0, "transitions": 0.25})),
    }
    asked_for = {name: scorer for name, scorer in scorers.items() if name in names or not names}
    found = {name: Evaluator(["hr@10", "ndcg@10"]).evaluate(each, data).metrics for name, each in asked_for.items()}
    return {name: (metrics["hr@10"], metrics["ndcg@10"]) for name, metrics in found.items()}


def _log_of(frame: pl.DataFrame, vectors: NDArray[np.float32], folder: Path) -> tuple[Dataset, NDArray[np.float32]]:
    ids = np.unique(frame["item_id"].to_numpy())
    data = Dataset.from_frames(frame, duplicates="keep")
    row = {str(item): number for number, item in enumerate(ids.tolist())}
    centred = vectors - vectors.mean(axis=0)
    np.save(folder / "vectors.npy", centred)
    frame.write_parquet(folder / "log.parquet")
    return data, centred[[row[item] for item in data.item_ids]]


@pytest.mark.shared
@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_log_has_the_figures_of_the_script(tmp_path: Path, seed: int) -> None:
    """Ties, repeated items, histories of one item."""
    if not SCRIPT.is_file():
        pytest.skip("the reference script is not beside the repository")
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(150):
        count = int(rng.integers(1, 9))
        items, days = rng.zipf(1.5, count) % 60, np.sort(rng.integers(0, 90, count))
        for place, (item, day) in enumerate(zip(items.tolist(), days.tolist(), strict=True)):
            row = {"user_id": f"u{user:03d}", "item_id": f"i{item:03d}", "position": place, "timestamp": day * 86_400}
            rows.append(row)
    frame = pl.DataFrame(rows)
    vectors = rng.normal(size=(frame["item_id"].n_unique(), 12)).astype(np.float32)
    data, texts = _log_of(frame, vectors, tmp_path)
    expected = _script(tmp_path / "log.parquet", tmp_path / "vectors.npy")
    for name, values in _figures(data, texts).items():
        # The script adds up in double precision, where sums that are equal may differ in the last digit: a tie less.
        assert values == pytest.approx(expected[name], abs=1e-3), name


@pytest.mark.shared
@pytest.mark.slow
def test_beauty_has_the_figures_of_the_script(tmp_path: Path) -> None:
    if not (BEAUTY.is_file() and VECTORS.is_file()):
        pytest.skip("Beauty is not beside the repository")
    data, texts = _log_of(pl.read_parquet(BEAUTY), np.load(VECTORS).astype(np.float32), tmp_path)
    found = _figures(data, texts, "memory", "memory without recency")  # of which the others are parts
    assert math.isclose(found["memory"][1], 0.0634, abs_tol=1e-4)
    assert math.isclose(found["memory without recency"][1], 0.0611, abs_tol=1e-4)
