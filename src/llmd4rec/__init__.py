"""Mutual distillation between a language model and a sequential recommender.

data = Dataset.from_frames(interactions, items)
run = MutualDistillation(crm=SASRec(dim=64), llm=LLMRecommender(layers=4), rounds=2).fit(data, "runs/first")
run.crm.recommend(history=["a", "b"], k=10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.distill.run import Run
    from llmd4rec.distill.settings import MutualDistillation
    from llmd4rec.evaluation.evaluate import evaluate
    from llmd4rec.models.crm.sasrec import SASRec
    from llmd4rec.models.llm.recommender import LLMRecommender
    from llmd4rec.serving.answers import Filters, NewItem
    from llmd4rec.serving.engine import Engine

__version__ = "0.1.0"
__all__ = [
    "Dataset", "Engine", "Filters", "LLMRecommender", "MutualDistillation", "NewItem", "Run", "SASRec", "evaluate",
]  # fmt: skip

# Resolved on first use, so that `import llmd4rec` and the command line's --help stay fast.
_HOMES = {
    "Dataset": "llmd4rec.data.dataset",
    "Engine": "llmd4rec.serving.engine",
    "Filters": "llmd4rec.serving.answers",
    "LLMRecommender": "llmd4rec.models.llm.recommender",
    "MutualDistillation": "llmd4rec.distill.settings",
    "NewItem": "llmd4rec.serving.answers",
    "Run": "llmd4rec.distill.run",
    "SASRec": "llmd4rec.models.crm.sasrec",
    "evaluate": "llmd4rec.evaluation.evaluate",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from llmd4rec.extras import explained

        with explained():
            return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmd4rec' has no attribute {name!r}")
