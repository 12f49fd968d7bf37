"""Evaluates scorers on the held-out targets of a data set: full ranking, metrics, slices, per-user results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset, SplitName
from llmd4rec.errors import ConfigError, ModelError
from llmd4rec.evaluation.evaluation import Evaluation, MetricInfo
from llmd4rec.evaluation.held_out import HeldOut, by_length, held_out, number_of_targets, read, split_up
from llmd4rec.evaluation.metrics import (
    DEFAULT_METRICS,
    Floats,
    GlobalMetric,
    Metric,
    RecommendedLists,
    TargetRanks,
    expand,
    mean_of_values,
    per_user,
)
from llmd4rec.evaluation.ranking import rank_targets
from llmd4rec.evaluation.slices import slice_masks
from llmd4rec.log import bar
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.factors import FactorScorer

#: The k of metrics that give none.
CUTOFFS = (5, 10, 20)
#: Users whose histories are read before they are ranked together; bounds the memory for what is read of them.
USERS_AT_ONCE = 4096


@runtime_checkable
class HasScorer(Protocol):
    """What can be evaluated beside scorers and models: a run, a recommender, or anything else with a scorer."""

    def scorer(self, stage: str) -> Scorer:
        """The scorer of a stage."""


class Evaluator:
    """Ranks every held-out target among the whole catalogue, and measures.

    >>> found = Evaluator(metrics=["ndcg@10", "recall@10"]).evaluate(Run.open("runs/first"), data)
    >>> sorted(found.metrics)
    ['ndcg@10', 'recall@10']

    The history of a target is everything its user did before it (for a test target that includes the
    validation item), as far back as the scorer reads. Users with nothing before their target cannot be given to a
    sequential model and are left out.

    Args:
        metrics: metrics or their names; those without a cutoff count at each of `cutoffs`.
        cutoffs: see there.
        filter_seen: items of the whole history are no candidates, and a target that is itself in the history is a
            miss; False: every item is a candidate.
        targets: what is to be found of each user: `next`, the next item; `next:5`, the next five; `all`, everything
            held out of the split. An item that comes again counts once. All of them are predicted from the history
            before the first. Leave-one-out holds one item out, so that there is nothing behind it to find.
        batch_size: histories read at once.
        max_users: evaluate a random sample of this many users; None: all.
        seed: of that sample.
        device: where to compute; a model is moved there. None: where it is.

    Raises:
        ConfigError: there is no such metric, two have the same name, a cutoff is below 1, or another argument is wrong.
    """

    def __init__(
        self,
        metrics: Sequence[Metric | str] = DEFAULT_METRICS,
        *,
        cutoffs: Sequence[int] = CUTOFFS,
        filter_seen: bool = True,
        targets: str = "next",
        batch_size: int = 256,
        max_users: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        is_bool(filter_seen)
        number_of_targets(targets)
        self.metrics = expand(metrics, cutoffs)
        self.filter_seen, self.targets, self.batch_size = filter_seen, targets, batch_size
        self.max_users, self.seed, self.device = max_users, seed, device

    def evaluate(
        self,
        what: Scorer | SequenceEncoder | HasScorer,
        data: Dataset,
        split: SplitName = "test",
        *,
        stage: str = "served",
        name: str | None = None,
    ) -> Evaluation:
        """Evaluates one scorer.

        Args:
            what: a scorer, a model, a run, a recommender (of a run or an export), or anything else with a method
                `scorer(stage)`.
            data: the data set it was made for.
            split: `test`, or `valid` (never choose settings on `test`).
            stage: of a run or a recommender: which of its models.
            name: what a table calls it; None: what it calls itself.

        Raises:
            DataError: the split has no target with a history.
            ModelError: it was made for another catalogue, or its scores are NaN or infinite.
        """
        scorer = as_scorer(what, stage, self.device)
        name = name or scorer.name
        held = held_out(data, split, self.targets, self.max_users, self.seed)
        said = f"evaluating {name} {scorer.stage}".strip()
        k = max(metric.k or 0 for metric in self.metrics)
        lists = rank(scorer, data, held, k, filter_seen=self.filter_seen, batch_size=self.batch_size, said=said)
        masks = slice_masks(data, held.positions)
        values: dict[str, Floats] = {}
        metrics: dict[str, float] = {}
        for metric in self.metrics:
            if isinstance(metric, GlobalMetric):
                metrics[metric.name] = metric.value(lists)
            else:
                values[metric.name] = per_user(metric, lists)
                metrics[metric.name] = mean_of_values(values[metric.name])
        metrics = {metric: value for metric, value in metrics.items() if not math.isnan(value)}
        return Evaluation(
            metrics=metrics,
            slices={
                slice_name: {"users": int(mask.sum()), **_means(values, mask)} for slice_name, mask in masks.items()
            },
            users=len(held.positions),
            model=name,
            stage=scorer.stage,
            filter_seen=self.filter_seen,
            split=split,
            per_user=self._per_user(data, held, lists.ranks, values, masks),
            top=lists.items_UK,
            targets=self.targets,
            num_targets=None if self.targets == "next" else len(held.targets.items),
            metric_info={metric.name: MetricInfo.of(metric) for metric in self.metrics},
        )

    @staticmethod
    def _per_user(
        data: Dataset,
        held: HeldOut,
        ranks: TargetRanks,
        values: Mapping[str, Floats],
        masks: Mapping[str, NDArray[np.bool_]],
    ) -> pl.DataFrame:
        users, first = data.users_of(held.positions), data.items[held.positions]
        item_ids = data.catalogue["item_id"]
        several: dict[str, Any] = {}
        if len(held.targets.items) > len(users):
            lengths = np.diff(held.targets.offsets)
            row = np.repeat(np.arange(len(users)), lengths)
            listed = (
                pl.DataFrame({"row": row, "item_ids": item_ids.gather(held.targets.items), "ranks": ranks.given_P})
                .group_by("row", maintain_order=True)
                .agg("item_ids", "ranks")
            )
            several = {"item_ids": listed["item_ids"], "ranks": listed["ranks"]}
        return pl.DataFrame(
            {
                "user_id": data.user_ids.gather(users),
                "item_id": item_ids.gather(first),
                "rank": ranks.given_P[held.targets.offsets[:-1]],
                **several,
                "history_length": held.positions - held.starts,
                "train_count": data.train_counts[first],
                **masks,
                **values,
            }
        )


def rank(
    scorer: Scorer, data: Dataset, held: HeldOut, k: int, *, filter_seen: bool, batch_size: int, said: str
) -> RecommendedLists:
    """The ranks of all targets, and each user's list of k, with a progress bar that says `said`; see :func:`ranked`."""
    with bar(said, len(held.positions), "users") as progress:
        return ranked(scorer, data, held, k, filter_seen=filter_seen, batch_size=batch_size, advance=progress.advance)


def ranked(
    scorer: Scorer,
    data: Dataset,
    held: HeldOut,
    k: int,
    *,
    filter_seen: bool,
    batch_size: int,
    advance: Callable[[int], None],
    candidates_I: NDArray[np.bool_] | None = None,
) -> RecommendedLists:
    """The ranks of all targets, and each user's list of k.

    Args:
        scorer: ranks them.
        data: the data set.
        held: the targets.
        k: length of the lists; 0: none are made.
        filter_seen: items of the history are no candidates.
        batch_size: histories read at once.
        advance: told how many histories were read, for a progress bar.
        candidates_I: which items are candidates for anyone; None: all.

    Raises:
        ModelError: the scorer is of another catalogue, or its scores are NaN or infinite.
    """
    if scorer.num_items != data.num_items:
        raise ModelError(
            f"the model knows {scorer.num_items} items, the catalogue has {data.num_items}",
            "Evaluate it on the data set it was trained on.",
        )
    ranks = np.empty(len(held.targets.items), dtype=np.int64)
    top = np.empty((len(held.positions), k), dtype=np.int32)
    for chunk in split_up(by_length(held, scorer.max_length), USERS_AT_ONCE):
        query = scorer.prepare(read(data, held, chunk, scorer.max_length, batch_size, advance, scorer.reads))
        targets, places = held.targets_of(chunk)
        seen = held.seen(data, chunk) if filter_seen else None
        found = rank_targets(query, targets, seen, k, candidates_I=candidates_I)
        ranks[places], top[chunk] = found.ranks, found.top
    return RecommendedLists(
        top, held.positions, TargetRanks(ranks, held.targets.offsets), held.targets.items, data, scorer.vectors_ID
    )


def as_scorer(
    what: Scorer | SequenceEncoder | HasScorer, stage: str = "served", device: torch.device | str | None = None
) -> Scorer:
    """The scorer in whatever can be evaluated.

    Raises:
        ConfigError: there is none in it.
    """
    if isinstance(what, Scorer):
        return what
    if isinstance(what, SequenceEncoder):
        return FactorScorer(what, device)
    if isinstance(what, HasScorer):
        return what.scorer(stage)
    raise ConfigError(f"{type(what).__name__} cannot be evaluated", "Give a run, a recommender, a model or a scorer.")


def is_bool(filter_seen: bool) -> bool:
    """`filter_seen` itself.

    Raises:
        ConfigError: it is neither True nor False.
    """
    if not isinstance(filter_seen, bool):  # "keep" would count as True
        raise ConfigError(f"filter_seen is {filter_seen!r}", "Choose True or False.")
    return filter_seen


def _means(values: Mapping[str, Floats], mask: NDArray[np.bool_]) -> dict[str, float]:
    """The means over some users; a metric that none of them has a value of is left out, as nothing has no mean."""
    means = {name: mean_of_values(each[mask]) for name, each in values.items()}
    return {name: value for name, value in means.items() if not math.isnan(value)}
