"""Ranks over the whole catalogue, metrics, slices, significance."""

from llmd4rec.evaluation.evaluate import evaluate, validation_value
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.significance import Comparison, compare

__all__ = ["Comparison", "Evaluation", "compare", "evaluate", "validation_value"]
