"""What a metric is: of ranks, of recommended lists, or of all lists together."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError

Floats = NDArray[np.float64]
#: The k of a metric that has none: still below the rank of a target that is no candidate.
ALL_PLACES = 2**31 - 2


@dataclass(frozen=True)
class TargetRanks:
    """The ranks of each user's targets among all items; 1 is best.

    A target that is no candidate has a rank beyond every k. Candidates of one user never share a rank.

    Attributes:
        given_P: the ranks of all targets, user by user, in the order in which they came.
        offsets: user u's are given_P[offsets[u]:offsets[u+1]], at least one, [U + 1].
    """

    given_P: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of_one(cls, ranks_U: NDArray[np.integer]) -> TargetRanks:
        """One target per user.

        Raises:
            ValueError: a rank is below 1, which no ranking gives and which would count for more than the best.
        """
        ranks = np.asarray(ranks_U, dtype=np.int64)
        if ranks.size and ranks.min() < 1:
            raise ValueError(f"a rank is {ranks.min()}; the best is 1")
        return cls(ranks, np.arange(len(ranks) + 1))

    @cached_property
    def ranks_P(self) -> NDArray[np.int64]:
        """The ranks of all targets, user by user, ascending within a user."""
        users = np.repeat(np.arange(len(self.offsets) - 1), self.num_targets_U)
        return self.given_P[np.lexsort((self.given_P, users))]

    @property
    def best_U(self) -> NDArray[np.int64]:
        """The rank of each user's best target."""
        return self.ranks_P[self.offsets[:-1]]

    @property
    def num_targets_U(self) -> NDArray[np.int64]:
        """How many targets each user has."""
        return np.diff(self.offsets)

    @cached_property
    def place_P(self) -> NDArray[np.int64]:
        """Which of its user's targets each one is, by rank: 1, 2, ..."""
        return np.arange(len(self.ranks_P)) - np.repeat(self.offsets[:-1], self.num_targets_U) + 1

    def total(self, values_P: Floats) -> Floats:
        """The sum over each user's targets, [U]."""
        return np.add.reduceat(values_P, self.offsets[:-1]) if len(self.offsets) > 1 else np.zeros(0)


@dataclass(frozen=True)
class RecommendedLists:
    """What was recommended to each user, and what a metric may look at beside it.

    Attributes:
        items_UK: the recommended item indices, best first, [U, K]; -1 behind the last candidate.
        positions_U: flat position of each user's first target in `dataset`: their history ends before it.
        ranks: of the targets.
        targets_P: the targets' item indices, as `ranks.given_P` is.
        dataset: the data set: catalogue, histories, training counts.
        vectors_ID: the item vectors of the scorer, where it has them.
    """

    items_UK: NDArray[np.int32]
    positions_U: NDArray[np.int64]
    ranks: TargetRanks
    targets_P: NDArray[np.integer]
    dataset: Dataset
    vectors_ID: Tensor | None = None

    def top(self, k: int | None) -> NDArray[np.int32]:
        """The first k places, [U, k]; -1 is no item."""
        return self.items_UK[:, :k]

    @property
    def catalogue(self) -> pl.DataFrame:
        """One row per item, `item_id` and whatever fields the items have."""
        return self.dataset.catalogue

    @property
    def train_counts_I(self) -> NDArray[np.int64]:
        """How often each item occurs in the training part."""
        return self.dataset.train_counts

    def mean(self, values_I: NDArray[np.floating], k: int | None) -> Floats:
        """The mean of a figure of items over each user's first k places, [U]; NaN where no item was recommended."""
        top = self.top(k)
        shown = top >= 0
        total = np.where(shown, values_I[top], 0.0).sum(axis=1)
        means = np.full(len(top), np.nan)
        np.divide(total, shown.sum(axis=1), out=means, where=shown.any(axis=1))
        return means


@dataclass(frozen=True)
class Metric(ABC):  # noqa: B024 (its three kinds have the abstract method)
    """Base of all metrics. Derive from :class:`RankMetric`, :class:`ListMetric` or :class:`GlobalMetric`.

    Settings of a metric are fields of a frozen dataclass:

        @dataclass(frozen=True)
        class MeanPrice(ListMetric):
            column: str = "price"

            def per_user(self, lists: RecommendedLists) -> Floats:
                return lists.mean(lists.catalogue[self.column].to_numpy(), self.k)

    Then `MeanPrice(10)` in Python, or `my_package.metrics:MeanPrice@10` in YAML, is the metric `mean_price@10`.

    Attributes:
        k: how many places count; None: each of the cutoffs of the evaluation.
        has_cutoff: False: it counts all places and is not crossed with cutoffs; for metrics of ranks only.
        higher_is_better: None where neither is.
        number_format: how a figure is printed.
    """

    k: int | None = None

    has_cutoff: ClassVar[bool] = True
    higher_is_better: ClassVar[bool | None] = True
    number_format: ClassVar[str] = ".4f"

    def __post_init__(self) -> None:
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise ConfigError(f"the cutoff of {type(self).__name__} is {self.k!r}", "Give a whole number from 1.")

    @property
    def key(self) -> str:
        """The name without the cutoff: `ndcg`; `mean_price` of a class `MeanPrice`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def name(self) -> str:
        """The name in files and tables, such as `ndcg@10`."""
        return self.key if self.k is None else f"{self.key}@{self.k}"

    @property
    def label(self) -> str:
        """What a person reads, such as `NDCG@10`."""
        return type(self).__name__ if self.k is None else f"{type(self).__name__}@{self.k}"

    @property
    def places(self) -> int:
        """k; a metric without one counts all places."""
        return ALL_PLACES if self.k is None else self.k

    def at(self, k: int) -> Self:
        """The same metric at another cutoff."""
        return replace(self, k=k)


class RankMetric(Metric):
    """A metric of the targets' ranks: one value per user, averaged over users."""

    @abstractmethod
    def per_user(self, ranks: TargetRanks) -> Floats:
        """One value per user, [U]."""


class ListMetric(Metric):
    """A metric of recommended lists: one value per user, averaged over users."""

    @abstractmethod
    def per_user(self, lists: RecommendedLists) -> Floats:
        """One value per user, [U]; NaN for a user who is left out of the mean."""


class GlobalMetric(Metric):
    """A metric of all recommended lists together: one number, which no user has a share in.

    It has no interval, no p value and no slices.
    """

    @abstractmethod
    def value(self, lists: RecommendedLists) -> float:
        """The figure."""


def mean_of(metric: Metric, lists: RecommendedLists) -> float:
    """One metric over all users; NaN if no user has a value."""
    return metric.value(lists) if isinstance(metric, GlobalMetric) else mean_of_values(per_user(metric, lists))


def mean_of_values(values: Floats) -> float:
    """The mean over users who have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def per_user(metric: Metric, lists: RecommendedLists) -> Floats:
    """The values of a metric that has one per user, [U].

    Raises:
        ConfigError: it has none, or not one per user.
    """
    if isinstance(metric, RankMetric):
        values = np.asarray(metric.per_user(lists.ranks), dtype=np.float64)
    elif isinstance(metric, ListMetric):
        values = np.asarray(metric.per_user(lists), dtype=np.float64)
    else:
        raise ConfigError(f"{type(metric).__name__} has no values per user", "Derive it from RankMetric or ListMetric.")
    users = len(lists.ranks.offsets) - 1
    if values.shape != (users,):
        raise ConfigError(
            f"metric {metric.name} gave values of shape {values.shape} for {users} users", "Return one value per user."
        )
    return values
