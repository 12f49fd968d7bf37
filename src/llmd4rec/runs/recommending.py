"""The recommender of a run: the trained model of a stage, with the run's catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.from_model import recommender_of_model
from llmd4rec.inference.opening import LoadOptions
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import ExportInfo
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential import MODELS
from llmd4rec.runs.catalogue import read_counts

if TYPE_CHECKING:
    from llmd4rec.runs.run import Run


def recommender_of(run: Run, options: LoadOptions) -> Recommender:
    """A recommender of one of a run's stages; see :meth:`Run.resolve`.

    Raises:
        RunError: the run has no such stage, or a file is missing or damaged.
        ModelError: the item table is not finite.
    """
    stage = run.stage(options.stage)
    model = run.load(stage.id)
    frame, multi = run.catalogue(), run.record.multi_fields
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
        selection=run.settings.evaluation.selection.label,
    )
    catalogue = Catalogue.of(frame, read_counts(run.folder, frame.height), kinds, multi=multi)
    return recommender_of_model(model, info, catalogue, indexed=options.wants_index(frame.height))
