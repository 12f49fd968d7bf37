"""The catalogue and the item embeddings at one moment.

A request reads one snapshot from beginning to end. Adding and removing items makes another snapshot and leaves this one
as it is, so that requests in flight are not disturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.index import ApproximateIndex
from llmd4rec.inference.search import TitleSearch
from llmd4rec.inference.types import Item, NewItem

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """What a request reads.

    Attributes:
        catalogue, table_ID: the items and their embeddings, in the same order.
        index: over the first rows of the table; items added later are scored exactly. None on a small catalogue.
        num_loaded: how many rows came with the export. An index may cover them, so that their embeddings never change.
    """

    catalogue: Catalogue
    table_ID: Floats
    index: ApproximateIndex | None
    num_loaded: int

    @cached_property
    def search(self) -> TitleSearch:
        """Search by words of titles."""
        return TitleSearch(self.catalogue)

    @cached_property
    def mean_D(self) -> Floats:
        """The mean embedding; its product with a state is the state's mean score."""
        mean_D: Floats = self.table_ID[self.catalogue.present].mean(axis=0)
        return mean_D

    @cached_property
    def norms_I(self) -> Floats:
        """The length of each embedding; 1 where it is zero."""
        norms_I = np.linalg.norm(self.table_ID, axis=1)
        return np.where(norms_I > 0, norms_I, np.float32(1))

    def item(self, item_id: str) -> Item | None:
        """An item; None where it is unknown or removed."""
        row = self.catalogue.index.get(item_id)
        return self.catalogue.item(row) if row is not None and self.catalogue.present[row] else None

    def with_items(self, items: Sequence[NewItem], rows_ND: Floats) -> Snapshot:
        """This snapshot with items added or replaced, which have the embeddings `rows_ND`."""
        rows = self.catalogue.rows_for(items, self.num_loaded)
        catalogue = self.catalogue.with_items(items, rows)
        table_ID = np.empty((len(catalogue), self.table_ID.shape[1]), dtype=np.float32)
        table_ID[: len(self.catalogue)] = self.table_ID
        table_ID[rows] = rows_ND
        return replace(self, catalogue=catalogue, table_ID=table_ID)

    def without_items(self, item_ids: Sequence[str]) -> Snapshot:
        """This snapshot with some of its items removed."""
        rows = [self.catalogue.index[item_id] for item_id in item_ids]
        return replace(self, catalogue=self.catalogue.without(rows))
