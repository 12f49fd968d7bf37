"""Mutual distillation between a language model and a sequential recommender.

data = Dataset.from_frames(interactions, items)
run = MutualDistillation(crm=SASRec(dim=64), llm=LLM(layers=4), rounds=2).fit(data, "runs/first")
run.crm.recommend(history=["a", "b"], k=10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.distillation.settings import MutualDistillation
    from llmd4rec.evaluation.evaluate import evaluate
    from llmd4rec.inference.engine import Engine
    from llmd4rec.inference.types import Filters, NewItem
    from llmd4rec.models.llm.settings import LLM
    from llmd4rec.models.sequential.sasrec import SASRec
    from llmd4rec.runs.run import Run

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Dataset",
    "Engine",
    "Filters",
    "MutualDistillation",
    "NewItem",
    "Run",
    "SASRec",
    "evaluate",
]  # fmt: skip

# Resolved on first use, so that `import llmd4rec` and the command line's --help stay fast.
_HOMES = {
    "Dataset": "llmd4rec.data.dataset",
    "Engine": "llmd4rec.inference.engine",
    "Filters": "llmd4rec.inference.types",
    "LLM": "llmd4rec.models.llm.settings",
    "MutualDistillation": "llmd4rec.distillation.settings",
    "NewItem": "llmd4rec.inference.types",
    "Run": "llmd4rec.runs.run",
    "SASRec": "llmd4rec.models.sequential.sasrec",
    "evaluate": "llmd4rec.evaluation.evaluate",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from llmd4rec.extras import explained

        with explained():
            return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmd4rec' has no attribute {name!r}")
