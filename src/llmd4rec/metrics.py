"""The metrics: `Evaluator(metrics=[NDCG(10), Novelty(10)])`; to add one, see :mod:`llmd4rec.extend`."""

from llmd4rec.evaluation.metrics import (
    HR,
    MAP,
    MRR,
    NDCG,
    Coverage,
    Diversity,
    Gini,
    Novelty,
    Popularity,
    Precision,
    Recall,
)

__all__ = ["HR", "MAP", "MRR", "NDCG", "Coverage", "Diversity", "Gini", "Novelty", "Popularity", "Precision", "Recall"]
