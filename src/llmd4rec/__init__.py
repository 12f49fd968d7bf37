"""A sequential recommender that learns from stronger models: a language model and wider recommenders.

data = Dataset.from_frames(interactions, items)
model = SASRec(dim=64).fit(data)                                       # a plain recommender
run = Distillation(model=SASRec(dim=64), llm=LLM(layers=4), teachers="default").fit(data, "runs/first")
run.recommender().recommend(["a", "b"], k=10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llmd4rec.extras import explained

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.estimators import BSARec, Distillation, GRU4Rec, LiGR, Model, SASRec
    from llmd4rec.evaluation.evaluator import Evaluator
    from llmd4rec.inference.recommender import Recommender
    from llmd4rec.inference.types import Filters, NewItem
    from llmd4rec.models.llm.settings import LLM
    from llmd4rec.runs.run import Run

__version__ = "0.1.0"
__all__ = [
    "LLM", "BSARec", "Dataset", "Distillation", "Evaluator", "Filters", "GRU4Rec", "LiGR", "Model", "NewItem",
    "Recommender", "Run", "SASRec",
]  # fmt: skip

# Resolved on first use, so that `import llmd4rec` and the command line's --help stay fast.
_HOMES = {
    "BSARec": "llmd4rec.estimators",
    "Dataset": "llmd4rec.data.dataset",
    "Distillation": "llmd4rec.estimators",
    "Recommender": "llmd4rec.inference.recommender",
    "Evaluator": "llmd4rec.evaluation.evaluator",
    "Filters": "llmd4rec.inference.types",
    "GRU4Rec": "llmd4rec.estimators",
    "LLM": "llmd4rec.models.llm.settings",
    "LiGR": "llmd4rec.estimators",
    "Model": "llmd4rec.estimators",
    "NewItem": "llmd4rec.inference.types",
    "Run": "llmd4rec.runs.run",
    "SASRec": "llmd4rec.estimators",
}
#: What these names were once.
_RENAMED = {
    "MutualDistillation": "Distillation",
    "LLMRecommender": "LLM",
    "Engine": "Recommender",
    "evaluate": "Evaluator",
}


if not TYPE_CHECKING:  # a type checker shall find a wrong name

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            with explained():
                return getattr(importlib.import_module(_HOMES[name]), name)
        hint = f"; it is now {_RENAMED[name]}" if name in _RENAMED else ""
        raise AttributeError(f"module 'llmd4rec' has no attribute {name!r}{hint}")
