"""Ranks over the whole catalogue, metrics, slices, significance and the report of a run."""

from llmd4rec.evaluation.evaluate import evaluate, validation_ndcg
from llmd4rec.evaluation.evaluation import Evaluation

__all__ = ["Evaluation", "evaluate", "validation_ndcg"]
