"""How long one request takes: one history in, ten items out, on the model's device, through PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from llmd4rec.data.batching import read_histories
from llmd4rec.data.dataset import Dataset
from llmd4rec.models.base import SequenceEncoder, last_states


@torch.inference_mode()
def milliseconds_per_request(
    rankers: Sequence[SequenceEncoder], dataset: Dataset, requests: int = 60, seed: int = 0
) -> list[float]:
    """The median time of answering one history at a time, per model, in milliseconds.

    The models take turns at each history, each as often first as last: whatever else the machine does, and a processor
    cache that a large model before it has emptied, falls on all of them alike.

    Args:
        rankers: models in evaluation mode.
        dataset: test histories are drawn from it.
        requests: how many are timed, after a warm-up.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    positions = rng.choice(np.asarray(dataset.test), size=requests + 5)
    starts = dataset.offsets[dataset.users_of(positions)]
    tables_DI = [ranker.item_table().t().contiguous() for ranker in rankers]
    times = np.empty((len(positions), len(rankers)))
    for row in range(len(positions)):
        for turn in range(len(rankers)):
            column = (row + turn) % len(rankers)
            ranker, table_DI = rankers[column], tables_DI[column]
            device = table_DI.device
            started = time.perf_counter()
            batch = read_histories(dataset, starts[row, None], positions[row, None], ranker.max_length, ranker.reads)
            state = last_states(ranker, batch.to(device))
            (state @ table_DI).topk(min(10, dataset.num_items)).indices.tolist()
            times[row, column] = time.perf_counter() - started
    return [1000 * float(value) for value in np.median(times[5:], axis=0)]
