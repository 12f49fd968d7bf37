"""Metrics of recommended lists: coverage, popularity, novelty, diversity, Gini."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from llmd4rec.evaluation.metrics.base import GlobalMetric, RecommendedLists


class Coverage(GlobalMetric):
    """Catalogue coverage: the share of all items that are among anyone's first k.

    Source: Ge, Delgado-Battenfeld & Jannach, "Beyond accuracy", RecSys 2010.
    """

    number_format: ClassVar[str] = ".4g"

    def value(self, lists: RecommendedLists) -> float:
        """Between 0 and 1."""
        top = lists.top(self.k)
        return len(np.unique(top[top >= 0])) / lists.dataset.num_items


class Popularity(GlobalMetric):
    """The mean training count of the recommended items, over all users and places; 0 if nothing was recommended."""

    higher_is_better: ClassVar[bool | None] = None
    number_format: ClassVar[str] = ".4g"

    def value(self, lists: RecommendedLists) -> float:
        """In interactions."""
        top = lists.top(self.k)
        recommended = top[top >= 0]
        return float(lists.train_counts_I[recommended].mean()) if recommended.size else 0.0
