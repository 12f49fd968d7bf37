"""Neighbours of an item: items that occur near it in training histories, and items with texts like its own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from llmd4rec.data.dataset import Dataset
from llmd4rec.features.cooccurrence import co_occurrence, normalised, top_k_per_row
from llmd4rec.features.item_features import ItemFeature, Kind
from llmd4rec.matmul import product

COSINES_AT_ONCE = 1 << 25


class Neighbours(ItemFeature):
    """Co-occurring items and, where the model reads texts, items of nearest texts, half and half."""

    kind: ClassVar[Kind] = "neighbours"

    count: int = Field(20, ge=1, description="neighbours of an item at most, of both kinds")
    nearest_texts: int = Field(10, ge=0, description="of these nearest texts at most")
    max_items: int = Field(
        200_000, ge=0, description="larger catalogues have no nearest texts, which cost items × items products"
    )

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> sp.csr_matrix:
        """See :class:`~llmd4rec.features.item_features.ItemFeature`."""
        found = co_occurrence(dataset)
        if text_vectors is not None and dataset.num_items <= self.max_items:
            found = 0.5 * (found + nearest_texts(text_vectors, self.nearest_texts))
        return top_k_per_row(found, self.count)


def nearest_texts(texts_IT: Tensor, count: int, cosines_at_once: int = COSINES_AT_ONCE) -> sp.csr_matrix:
    """Which items are among each other's `count` nearest texts by cosine, symmetric and normalised; [I, I] float32.

    Items without a text have no neighbours and are nobody's.
    """
    present = torch.nonzero(texts_IT.abs().sum(1) > 0)[:, 0]
    unit_PT = F.normalize(texts_IT[present].float(), dim=1)
    count = min(count, len(present) - 1)
    size = (len(texts_IT), len(texts_IT))
    if count < 1:
        return sp.csr_matrix(size, dtype=np.float32)
    nearest = []
    at_once = max(1, cosines_at_once // len(present))
    for start in range(0, len(present), at_once):
        cosine_pP = product(unit_PT[start : start + at_once], unit_PT)
        cosine_pP.diagonal(start).fill_(-torch.inf)
        nearest.append(cosine_pP.topk(count, dim=1).indices)
    column = present[torch.cat(nearest)].numpy().ravel()
    row = np.repeat(present.numpy(), count)
    near = sp.csr_matrix((np.ones(len(row)), (row, column)), size)
    return normalised(sp.csr_matrix(near + near.T))
