"""Metrics of an evaluation, and the base classes to write more."""

from llmd4rec.evaluation.metrics import (
    HR,
    MAP,
    MRR,
    NDCG,
    Coverage,
    Diversity,
    Gini,
    GlobalMetric,
    ListMetric,
    Metric,
    Novelty,
    Popularity,
    Precision,
    RankMetric,
    Recall,
    metric_of,
)

__all__ = [
    "HR", "MAP", "MRR", "NDCG", "Coverage", "Diversity", "Gini", "GlobalMetric", "ListMetric", "Metric", "Novelty",
    "Popularity", "Precision", "RankMetric", "Recall", "metric_of",
]  # fmt: skip
