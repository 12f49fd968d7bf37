"""The recommender of a run: the trained model of a stage, with the run's catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llmd4rec.data.dataset import Dataset
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.from_model import recommender_of_model
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import ExportInfo
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential import MODELS

if TYPE_CHECKING:
    from llmd4rec.runs.run import Run


def recommender_of(run: Run, name: str, data: Dataset | None = None, *, other: bool = False) -> Recommender:
    """A recommender of one of a run's stages; see :meth:`Run.resolve`.

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
        reads=model.reads,
        fields=kinds,
        fingerprint=run.record.data,
        filter_seen=run.settings.evaluation.filter_seen,
        validation=run.validation_of(stage.id),
    )
    return recommender_of_model(model, info, Catalogue.of(frame, counts, kinds, multi=multi))
