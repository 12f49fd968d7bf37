"""Texts as an item feature: the vectors that the run's text encoder makes of them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llmd4rec.data.dataset import Dataset
from llmd4rec.features.item_features import ItemFeature, Kind


class Text(ItemFeature):
    """The vectors of the items' texts; :mod:`llmd4rec.features.text_settings` says how they are made."""

    kind: ClassVar[Kind] = "vectors"

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Tensor | None:
        """See :class:`~llmd4rec.features.item_features.ItemFeature`."""
        return text_vectors
