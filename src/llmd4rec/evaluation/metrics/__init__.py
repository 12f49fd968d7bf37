"""Metrics, each an object: of ranks, of recommended lists, or of all lists together."""

from llmd4rec.evaluation.metrics.base import (
    Floats,
    GlobalMetric,
    ListMetric,
    Metric,
    RankMetric,
    RecommendedLists,
    TargetRanks,
    mean_of,
    per_user,
)
from llmd4rec.evaluation.metrics.lists import Coverage, Popularity
from llmd4rec.evaluation.metrics.named import metric_of
from llmd4rec.evaluation.metrics.ranks import HR, MAP, MRR, NDCG, Precision, Recall

__all__ = [
    "HR", "MAP", "MRR", "NDCG", "Coverage", "Floats", "GlobalMetric", "ListMetric", "Metric", "Popularity", "Precision",
    "RankMetric", "Recall", "RecommendedLists", "TargetRanks", "mean_of", "metric_of",
    "per_user",
]  # fmt: skip
