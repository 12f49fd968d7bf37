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
    mean_of_values,
    per_user,
)
from llmd4rec.evaluation.metrics.lists import Coverage, Diversity, Gini, Novelty, Popularity
from llmd4rec.evaluation.metrics.named import DEFAULT_METRICS, MetricSetting, expand, metric_of
from llmd4rec.evaluation.metrics.ranks import HR, MAP, MRR, NDCG, Precision, Recall

__all__ = [
    "DEFAULT_METRICS", "HR", "MAP", "MRR", "NDCG", "Coverage", "Diversity", "Floats", "Gini", "GlobalMetric",
    "ListMetric", "Metric", "MetricSetting", "Novelty", "Popularity", "Precision", "RankMetric", "Recall",
    "RecommendedLists", "TargetRanks", "expand", "mean_of", "mean_of_values", "metric_of", "per_user",
]  # fmt: skip
