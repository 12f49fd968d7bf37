"""Metrics defined outside the package, as a user would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmd4rec.evaluation.metrics import Floats, GlobalMetric, ListMetric, RankMetric, RecommendedLists, TargetRanks


@dataclass(frozen=True)
class TitleLength(ListMetric):
    """How long the titles of the recommended items are: reads a field of the catalogue."""

    column: str = "title"
    higher_is_better: ClassVar[bool | None] = False
    number_format: ClassVar[str] = ".2f"

    def per_user(self, lists: RecommendedLists) -> Floats:
        return lists.mean(lists.catalogue[self.column].str.len_chars().to_numpy(), self.k)


class MeanRank(RankMetric):
    """The rank of the best target, at no cutoff."""

    has_cutoff: ClassVar[bool] = False
    higher_is_better: ClassVar[bool | None] = False
    number_format: ClassVar[str] = ".1f"

    def per_user(self, ranks: TargetRanks) -> Floats:
        return np.minimum(ranks.best_U, 1_000).astype(np.float64)


class Vectors(GlobalMetric):
    """The width of the item vectors that the scorer has."""

    def value(self, lists: RecommendedLists) -> float:
        return 0.0 if lists.vectors_ID is None else float(lists.vectors_ID.shape[1])
