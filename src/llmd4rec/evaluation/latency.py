"""How long one request takes: one history in, ten items out, through PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from llmd4rec.data.batching import read_histories
from llmd4rec.data.dataset import Dataset
from llmd4rec.scoring.base import Scorer


@torch.inference_mode()
def milliseconds_per_request(
    scorers: Sequence[Scorer], dataset: Dataset, requests: int = 30, seed: int = 0
) -> list[float]:
    """The median time of answering one history at a time, per scorer, in milliseconds.

    They take turns at each history, each as often first as last: whatever else the machine does, and a processor
    cache that a large model before it has emptied, falls on all of them alike.

    Args:
        scorers: what answers; a model's work on its item table is done when its scorer is made.
        dataset: test histories are drawn from it.
        requests: how many are timed, after a warm-up.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    positions = rng.choice(np.asarray(dataset.test), size=requests + 5)
    starts = dataset.offsets[dataset.users_of(positions)]
    times = np.empty((len(positions), len(scorers)))
    for row in range(len(positions)):
        for turn in range(len(scorers)):
            column = (row + turn) % len(scorers)
            scorer = scorers[column]
            started = time.perf_counter()
            batch = read_histories(dataset, starts[row, None], positions[row, None], scorer.max_length, scorer.reads)
            scorer.prepare([batch]).candidates(10).items_BM.tolist()
            times[row, column] = time.perf_counter() - started
    return [1000 * float(value) for value in np.median(times[5:], axis=0)]
