"""Metrics of recommended lists: coverage, popularity, novelty, diversity, Gini."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError
from llmd4rec.evaluation.metrics.base import Floats, GlobalMetric, ListMetric, RecommendedLists
from llmd4rec.features.attributes import item_attributes, item_words


class Coverage(GlobalMetric):
    """Catalogue coverage: the share of all items that are among anyone's first k.

    Source: Ge, Delgado-Battenfeld & Jannach, "Beyond accuracy", RecSys 2010.
    """

    number_format: ClassVar[str] = ".4g"

    def value(self, lists: RecommendedLists) -> float:
        """Between 0 and 1."""
        top = lists.top(self.k)
        return len(np.unique(top[top >= 0])) / lists.dataset.num_items


class Popularity(GlobalMetric):
    """The mean training count of the recommended items, over all users and places; 0 if nothing was recommended."""

    higher_is_better: ClassVar[bool | None] = None
    number_format: ClassVar[str] = ".4g"

    def value(self, lists: RecommendedLists) -> float:
        """In interactions."""
        top = lists.top(self.k)
        recommended = top[top >= 0]
        return float(lists.train_counts_I[recommended].mean()) if recommended.size else 0.0


class Gini(GlobalMetric):
    """The Gini index of how often each item of the catalogue is among anyone's first k: 0 if all are shown equally
    often, near 1 if a few take all places; 0 if nothing was recommended.

    Σ (2i − I − 1) x_i / (I · Σ x_i) with the counts x of all I items in ascending order.

    Source: Fleder & Hosanagar, "Blockbuster culture's next rise or fall", Management Science 2009.
    """

    higher_is_better: ClassVar[bool | None] = False

    def value(self, lists: RecommendedLists) -> float:
        """Between 0 and 1."""
        top, size = lists.top(self.k), lists.dataset.num_items
        counts = np.sort(np.bincount(top[top >= 0], minlength=size))
        total = int(counts.sum())
        return float(((2 * np.arange(1, size + 1) - size - 1) * counts).sum() / (size * total)) if total else 0.0


class Novelty(ListMetric):
    """The mean of −log2(share of training users who have the item) over the recommended items: its self-information.

    An item that nobody had in training counts as if one user had.

    Source: Vargas & Castells, "Rank and relevance in novelty and diversity metrics", RecSys 2011 (there without
    discount by place); Zhou et al., "Solving the apparent diversity-accuracy dilemma", PNAS 2010.
    """

    def per_user(self, lists: RecommendedLists) -> Floats:
        """In bits; NaN where no item was recommended."""
        users_I, users = _training_users(lists.dataset)
        return lists.mean(-np.log2(np.maximum(users_I, 1) / users), self.k)


class Diversity(ListMetric):
    """Intra-list diversity: the mean of 1 − cosine over all pairs of the recommended items.

    Items are compared by the catalogue's own fields, so that models are measured alike: by the attributes that several
    items share (brand, categories), or where there are none by the words of their titles, as
    :mod:`llmd4rec.features.attributes` reads them. An item without any is at distance 1 from all others.

    Source: Ziegler et al., "Improving recommendation lists through topic diversification", WWW 2005 (there as its
    complement, similarity); Smyth & McClave, "Similarity vs. diversity", ICCBR 2001.
    """

    def per_user(self, lists: RecommendedLists) -> Floats:
        """Between 0 and 1; NaN where fewer than two items were recommended.

        Raises:
            DataError: items share no fields.
        """
        rows_IA = item_attributes(lists.dataset)
        if rows_IA is None:
            rows_IA = item_words(lists.dataset)
        if rows_IA is None:
            raise DataError(
                "diversity cannot be measured: the catalogue has no fields that items share",
                "Prepare the data with a catalogue that has brands, categories or titles, or leave the metric out.",
            )
        top = lists.top(self.k)
        users, places = np.nonzero(top >= 0)
        count = (top >= 0).sum(axis=1)
        chosen = sp.csr_matrix((np.ones(len(users)), (users, top[users, places])), (len(top), lists.dataset.num_items))
        # All pairs at once: |Σ v|² = Σ |v|² + 2 Σ of the products of pairs.
        summed = chosen @ rows_IA.astype(np.float64)
        squares = _squares(summed) - chosen @ _squares(rows_IA.astype(np.float64))
        pairs = count * (count - 1)
        values = np.full(len(top), np.nan)
        np.divide(squares, pairs, out=values, where=pairs > 0)
        return 1.0 - values


def _squares(rows: sp.csr_matrix) -> Floats:
    """The squared length of each row."""
    return np.asarray(rows.multiply(rows).sum(axis=1), dtype=np.float64).ravel()


def _training_users(dataset: Dataset) -> tuple[NDArray[np.int64], int]:
    """How many users have each item in their training part, [I]; and how many users have a training part."""
    lengths = dataset.train_end - dataset.offsets[:-1]
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    inside = np.arange(dataset.num_interactions) < np.repeat(dataset.train_end, np.diff(dataset.offsets))
    pairs = np.unique(users[inside] * dataset.num_items + dataset.items[inside])
    return np.bincount(pairs % dataset.num_items, minlength=dataset.num_items), int((lengths > 0).sum())
