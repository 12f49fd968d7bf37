"""An ensemble: the weighted mean of several models' scores.

    scores = Σ_m w_m states_m @ table_m.T  =  [w_1 states_1, ..., w_M states_M] @ [table_1, ..., table_M].T,  Σ w = 1

A softmax over mean scores is the normalised geometric mean of the models' distributions (a log-linear pool). It is
again one product of states and a table, as wide as all of them together; so an ensemble can be cached as a teacher,
ranked and learned from like any other :class:`~llmd4rec.models.base.SequenceEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ModelError
from llmd4rec.models.base import SequenceEncoder


class Ensemble(SequenceEncoder):
    """The weighted mean of models over one catalogue.

    Args:
        rankers: at least one; histories are read as far back as all of them can. Their widths may differ.
        weights: of each model, positive, in any unit; None: all the same.

    Raises:
        ModelError: their catalogues differ in size.
    """

    def __init__(self, rankers: Sequence[SequenceEncoder], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if len({ranker.num_items for ranker in rankers}) != 1:
            raise ModelError("models of different catalogues cannot form an ensemble", "Use models of one run.")
        self.rankers = nn.ModuleList(rankers)
        given = weights or [1.0] * len(rankers)
        self.weights = tuple(weight / sum(given) for weight in given)
        self.max_length = min(ranker.max_length for ranker in rankers)
        self.reads = tuple(dict.fromkeys(name for ranker in rankers for name in ranker.reads))

    @property
    def num_items(self) -> int:
        """I."""
        return self._members()[0].num_items

    @property
    def dim(self) -> int:
        """The sum of the widths."""
        return sum(ranker.dim for ranker in self._members())

    def states(self, batch: SequenceBatch) -> Tensor:
        """States [B, L, sum of widths], each model's times its weight."""
        weighted = zip(self.weights, self._members(), strict=True)
        return torch.cat([weight * ranker.states(batch).float() for weight, ranker in weighted], -1)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        """The tables side by side, [I, sum of widths]."""
        return torch.cat([ranker.item_table(items).float() for ranker in self._members()], -1)

    def _members(self) -> list[SequenceEncoder]:
        return [ranker for ranker in self.rankers if isinstance(ranker, SequenceEncoder)]
