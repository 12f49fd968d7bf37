"""Small data sets made directly from arrays, and a model whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.data.dataset import Dataset, SplitName
from llmd4rec.evaluation import Evaluation, Evaluator
from llmd4rec.evaluation.evaluation import MetricInfo
from llmd4rec.evaluation.metrics import Floats, RankMetric, TargetRanks, expand
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.scoring.factors import FactorScorer


def make_dataset(
    sequences: Sequence[Sequence[int] | NDArray[np.int64]], num_items: int, times: Sequence[Sequence[int]] | None = None
) -> Dataset:
    """Leave-one-out over `sequences`: the last item is the test target, the one before it the validation target."""
    lengths = np.array([len(sequence) for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Dataset(
        user_ids=pl.Series("user_id", [f"u{user}" for user in range(len(sequences))]),
        catalogue=pl.DataFrame(
            {
                "item_id": [f"i{item}" for item in range(num_items)],
                "title": [f"Item {item}" for item in range(num_items)],
            }
        ),
        offsets=offsets,
        items=np.concatenate(sequences).astype(np.int32),
        train_end=offsets[1:] - 2,
        valid=offsets[1:] - 2,
        test=offsets[1:] - 1,
        times=None if times is None else np.concatenate(times).astype(np.int64),
        text_fields=("title",),
    )


def random_dataset(users: int, items: int, seed: int = 0, longest: int = 12) -> Dataset:
    """Random sequences of 3 to `longest` items."""
    rng = np.random.default_rng(seed)
    return make_dataset([rng.integers(0, items, rng.integers(3, longest + 1)).tolist() for _ in range(users)], items)


def chain_dataset(users: int, items: int, length: int, seed: int = 0) -> Dataset:
    """Everybody walks up the catalogue from a random start: item i is always followed by item i + 1, around the end."""
    starts = np.random.default_rng(seed).integers(0, items, users)
    return make_dataset([((start + np.arange(length)) % items).tolist() for start in starts], items)


class LastItemModel(SequenceEncoder):
    """Its state is the last item's row of `table`; remembers what it was asked."""

    def __init__(self, table: Tensor, max_length: int = 5) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.max_length = max_length
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.modes: list[tuple[bool, bool]] = []

    @property
    def num_items(self) -> int:
        return len(self.table)

    @property
    def dim(self) -> int:
        return self.table.shape[1]

    def states(self, batch: SequenceBatch) -> Tensor:
        self.batches.append((batch.items_BL, batch.lengths_B))
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return self.table[batch.items_BL]

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.table if items is None else self.table[items]


def evaluate(
    model: SequenceEncoder,
    data: Dataset,
    split: SplitName = "test",
    *,
    name: str = "model",
    stage: str = "distilled",
    **options: Any,
) -> Evaluation:
    """A model under the default metrics; options are those of an Evaluator."""
    return Evaluator(**options).evaluate(FactorScorer(model, name=name, stage=stage), data, split)


def values_of(ranks: NDArray[np.integer], cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, Floats]:
    """HR, NDCG and MRR of every user with one target."""
    found = TargetRanks.of_one(ranks)
    metrics = [metric for metric in expand(("hr", "ndcg", "mrr"), cutoffs) if isinstance(metric, RankMetric)]
    return {metric.name: metric.per_user(found) for metric in metrics}


def means_of(ranks: NDArray[np.integer], cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """Their means."""
    return {name: float(values.mean()) for name, values in values_of(ranks, cutoffs).items()}


def info_of(cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, MetricInfo]:
    """How to show them."""
    return {metric.name: MetricInfo.of(metric) for metric in expand(("hr", "ndcg", "mrr"), cutoffs)}
