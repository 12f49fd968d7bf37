"""Event features: what a model reads of the events of a history beside their items, such as when they were.

Each gives a vector of width d for every event, which is added to the embedded item. Its parameters are the model's:
trained and saved with it, part of its exported graph, and served without the class that made them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from llmd4rec.config.open_types import open_type


class EventFeature(BaseModel, ABC):
    """Settings of an event feature; derive from it to add one.

    This one tells the hour in which the next item is chosen:

        class Hour(EventFeature):
            reads: ClassVar[tuple[str, ...]] = ("target_times",)

            def build(self, dim: int) -> nn.Module:
                return HourEmbedding(24, dim)

        class HourEmbedding(nn.Module):
            def __init__(self, hours: int, dim: int) -> None:
                super().__init__()
                self.hours = nn.Embedding(hours, dim)

            def forward(self, batch: SequenceBatch) -> Tensor:
                return self.hours(batch.target_times_BL // 3600 % 24)

    `event_features: [my_package.features:Hour]` of a model in YAML, or `SASRec(event_features=[Hour()])` in Python.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: What it reads of a batch beside items and lengths; see :data:`~llmd4rec.data.arrays.INPUTS`.
    reads: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, dim: int) -> nn.Module:
        """A module from a :class:`~llmd4rec.data.batching.SequenceBatch` to vectors [B, L, dim].

        The vector at t may depend on events up to t and on the target time there, on nothing later. Initial values are
        drawn from PyTorch's global generator, which the model has seeded. To be exportable it does nothing with
        `items_BL` but ask for its first two sizes.
        """


#: The event features that are known by name.
EVENT_FEATURES = open_type("event feature", EventFeature, {"time_gaps": "llmd4rec.features.time_gaps:TimeGaps"})

#: Settings of any event feature.
AnyEventFeature = Annotated[EventFeature, EVENT_FEATURES]
