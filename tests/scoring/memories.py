"""Memories that tests of scores, of observing and of saving share."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.scoring.memory.settings import Memory, Recency, Transitions
from llmd4rec.scoring.memory.state import CountedMemory, count_memory

ITEMS = 12
SEEDS = st.integers(0, 100_000)
TRANSITIONS = st.builds(
    Transitions,
    gaps=st.integers(1, 4),
    reverse=st.sampled_from([0.0, 0.5, 1.0]),
    half_life_days=st.sampled_from([3.0, 30.0]),
    recent_weight=st.sampled_from([0.0, 1.0, 8.0]),
    ties=st.sampled_from(["as-ordered", "half"]),
)
RECENCY = st.builds(
    Recency, half_life_days=st.sampled_from([None, 0.5, 4.0]), window_days=st.sampled_from([None, None, 14.0, 3.25])
)


def counted_memory(asked: Memory, data: Dataset, texts: NDArray[np.float32] | None, **more: Any) -> CountedMemory:
    found = count_memory(asked, data, texts, **more)
    assert found is not None
    return found


def asked_for(data: Dataset, positions: list[int]) -> tuple[list[list[int]], list[None], list[int | None]]:
    """Histories before some positions, and when they are answered."""
    now = [None if data.times is None else int(data.times[position]) for position in positions]
    return [data.history(position).tolist() for position in positions], [None] * len(positions), now
