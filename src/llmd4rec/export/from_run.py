"""An engine out of a run folder, without an export: the trained model in PyTorch answers."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ModelError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.engine import Engine
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.types import ExportInfo
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential import MODELS
from llmd4rec.runs.run import Run

Floats = NDArray[np.float32]


class ModelEncoder:
    """A model as an engine's encoder; it looks rows up by itself."""

    def __init__(self, model: SequenceEncoder) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def __call__(self, rows_BL: NDArray[np.int64], lengths_B: NDArray[np.int64], table_ID: Floats) -> Floats:
        """See :class:`~llmd4rec.inference.encoder.Encoder`; the table is not needed."""
        items_BL, lengths = (torch.from_numpy(array).to(self.device) for array in (rows_BL, lengths_B))
        states: Floats = last_states(self.model, SequenceBatch(items_BL, lengths)).float().cpu().numpy()
        return states


def engine_of_run(run: Run, name: str = "served", data: Dataset | None = None, *, other: bool = False) -> Engine:
    """An engine of one of a run's stages; see :meth:`Run.resolve`.

    Args:
        data: gives the catalogue's fields and the items' counts; without it there are titles only.
        other: it may be other data than the run was trained on; what it says of the run's items is taken.

    Raises:
        RunError: the run has no such stage, or the data is not the run's.
        ModelError: the item table is not finite.
    """
    if data is not None and not other:
        run.require(data)
    stage = run.stage(name)
    model = run.load(stage.id)
    with torch.inference_mode():
        table_ID = model.item_table().float().cpu().numpy()
    if not np.isfinite(table_ID).all():
        raise ModelError("the model's item table holds NaN or infinite values", "Training diverged; train again.")
    frame = run.catalogue()
    counts = np.zeros(frame.height, dtype=np.int64)
    if data is not None and data.is_known_as(run.record.data):
        frame, counts = data.catalogue, data.train_counts
    elif data is not None:
        told = data.catalogue.drop("title", strict=False).with_columns(__count__=pl.Series(data.train_counts))
        frame = frame.join(told, on="item_id", how="left", maintain_order="left")
        counts = frame["__count__"].fill_null(0).to_numpy().astype(np.int64)
        frame = frame.drop("__count__")
    multi = None if data is None else data.multi_fields
    kinds = kinds_of(frame, multi)
    info = ExportInfo(
        name=run.folder.resolve().name,
        format=0,
        stage=stage.id,
        model=stage.network.model if isinstance(stage.network, LLM) else MODELS.name_of(type(stage.network)),
        dim=model.dim,
        items=frame.height,
        max_length=model.max_length,
        fields=kinds,
        fingerprint=run.record.data,
        filter_seen=run.settings.evaluation.filter_seen,
        validation=run.validation_of(stage.id),
    )
    return Engine(info, ModelEncoder(model), table_ID, Catalogue.of(frame, counts, kinds, multi=multi))
