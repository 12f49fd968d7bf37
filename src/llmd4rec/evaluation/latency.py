"""How long one request takes: one history in, ten items out, on the model's device, through PyTorch."""

from __future__ import annotations

import time

import numpy as np
import torch

from llmd4rec.data.dataset import Dataset
from llmd4rec.models.ranker import Ranker, last_states


@torch.inference_mode()
def milliseconds_per_request(ranker: Ranker, dataset: Dataset, requests: int = 60, seed: int = 0) -> float:
    """The median time of answering one history at a time, after a warm-up, in milliseconds.

    Args:
        ranker: a model in evaluation mode.
        dataset: test histories are drawn from it.
        requests: how many are timed.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    positions = rng.choice(np.asarray(dataset.test), size=requests + 5)
    device = next(ranker.parameters()).device
    table_DI = ranker.item_table().t().contiguous()
    times = []
    for position in positions:
        history = np.asarray(dataset.history(int(position)), dtype=np.int64)[-ranker.max_length :]
        started = time.perf_counter()
        items = torch.from_numpy(history)[None].to(device)
        state = last_states(ranker, items, torch.tensor([len(history)], device=device))
        (state @ table_DI).topk(min(10, dataset.num_items)).indices.tolist()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times[5:]))
