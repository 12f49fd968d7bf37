"""The settings of a sequential model: what every one of them has, and how the network is made."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import Field

from llmd4rec.features.event_features import AnyEventFeature
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.embedding import ItemSettings


class ModelSettings(ItemSettings, ABC):
    """Settings of a sequential model; derive from it to add one, or from `llmd4rec.Model`, which has `fit` too.

    A model is a class of settings and a network. This one takes the mean of what a user has seen:

        class Mean(ModelSettings):
            scale: float = Field(1.0, gt=0, description="of the states")

            def build(self, num_items: int, seed: int) -> SequenceEncoder:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    return MeanNetwork(num_items, self)

        class MeanNetwork(SequenceEncoder):
            def __init__(self, num_items: int, settings: Mean) -> None:
                super().__init__()
                self.max_length, self.scale = settings.max_length, settings.scale
                self.items = ItemEmbedding(num_items, settings.dim, settings.id_dropout)

            def states(self, batch: SequenceBatch) -> Tensor:
                x_BLD = self.items(batch.items_BL)
                seen_L = torch.arange(1, x_BLD.shape[1] + 1, device=x_BLD.device)
                return self.scale * x_BLD.cumsum(1) / seen_L[:, None]

    `model: my_package.models:Mean` in YAML, or `Distillation(model=Mean(dim=32))` in Python, then trains, distils,
    exports and serves it. To read event features, a network makes an
    :class:`~llmd4rec.models.events.EventEmbedding` of `settings.event_features` last, takes its `reads` as its own, and
    adds it to the embedded items: `x_BLD = self.events(self.items(batch.items_BL), batch)`. A network without an
    `ItemEmbedding` named `items` sets `item_features: id`, and defines
    `num_items`, `dim` and `item_table` itself.
    """

    dim: int = Field(64, ge=1, description="width d of states and item table")
    max_length: int = Field(50, ge=1, description="longest history read, most recent items first")
    event_features: tuple[AnyEventFeature, ...] = Field(
        (),
        description="what is read of events beside their items: time_gaps, or package.module:Name; they are added to "
        "the embedded items, and exported and served with the model",
    )

    @abstractmethod
    def build(self, num_items: int, seed: int) -> SequenceEncoder:
        """A freshly initialised network for a catalogue of `num_items`; the same one for the same seed."""
