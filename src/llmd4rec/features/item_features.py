"""Item features: what beside its identifier tells an item, as arrays over the catalogue.

- **texts**: one vector per item; see :mod:`llmd4rec.features.text_settings` for how it is made.
- **attributes**: which brands, categories and tags an item has; **words**: which words of titles and pairs of them.
- **neighbours**: items that occur near each other in training histories, or whose texts are alike.

Nothing held out is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.nn import functional as F

from llmd4rec.data.dataset import Dataset
from llmd4rec.features.attributes import item_attributes, item_words
from llmd4rec.features.cooccurrence import co_occurrence, normalised, top_k_per_row
from llmd4rec.matmul import product

#: An item feature, beside the item's identifier.
ItemPart = Literal["text", "words", "attributes", "neighbours"]


def _in_order(inputs: str) -> str:
    """`id`, then the features in one order, so that the same choice has one name."""
    known = get_args(ItemPart)
    first, *parts = inputs.split("+")
    if first != "id" or not set(parts) <= set(known):
        raise ValueError(f"{inputs!r} must be id, then any of +{', +'.join(known)}, as in id+text")
    return "+".join(["id", *(part for part in known if part in parts)])


#: Which features an item embedding is trained with: `id`, `id+text`, `id+words+neighbours`, ...
ItemInputs = Annotated[str, AfterValidator(_in_order)]
#: Neighbours of an item at most, of both kinds, and of these nearest texts.
NEIGHBOURS, TEXT_NEIGHBOURS = 20, 10
#: Nearest texts cost items × items products; larger catalogues have none.
MAX_ITEMS_FOR_NEAREST_TEXTS = 200_000
_COSINES_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class ItemFeatures:
    """Item features of a whole catalogue; False where there is none.

    Attributes:
        texts: [I, T], one vector per item, zero where there is no text.
        attributes: [I, A], which attributes and words an item has.
        neighbours: [I, I], how much of another item's row is mixed into an item's.
        cold: [I], which items occur in no training history.
    """

    texts: Tensor | None = None
    attributes: sp.csr_matrix | None = None
    neighbours: sp.csr_matrix | None = None
    cold: Tensor | None = None

    def __bool__(self) -> bool:
        return any(feature is not None for feature in (self.texts, self.attributes, self.neighbours))

    def present(self) -> Tensor:
        """Which items have any feature, [I]."""
        matrices = [matrix for matrix in (self.attributes, self.neighbours) if matrix is not None]
        has = [torch.from_numpy(np.diff(matrix.indptr) > 0) for matrix in matrices]
        if self.texts is not None:
            has.append((self.texts != 0).any(1).cpu())
        return torch.stack(has).any(0)


def item_features(inputs: ItemInputs, dataset: Dataset, text_vectors: Tensor | None) -> ItemFeatures:
    """The features that `inputs` names, as far as the data set has them.

    Args:
        inputs: the setting `item_features` of a sequential model.
        dataset: its training part gives co-occurrences, its catalogue attributes and words.
        text_vectors: [I, T] of its catalogue; None where no item has a text.
    """
    asked = inputs.split("+")
    texts = text_vectors if "text" in asked else None
    neighbours = None
    if "neighbours" in asked:
        neighbours = co_occurrence(dataset)
        if texts is not None and dataset.num_items <= MAX_ITEMS_FOR_NEAREST_TEXTS:
            neighbours = 0.5 * (neighbours + nearest_texts(texts, TEXT_NEIGHBOURS))
        neighbours = top_k_per_row(neighbours, NEIGHBOURS)
    attributes = item_attributes(dataset) if "attributes" in asked else None
    words = item_words(dataset) if "words" in asked else None
    named = [matrix for matrix in (attributes, words) if matrix is not None]
    cold = torch.from_numpy(dataset.train_counts == 0)
    return ItemFeatures(texts, sp.csr_matrix(sp.hstack(named)) if named else None, neighbours, cold)


def nearest_texts(texts_IT: Tensor, count: int) -> sp.csr_matrix:
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
    at_once = max(1, _COSINES_AT_ONCE // len(present))
    for start in range(0, len(present), at_once):
        cosine_pP = product(unit_PT[start : start + at_once], unit_PT)
        cosine_pP.diagonal(start).fill_(-torch.inf)
        nearest.append(cosine_pP.topk(count, dim=1).indices)
    column = present[torch.cat(nearest)].numpy().ravel()
    row = np.repeat(present.numpy(), count)
    near = sp.csr_matrix((np.ones(len(row)), (row, column)), size)
    return normalised(sp.csr_matrix(near + near.T))
