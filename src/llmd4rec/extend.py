"""The base classes to derive from, for those who add to the package, and what these read and return."""

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.distillation.methods.base import Method
from llmd4rec.evaluation.metrics import GlobalMetric, ListMetric, Metric, RankMetric, RecommendedLists, TargetRanks
from llmd4rec.features.event_features import EventFeature
from llmd4rec.features.item_features import ItemFeature
from llmd4rec.losses.base import Objective, StepLoss
from llmd4rec.losses.loss import Loss
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.models.settings import ModelSettings
from llmd4rec.scoring import Query, Scorer
from llmd4rec.training.callbacks.base import Callback

__all__ = [
    "Callback", "EventFeature", "GlobalMetric", "ItemEmbedding", "ItemFeature", "ListMetric", "Loss", "Method",
    "Metric", "ModelSettings", "Objective", "Query", "RankMetric", "RecommendedLists", "Scorer", "SequenceBatch",
    "SequenceEncoder", "StepLoss", "TargetRanks",
]  # fmt: skip
