"""Several models that answer as one: the mean of their scores.

    scores = mean_m (states_m @ table_m.T)  =  [states_1 / M, ..., states_M / M] @ [table_1, ..., table_M].T

A softmax over mean scores is the normalised geometric mean of the models' distributions (a log-linear pool). It is
again one product of states and a table, as wide as all of them together; so a pool can be published, ranked and
learned from like any other :class:`~llmd4rec.models.ranker.Ranker`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmd4rec.errors import ModelError
from llmd4rec.models.ranker import Ranker


class Pool(Ranker):
    """The mean of models over one catalogue.

    Args:
        rankers: at least one; histories are read as far back as all of them can. Their widths may differ.

    Raises:
        ModelError: their catalogues differ in size.
    """

    def __init__(self, rankers: Sequence[Ranker]) -> None:
        super().__init__()
        if len({ranker.num_items for ranker in rankers}) != 1:
            raise ModelError("models of different catalogues cannot be pooled", "Pool models of one run.")
        self.rankers = nn.ModuleList(rankers)
        self.max_length = min(ranker.max_length for ranker in rankers)

    @property
    def num_items(self) -> int:
        """I."""
        return self._members()[0].num_items

    @property
    def dim(self) -> int:
        """The sum of the widths."""
        return sum(ranker.dim for ranker in self._members())

    def states(self, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """States [B, L, sum of widths], each model's divided by how many models there are."""
        members = self._members()
        return torch.cat([ranker.states(items_BL, lengths_B).float() / len(members) for ranker in members], -1)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        """The tables side by side, [I, sum of widths]."""
        return torch.cat([ranker.item_table(items).float() for ranker in self._members()], -1)

    def _members(self) -> list[Ranker]:
        return [ranker for ranker in self.rankers if isinstance(ranker, Ranker)]
