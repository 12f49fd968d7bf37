"""What to derive from and what to use when adding to the package from outside; docs/extending.md has examples.

| to add | derive from | name it in |
|---|---|---|
| a model | `ModelSettings` and `SequenceEncoder` | `model`, `teachers` |
| a distillation method | `Method` | `distill.method` |
| a loss | `Loss` | `training.model.loss`, `training.llm.loss` |
| a metric | `RankMetric`, `ListMetric` or `GlobalMetric` | `evaluation.metrics` |
| an item feature | `ItemFeature` | `item_features` of a model |
| an event feature | `EventFeature` | `event_features` of a model |
| a callback, a logger | `Callback`, `Logger` | `fit(callbacks=[...])`, `loggers` |
| what scores items | `Scorer` and `Query` | `Evaluator.evaluate` |
"""

from llmd4rec.data.batching import SequenceBatch, TrainingBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.methods.base import Method
from llmd4rec.evaluation.metrics import (
    Floats,
    GlobalMetric,
    ListMetric,
    Metric,
    RankMetric,
    RecommendedLists,
    TargetRanks,
)
from llmd4rec.features.event_features import EventFeature
from llmd4rec.features.item_features import ItemFeature
from llmd4rec.losses.base import LossSettings, Objective, StepLoss
from llmd4rec.losses.loss import Loss
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.models.events import EventEmbedding
from llmd4rec.models.settings import ModelSettings
from llmd4rec.scoring.base import Query, Scorer
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.loggers.base import Logger

__all__ = [
    "Callback", "Dataset", "EventEmbedding", "EventFeature", "Floats", "GlobalMetric", "ItemEmbedding", "ItemFeature",
    "ListMetric", "Logger", "Loss", "LossSettings", "Method", "Metric", "ModelSettings", "Objective", "Query",
    "RankMetric", "RecommendedLists", "Scorer", "SequenceBatch", "SequenceEncoder", "StepLoss", "TargetRanks",
    "TrainingBatch",
]  # fmt: skip
