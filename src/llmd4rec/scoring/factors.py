"""A model as a scorer: scores are the product of its states and its item table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ModelError
from llmd4rec.matmul import product
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.scoring.base import Query, Scorer


@dataclass(frozen=True)
class FactorQuery(Query):
    """Scores are `states_BD @ table_ID.T`, computed in 32-bit floats on the table's device."""

    states_BD: Tensor
    table_ID: Tensor

    @classmethod
    def of(cls, states_BD: Tensor, table_ID: Tensor) -> FactorQuery:
        """Of any precision, on any device.

        Raises:
            ModelError: states or table hold NaN or infinite values.
        """
        refuse_unless(torch.isfinite(table_ID).all(), "item table")
        refuse_unless(torch.isfinite(states_BD).all(), "states")
        return cls(states_BD.detach().to(table_ID.device).float(), table_ID.detach().float())

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.table_ID)

    @property
    def device(self) -> torch.device:
        """That of the table."""
        return self.table_ID.device

    def __len__(self) -> int:
        return len(self.states_BD)

    def take(self, rows: slice | Tensor) -> Self:
        """Some of the states."""
        return replace(self, states_BD=self.states_BD[rows])

    def scores(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """One matrix product."""
        return product(self.states_BD, self.table_ID[first:last], out=out)

    def item_scores(self, items_BT: Tensor) -> tuple[Tensor, Tensor]:
        """By products of the same kind as :meth:`scores`, since another kind would round by far more."""
        eps, norm_B = torch.finfo(torch.float32).eps, self.states_BD.norm(dim=1)
        found, rounding = [], []
        for items_B in items_BT.unbind(1):
            rows_BD = self.table_ID[items_B]
            found.append(product(self.states_BD, rows_BD).diagonal())
            # Matrix products round the same row differently in different columns, by less than this.
            rounding.append(eps * norm_B * rows_BD.norm(dim=1))
        return torch.stack(found, 1), torch.stack(rounding, 1)


class FactorScorer(Scorer):
    """A model and its item table, as both are when this is made.

    Args:
        model: the model; read in evaluation mode, and set back afterwards.
        device: where to compute; the model is moved there. None: where it is.
        name: what a table calls it.
        stage: the id of the stage of a run that it was trained in.

    Raises:
        ModelError: the table holds NaN or infinite values.
    """

    def __init__(
        self,
        model: SequenceEncoder,
        device: torch.device | str | None = None,
        *,
        name: str = "model",
        stage: str = "",
    ) -> None:
        if device is not None:
            model.to(device)
        self.model, self.name, self.stage = model, name, stage
        self.max_length, self.reads = model.max_length, model.reads
        if not model.training:
            model.eval()  # all of its parts
        with evaluation_mode(model):
            table_ID = model.item_table()
            refuse_unless(torch.isfinite(table_ID).all(), "item table")
            self.table_ID = table_ID.detach().float()
        self.vectors_ID = self.table_ID

    @property
    def num_items(self) -> int:
        """Rows of the table."""
        return len(self.table_ID)

    @property
    def device(self) -> torch.device:
        """That of the model."""
        parameter: Any = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def prepare(self, batches: Iterable[SequenceBatch]) -> FactorQuery:
        """The states behind the histories.

        Raises:
            ModelError: they hold NaN or infinite values.
        """
        with evaluation_mode(self.model):
            states_BD = torch.cat([last_states(self.model, batch.to(self.device)) for batch in batches])
            refuse_unless(torch.isfinite(states_BD).all(), "states")
            return FactorQuery(states_BD.to(self.table_ID.device).float(), self.table_ID)


@contextlib.contextmanager
def evaluation_mode(model: SequenceEncoder) -> Iterator[None]:
    """Evaluation mode without gradients; the training flag is set back afterwards."""
    was_training = model.training
    if was_training:  # setting it in every part of a model takes as long as a short history
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()


def refuse_unless(fine: Tensor | bool, name: str) -> None:
    """Refuses a model that diverged.

    Raises:
        ModelError: `fine` is false.
    """
    if not fine:
        raise ModelError(
            f"the model's {name} hold NaN or infinite values: nothing can be ranked with them",
            "Training diverged: lower the learning rate, or go back to an earlier checkpoint.",
        )
