"""Figures by which epochs, rounds and ensemble weights are chosen: one metric on the validation targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation.evaluator import as_scorer, is_bool, rank
from llmd4rec.evaluation.held_out import by_length, held_out, read
from llmd4rec.evaluation.metrics import (
    NDCG,
    Floats,
    GlobalMetric,
    Metric,
    RankMetric,
    RecommendedLists,
    TargetRanks,
    mean_of,
    per_user,
)
from llmd4rec.evaluation.ranking import rank_targets
from llmd4rec.log import bar
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.factors import FactorQuery
from llmd4rec.scoring.sums import weighted_sum

#: What epochs and rounds are selected by, where nothing else is said.
NDCG10 = NDCG(10)


def validation_value(
    ranker: SequenceEncoder | Scorer,
    dataset: Dataset,
    filter_seen: bool = True,
    max_users: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    metric: Metric = NDCG10,
) -> float:
    """One metric over the validation targets, or over a seeded sample of `max_users` of them; for early
    stopping.

    The same figure as that of :class:`~llmd4rec.evaluation.evaluator.Evaluator` with `split="valid"`, without slices
    and tables. The same seed gives the same users, so that epochs can be compared.

    Raises:
        DataError: there is no validation target with a history.
        ModelError: the model was made for another catalogue, or its scores are NaN or infinite.
    """
    return mean_of(metric, _lists(ranker, dataset, filter_seen, max_users, seed, batch_size, metric))


def validation_values(
    ranker: SequenceEncoder | Scorer,
    dataset: Dataset,
    filter_seen: bool = True,
    max_users: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    metric: RankMetric = NDCG10,
) -> Floats:
    """What :func:`validation_value` is the mean of: the metric of each user, [U].

    Raises:
        DataError, ModelError: as there.
    """
    return per_user(metric, _lists(ranker, dataset, filter_seen, max_users, seed, batch_size, metric))


def _lists(
    ranker: SequenceEncoder | Scorer,
    dataset: Dataset,
    filter_seen: bool,
    max_users: int | None,
    seed: int,
    batch_size: int,
    metric: Metric,
) -> RecommendedLists:
    held = held_out(dataset, "valid", "next", max_users, seed)
    scorer, k = as_scorer(ranker), _length(metric)
    is_bool(filter_seen)
    return rank(scorer, dataset, held, k, filter_seen=filter_seen, batch_size=batch_size, said="validating")


class EnsembleValidation:
    """The validation figure of any weighted mean of some scorers, each of which reads the histories once.

    Args:
        rankers: models or other scorers, on one device; histories are read as far back as all of them can, as by an
            :class:`~llmd4rec.models.ensemble.Ensemble` of them.
        dataset: the data set that they were made for.
        filter_seen, max_users, seed: as for :func:`validation_value`, whose value an ensemble of one model has.
        batch_size: histories read at once.
        metric: what is measured.

    Attributes:
        positions: flat positions of the validation targets, ascending, [U].

    Raises:
        DataError, ModelError: as for :func:`validation_value`.
    """

    def __init__(
        self,
        rankers: Sequence[SequenceEncoder | Scorer],
        dataset: Dataset,
        filter_seen: bool = True,
        max_users: int | None = None,
        seed: int = 0,
        batch_size: int = 256,
        metric: Metric = NDCG10,
    ) -> None:
        self._dataset, self._metric = dataset, metric
        self._held = held = held_out(dataset, "valid", "next", max_users, seed)
        self.positions = held.positions
        everyone = np.arange(len(held.positions))
        self._seen = held.seen(dataset, everyone) if is_bool(filter_seen) else None
        scorers = [as_scorer(ranker) for ranker in rankers]
        length = min((scorer.max_length for scorer in scorers if scorer.max_length is not None), default=None)
        order = by_length(held, length)
        back = torch.from_numpy(np.argsort(order))
        self._queries = []
        with bar("reading histories", len(scorers) * len(everyone), "users") as progress:
            for scorer in scorers:
                query = scorer.prepare(read(dataset, held, order, length, batch_size, progress.advance, scorer.reads))
                self._queries.append(query.take(back.to(query.device)))

    def __call__(self, weights: Sequence[float], bias_I: Tensor | None = None) -> Floats:
        """The metric of the scorers' mean scores, weighted, for each user; a scorer of weight 0 is not used.

        Args:
            weights: one for each scorer.
            bias_I: added to every mean score, [I].
        """
        used = [(query, weight / sum(weights)) for query, weight in zip(self._queries, weights, strict=True) if weight]
        if bias_I is not None:
            device = used[0][0].device
            ones = torch.ones(len(self.positions), 1, device=device)
            used.append((FactorQuery(ones, bias_I.to(device).float()[:, None]), 1.0))
        query = weighted_sum(*zip(*used, strict=True))
        targets = self._held.targets
        found = rank_targets(query, targets, self._seen, _length(self._metric))
        ranks = TargetRanks(found.ranks, targets.offsets)
        lists = RecommendedLists(found.top, self.positions, ranks, targets.items, self._dataset)
        if isinstance(self._metric, GlobalMetric):
            return np.array([self._metric.value(lists)])
        return per_user(self._metric, lists)


def _length(metric: Metric) -> int:
    """How long the lists are that a metric looks at."""
    return 0 if isinstance(metric, RankMetric) else metric.places
