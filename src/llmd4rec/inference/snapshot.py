"""The catalogue and what scores it at one moment.

A request reads one snapshot from beginning to end. Adding and removing items makes another snapshot and leaves this one
as it is, so that requests in flight are not disturbed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.memory import current_moment, memory_of, subset
from llmd4rec.inference.search import TitleSearch
from llmd4rec.inference.types import Item, NewItem
from llmd4rec.scoring.memory.recency import RecencyScorer
from llmd4rec.scoring.memory.state import CountedMemory
from llmd4rec.scoring.row_sums import WeightedRowSum
from llmd4rec.scoring.rows import RowScorer

Floats = NDArray[np.float32]
#: So many items that were added and removed again are still understood in histories, or such a share of all items.
MOST_REMOVED, LARGEST_SHARE = 1000, 1 / 8


@dataclass(frozen=True)
class Snapshot:
    """What a request reads.

    Attributes:
        catalogue, scorer: the items and what scores them, in the same order.
        num_loaded: how many rows came with the export. An index may cover them, so that their vectors never change.
    """

    catalogue: Catalogue
    scorer: RowScorer
    num_loaded: int

    @cached_property
    def search(self) -> TitleSearch:
        """Search by words of titles."""
        return TitleSearch(self.catalogue)

    @cached_property
    def memory(self) -> CountedMemory | None:
        """The memory beside the model, if there is one."""
        return memory_of(self.scorer)

    @property
    def recency(self) -> RecencyScorer | None:
        """What is chosen of late, where the memory knows."""
        return None if self.memory is None else self.memory.recency

    def moment(self) -> int:
        """For which moment a request is answered that names none."""
        return current_moment(self.recency)

    @property
    def vectors_ID(self) -> Floats:
        """The scorer's item vectors, by which items are compared with each other.

        Raises:
            RunError: it has none.
        """
        if self.scorer.vectors_ID is None:
            raise RunError(
                "what is served has no item vectors, by which items could be compared",
                "Ask without diversity, and not for similar items.",
            )
        return self.scorer.vectors_ID

    @cached_property
    def norms_I(self) -> Floats:
        """The length of each item vector; 1 where it is zero."""
        norms_I = np.linalg.norm(self.vectors_ID, axis=1)
        return np.where(norms_I > 0, norms_I, np.float32(1))

    def item(self, item_id: str) -> Item | None:
        """An item; None where it is unknown or removed."""
        row = self.catalogue.index.get(item_id)
        return self.catalogue.item(row) if row is not None and self.catalogue.present[row] else None

    def with_items(self, items: Sequence[NewItem], vectors: Mapping[str, Floats]) -> Snapshot:
        """This snapshot with items added or replaced, which have these vectors in each of the scorer's tables.

        Raises:
            RunError: the scorer cannot score new items.
        """
        rows = self.catalogue.rows_for(items, self.num_loaded)
        catalogue = self.catalogue.with_items(items, rows)
        return self._searched(replace(self, catalogue=catalogue, scorer=self.scorer.with_items(rows, vectors)), rows)

    def without_items(self, item_ids: Sequence[str]) -> Snapshot:
        """This snapshot with some of its items removed."""
        rows = [self.catalogue.index[item_id] for item_id in item_ids]
        return self._searched(replace(self, catalogue=self.catalogue.without(rows)), [])

    def _searched(self, other: Snapshot, rows: Sequence[int]) -> Snapshot:
        """Another snapshot with the search of this one, if it has one, in which the titles of some rows are changed."""
        if "search" in vars(self):
            vars(other)["search"] = self.search.changed(other.catalogue, rows)
        return other


def without_removed(snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """The snapshots of the models of one export; if there are many, without the rows of added items that were removed.

    Items of the export keep their rows, by which histories are read and an index finds them.
    """
    first = snapshots[0]
    rows = np.flatnonzero(first.catalogue.present | (np.arange(len(first.catalogue)) < first.num_loaded))
    if len(first.catalogue) - len(rows) <= max(MOST_REMOVED, LARGEST_SHARE * len(first.catalogue)):
        return snapshots
    memory: CountedMemory | None = None
    kept = []
    for each in snapshots:
        if each.memory is not None:  # counts are shared by the models
            memory = subset(each.memory, rows) if memory is None else memory.with_weights(each.memory.weights)
        scorer = _subset(each.scorer, memory, rows)
        other = replace(each, catalogue=each.catalogue.subset(rows), scorer=scorer)
        if "search" in vars(each):
            vars(other)["search"] = TitleSearch(other.catalogue).ready()
        kept.append(other)
    return kept


def _subset(scorer: RowScorer, memory: CountedMemory | None, rows: NDArray[np.int64]) -> RowScorer:
    """What scores some rows; `memory` is its memory for them."""
    if isinstance(scorer, CountedMemory):
        assert memory is not None
        return memory
    if isinstance(scorer, WeightedRowSum):
        return scorer.with_members([_subset(member, memory, rows) for member in scorer.members])
    assert isinstance(scorer, FactorRowScorer)  # nothing else scores new items
    return scorer.subset(rows)
