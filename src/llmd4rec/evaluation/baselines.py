"""The training-free baselines and the memory on the held-out targets of a data set, in one pass.

The figures are those of an :class:`~llmd4rec.evaluation.evaluator.Evaluator` for each of them. Here histories are read
once, and the memory is the sum of scores that are there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from llmd4rec.data.dataset import Dataset, SplitName
from llmd4rec.evaluation.evaluator import USERS_AT_ONCE, is_bool
from llmd4rec.evaluation.held_out import HeldOut, by_length, held_out, read, split_up
from llmd4rec.evaluation.memory_weights import fit_memory
from llmd4rec.evaluation.metrics import HR, NDCG, Floats, RecommendedLists, TargetRanks, mean_of_values, per_user
from llmd4rec.evaluation.ranking import ItemLists, rank_targets
from llmd4rec.evaluation.slices import slice_masks
from llmd4rec.log import bar
from llmd4rec.scoring.base import Query, Scorer, block_rows, recent, spans
from llmd4rec.scoring.baselines import BASELINES, baseline_scorers, shown
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.scoring.memory.state import CountedMemory, count_memory

MEMORY = "memory"
METRICS = (NDCG(10), HR(10))


@dataclass(frozen=True)
class BaselineFigures:
    """What was found.

    Attributes:
        split: `test` or `valid`.
        filter_seen: whether items of the history were no candidates.
        users: how many targets.
        next_day_users: how many of them were chosen on a later day than the item before; None without times.
        figures: name → metric → value, of all.
        next_day: name → metric → value, of those.
        weights: of each part of the memory.
        left_out: what is not there, and why; and parts of the memory that validation gives no weight.
    """

    split: SplitName
    filter_seen: bool
    users: int
    next_day_users: int | None
    figures: dict[str, dict[str, float]]
    next_day: dict[str, dict[str, float]]
    weights: dict[str, float]
    left_out: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))

    @property
    def best(self) -> str:
        """Whose NDCG@10 is the highest."""
        return max(self.figures, key=lambda name: self.figures[name][METRICS[0].name])

    def table(self) -> Table:
        """One row for each, the best marked."""
        seen = "filtered" if self.filter_seen else "kept"
        table = Table(title=f"without training · {self.split}, seen items {seen}")
        table.add_column("")
        groups = [("", self.users, self.figures)]
        if self.next_day_users:
            groups.append((" next day", self.next_day_users, self.next_day))
        for which, _, _ in groups:
            for metric in METRICS:
                table.add_column(f"{metric.label}{which}", justify="right")
        counts = [f"{users:,}" for _, users, _ in groups for _ in METRICS]
        table.add_row("targets", *counts, end_section=True)
        for name in self.figures:
            cells = [f"{figures[name][metric.name]:.4f}" for _, _, figures in groups for metric in METRICS]
            table.add_row(name, *cells, style="bold" if name == self.best else None)
        weights = [f"{weight:.3g} · {shown(name)}" for name, weight in self.weights.items() if weight]
        said = [f"{MEMORY} = {' + '.join(weights)}"] if weights else []
        table.caption = "\n".join([*said, *(f"no {name}: {why}" for name, why in self.left_out.items())])
        return table


def evaluate_baselines(
    data: Dataset,
    texts_IT: NDArray[np.float32] | None = None,
    memory: Memory | None = None,
    *,
    split: SplitName = "test",
    filter_seen: bool = True,
) -> BaselineFigures:
    """Evaluates the baselines of :data:`~llmd4rec.scoring.baselines.BASELINES` and the memory.

    Args:
        data: the data set; its training part is counted.
        texts_IT: a text vector for each item; None: there are none.
        memory: what the memory is made of, and its weights; `auto`: those that validation chooses.
        split: `test` or `valid`.
        filter_seen: items of the history are no candidates.

    Raises:
        DataError: the split has no target with a history.
        ConfigError: an argument is wrong.
    """
    is_bool(filter_seen)
    held = held_out(data, split)
    settings = memory or Memory()
    counted = count_memory(settings, data, texts_IT)
    left_out: dict[str, str] = {}
    if counted is not None and settings.weights == "auto" and len(data.valid):
        fitted = fit_memory(counted, data, filter_seen=filter_seen)
        counted, left_out = (
            fitted.memory,
            {f"{shown(name)} in the memory": why for name, why in fitted.left_out.items()},
        )
    scorers = baseline_scorers(data, texts_IT, memory, counted=counted)
    weights = {} if counted is None else counted.weights
    ranks = _ranks(data, held, scorers, weights, filter_seen)
    values = {name: _values(data, held, each) for name, each in ranks.items()}
    masks = slice_masks(data, held.positions)
    return BaselineFigures(
        split,
        filter_seen,
        len(held.positions),
        int(masks["next_day"].sum()) if "next_day" in masks else None,
        {name: _means(each) for name, each in values.items()},
        {name: _means(each, masks["next_day"]) for name, each in values.items()} if "next_day" in masks else {},
        weights,
        _left_out(counted, scorers) | left_out,
    )


def _ranks(
    data: Dataset, held: HeldOut, scorers: Mapping[str, Scorer], weights: Mapping[str, float], filter_seen: bool
) -> dict[str, NDArray[np.int64]]:
    used = {name: weight for name, weight in weights.items() if weight}
    ranks = {name: np.empty(len(held.positions), np.int64) for name in [*scorers, *([MEMORY] if used else [])]}
    reads = tuple(dict.fromkeys(name for scorer in scorers.values() for name in scorer.reads))
    with bar("evaluating without training", len(held.positions), "users") as progress:
        for chunk in split_up(by_length(held, None), USERS_AT_ONCE):
            batches = list(read(data, held, chunk, None, 256, lambda _: None, reads))
            queries = {
                name: scorer.prepare(recent(batch, scorer.max_length) for batch in batches)
                for name, scorer in scorers.items()
            }
            height = block_rows(next(iter(queries.values())), 1)[0]
            for start, end in spans(len(chunk), height):
                some = chunk[start:end]
                targets, seen = held.targets_of(some)[0], held.seen(data, some) if filter_seen else None
                blocks = {name: _Block.of(query.take(slice(start, end)), targets) for name, query in queries.items()}
                if used:
                    blocks[MEMORY] = _Block.sum([(blocks[shown(name)], weight) for name, weight in used.items()])
                for name, block in blocks.items():
                    ranks[name][some] = rank_targets(block, targets, seen).ranks
                progress.advance(len(some))
    return ranks


@dataclass(frozen=True)
class _Block(Query):
    """Scores of all items that are there already, and how differently the same ones may be rounded."""

    scores_BI: Tensor
    rounding_B1: Tensor

    @classmethod
    def of(cls, query: Query, targets: ItemLists) -> _Block:
        """Of a few histories."""
        items_B1 = torch.from_numpy(np.asarray(targets.items, dtype=np.int64))[:, None]
        rounding_B1 = query.item_scores(items_B1)[1]
        return cls(query.scores(0, query.num_items), rounding_B1)

    @classmethod
    def sum(cls, parts: list[tuple[_Block, float]]) -> _Block:
        """A weighted sum."""
        total_BI = torch.zeros_like(parts[0][0].scores_BI)
        rounding_B1 = torch.zeros_like(parts[0][0].rounding_B1)
        for block, weight in parts:
            total_BI.add_(block.scores_BI, alpha=weight)
            rounding_B1 += abs(weight) * block.rounding_B1
        return cls(total_BI, 2 * rounding_B1)

    @property
    def num_items(self) -> int:
        """I."""
        return self.scores_BI.shape[1]

    def __len__(self) -> int:
        return len(self.scores_BI)

    def take(self, rows: slice | Tensor) -> Self:
        """Some of them."""
        return replace(self, scores_BI=self.scores_BI[rows], rounding_B1=self.rounding_B1[rows])

    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """As they are; they are looked at once."""
        return self.scores_BI[:, first:last]

    def item_scores(self, items_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Of the targets."""
        return self.scores_BI.gather(1, items_BT), self.rounding_B1


def _values(data: Dataset, held: HeldOut, ranks: NDArray[np.int64]) -> dict[str, Floats]:
    nothing = np.empty((len(ranks), 0), np.int32)
    lists = RecommendedLists(
        nothing, held.positions, TargetRanks(ranks, held.targets.offsets), held.targets.items, data
    )
    return {metric.name: per_user(metric, lists) for metric in METRICS}


def _means(values: Mapping[str, Floats], mask: NDArray[np.bool_] | None = None) -> dict[str, float]:
    return {name: mean_of_values(each if mask is None else each[mask]) for name, each in values.items()}


def _left_out(counted: CountedMemory | None, scorers: Mapping[str, Scorer]) -> dict[str, str]:
    missing = {} if counted is None else dict(counted.missing)
    return {name: missing.get(name, "the data set has nothing to count") for name in BASELINES if name not in scorers}
