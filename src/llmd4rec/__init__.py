"""Mutual distillation between a language model and a sequential recommender."""

__version__ = "0.1.0"
