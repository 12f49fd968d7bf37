"""A recommender of a model in memory: PyTorch encodes the histories."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ModelError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.encoder import HistoryBatch
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import ExportInfo
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.scoring.index import ApproximateIndex

Floats = NDArray[np.float32]


class ModelEncoder:
    """A model as a recommender's encoder; it looks rows up by itself."""

    def __init__(self, model: SequenceEncoder) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device

    @property
    def reads(self) -> tuple[str, ...]:
        """See :class:`~llmd4rec.inference.encoder.Encoder`."""
        return self.model.reads

    @torch.inference_mode()
    def __call__(self, batch: HistoryBatch, table_ID: Floats) -> Floats:
        """See :class:`~llmd4rec.inference.encoder.Encoder`; the table is not needed."""
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        read = SequenceBatch(torch.from_numpy(batch.rows_BL), torch.from_numpy(batch.lengths_B), inputs)
        states: Floats = last_states(self.model, read.to(self.device)).float().cpu().numpy()
        return states


def recommender_of_model(
    model: SequenceEncoder, info: ExportInfo, catalogue: Catalogue, *, indexed: bool = False
) -> Recommender:
    """A model with its catalogue, ready to answer.

    Args:
        indexed: it is searched through an index.

    Raises:
        ModelError: the item table is not finite.
    """
    scorer = scorer_of_model(model)
    if indexed:
        scorer = FactorRowScorer(scorer.encoder, scorer.table_ID, ApproximateIndex(scorer.table_ID))
    return Recommender(info, scorer, catalogue)


def scorer_of_model(model: SequenceEncoder) -> FactorRowScorer:
    """A model as it scores rows, every one of them.

    Raises:
        ModelError: the item table is not finite.
    """
    with torch.inference_mode():
        table_ID = model.item_table().float().cpu().numpy()
    if not np.isfinite(table_ID).all():
        raise ModelError("the model's item table holds NaN or infinite values", "Training diverged; train again.")
    return FactorRowScorer(ModelEncoder(model), table_ID, max_length=model.max_length)
