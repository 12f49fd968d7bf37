"""What every model is: histories in, states out, and a table of items to compare them with.

    scores = states @ item_table.T          states_ND, item_table_ID  →  scores_NI

Losses, ranks, weights, teacher caches, evaluation and export are written against this and nothing else, so that a model
that can produce states and a table can be trained, distilled, evaluated and served.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.models.embedding import item_embedding_of


class SequenceEncoder(nn.Module, ABC):
    """A sequence encoder with a prediction layer over the whole catalogue.

    A network that has an :class:`~llmd4rec.models.embedding.ItemEmbedding` as its attribute `items` shares it with the
    prediction layer, and defines :meth:`states` alone. Any other defines :attr:`num_items`, :attr:`dim` and
    :meth:`item_table` too.
    """

    #: The longest history the model reads; older items are cut off.
    max_length: int
    #: What it reads beside items and lengths, by name: `times`, `target_times`. Batches carry nothing else.
    reads: tuple[str, ...] = ()

    @property
    def num_items(self) -> int:
        """|I|, the rows of the item table."""
        return item_embedding_of(self).num_items

    @property
    def dim(self) -> int:
        """d, the width of states and item table."""
        return item_embedding_of(self).dim

    @abstractmethod
    def states(self, batch: SequenceBatch) -> Tensor:
        """States at every position, shape [B, L, d]; the state at t has seen the events up to t and nothing later.

        Args:
            batch: the histories, with what :attr:`reads` names. States beyond a history's length are arbitrary.

        A model to be exported does with the item indices nothing but give them to its `ItemEmbedding`: the exported
        graph is given the table's rows [B, L, d] in their place, so it asks no more of `batch.items_BL` than its first
        two sizes.
        """

    def item_table(self, items: Tensor | None = None) -> Tensor:
        """The prediction layer's table, shape [I, d], or its rows for some items; differentiable when training."""
        return item_embedding_of(self).table(items)

    def saved_state(self) -> dict[str, Tensor]:
        """The tensors a checkpoint must hold to rebuild this model; everything, unless a subclass knows better."""
        return dict(self.state_dict())

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Restores what :meth:`saved_state` gave."""
        self.load_state_dict(state)


def last_states(ranker: SequenceEncoder, batch: SequenceBatch) -> Tensor:
    """The state behind each whole history, shape [B, d]."""
    states_BLD = ranker.states(batch)
    rows = torch.arange(batch.lengths_B.shape[0], device=states_BLD.device)
    return states_BLD[rows, batch.lengths_B - 1]


def count_parameters(ranker: nn.Module) -> tuple[int, int]:
    """All and trainable parameters."""
    return (
        sum(parameter.numel() for parameter in ranker.parameters()),
        sum(parameter.numel() for parameter in ranker.parameters() if parameter.requires_grad),
    )
