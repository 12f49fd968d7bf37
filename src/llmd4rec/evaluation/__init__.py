"""Ranks over the whole catalogue, metrics, slices, significance."""

from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.evaluator import Evaluator
from llmd4rec.evaluation.significance import Comparison, compare
from llmd4rec.evaluation.validation import validation_value

__all__ = ["Comparison", "Evaluation", "Evaluator", "compare", "validation_value"]
