"""On whom a run's choices are made."""

from __future__ import annotations

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import DistillationSettings

#: A validation ranks at most so many scores (but 1,000 users at least).
VALIDATION_SCORES = 5_000_000_000


def validation_users(settings: DistillationSettings, data: Dataset) -> int:
    """On how many users epochs, weights, rounds and the place of the memory are chosen."""
    # A large catalogue would spend longer on choosing the epoch than on training it.
    affordable = max(1000, VALIDATION_SCORES // data.num_items)
    return min(affordable, settings.evaluation.validation_users or len(data.valid))
