"""A small log with times, and rolling evaluations of given figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation.rolling import rolling
from llmd4rec.evaluation.rolling_evaluation import RollingEvaluation
from llmd4rec.evaluation.windows import Rolling
from llmd4rec.scoring.memory.settings import LAST, Content, Memory, Recency, Transitions

from .examples import make_dataset

DAY = 86_400
WEIGHTS = {"content": 1.0, "transitions": 1.5, "recency": 1.0}
MEMORY = Memory(
    content=Content(dim=64, whitening=0, last=LAST),
    transitions=Transitions(gaps=2, half_life_days=10.0, recent_weight=3.0),
    recency=Recency(half_life_days=4.0),
    weights=WEIGHTS,
)
ASKED = Rolling(windows=4, every=5 * DAY, choose_on=1, cut=15 * DAY)


def random_log(seed: int, users: int = 40, items: int = 25) -> Dataset:
    """Thirty-five days by the hour, many at the same moment; some users first appear late."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, items, rng.integers(1, 14)).tolist() for _ in range(users)]
    times = [
        (np.sort(rng.integers(rng.integers(0, 30) * 24, 35 * 24, len(sequence))) * 3_600).tolist()
        for sequence in sequences
    ]
    return make_dataset(sequences, items, times)


def hand_made(values: dict[str, list[float]], users: list[str], kinds: dict[str, str]) -> RollingEvaluation:
    """One window, one metric, given values."""
    found = rolling(random_log(0), replace(ASKED, windows=1, choose_on=0), memory=MEMORY)
    frames = [
        pl.DataFrame(
            {
                "scorer": [name] * len(users), "window": [0] * len(users), "user_id": users, "item_id": users,
                "time": [15 * DAY] * len(users), "history_length": [1] * len(users), "gap": [0] * len(users),
                "item_count": [0] * len(users), "rank": [1] * len(users), "ndcg@10": each, "hr@10": each,
            }
        )
        for name, each in values.items()
    ]  # fmt: skip
    return replace(found, kinds=kinds, weights={}, per_target=pl.concat(frames))  # type: ignore[arg-type]
