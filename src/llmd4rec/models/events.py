"""The event features of a model, added to its embedded items."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ConfigError
from llmd4rec.features.event_features import EventFeature


class EventEmbedding(nn.Module):
    """Adds each event feature's vectors to those of the items; nothing where there is no feature.

    Make it last in a network's constructor: the network's other initial values then do not depend on it.

    Attributes:
        reads: what the features read of a batch, for the network's own `reads`.
    """

    def __init__(self, features: Sequence[EventFeature], dim: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(feature.build(dim) for feature in features)
        self.reads = tuple(dict.fromkeys(name for feature in features for name in feature.reads))

    def forward(self, x_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """[B, L, d] → [B, L, d]."""
        for feature in self.features:
            x_BLD = x_BLD + feature(batch)
        return x_BLD


def require_event_features(network: nn.Module, features: Sequence[EventFeature]) -> None:
    """Refuses features that a network would not read.

    Raises:
        ConfigError: there are some, and the network has no :class:`EventEmbedding` of them.
    """
    embedded = [module for module in network.modules() if isinstance(module, EventEmbedding)]
    if features and not any(len(module.features) == len(features) for module in embedded):
        raise ConfigError(
            f"{type(network).__name__} has no EventEmbedding, so it reads no event features",
            "Leave event_features out, or add one to the network: EventEmbedding(settings.event_features, dim).",
        )
