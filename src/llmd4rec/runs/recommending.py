"""The recommender of a run: the trained model of a stage, with the run's catalogue."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmd4rec.distillation.stage_ids import MEMORY, with_memory
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.from_model import recommender_of_model, scorer_of_model
from llmd4rec.inference.memory import beside, weights_of
from llmd4rec.inference.opening import LoadOptions
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import ExportInfo
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential import MODELS
from llmd4rec.runs.catalogue import read_counts
from llmd4rec.runs.memory import memory_of, named, validation_alone
from llmd4rec.scoring.memory.settings import WEIGHED_BY

if TYPE_CHECKING:
    from llmd4rec.runs.run import Run


def recommender_of(run: Run, options: LoadOptions) -> Recommender:
    """A recommender of one of a run's stages, with the memory beside it where that is meant; or of the memory alone.

    Args:
        run: the run.
        options: its stage is a name as :func:`llmd4rec.runs.memory.named` reads it.

    Raises:
        RunError: the run has no such stage or no memory, or a file is missing or damaged.
        ModelError: the item table is not finite.
    """
    stage_id, wanted = named(run, options.stage)
    frame, multi = run.catalogue(), run.record.multi_fields
    kinds = kinds_of(frame, multi)
    catalogue = Catalogue.of(frame, read_counts(run.folder, frame.height), kinds, multi=multi)
    memory, weight = memory_of(run, stage_id) if wanted else (None, 1.0)

    def info_of(stage: str, model: str, dim: int, max_length: int, **more: Any) -> ExportInfo:
        return ExportInfo(
            name=run.folder.resolve().name,
            format=0,
            stage=stage,
            model=model,
            dim=dim,
            items=frame.height,
            max_length=max_length,
            fields=kinds,
            fingerprint=run.record.data,
            filter_seen=run.settings.evaluation.filter_seen,
            **more,
        )

    if stage_id is None:
        assert memory is not None
        assert run.record.memory is not None  # as there is one
        vectors_ID, value = memory.vectors_ID, float(run.record.memory["alone"]["validation"])
        dim = 0 if vectors_ID is None else vectors_ID.shape[1]
        info = info_of(
            MEMORY, MEMORY, dim, memory.max_length, memory=memory.weights, validation=value, selection=WEIGHED_BY
        )
        return Recommender(info, memory, catalogue)
    stage, model = run.stage(stage_id), run.load(stage_id)
    name = stage.network.model if isinstance(stage.network, LLM) else MODELS.name_of(type(stage.network))
    value, selection = validation_alone(run, stage_id)
    alone = info_of(
        stage_id, name, model.dim, model.max_length, reads=model.reads, validation=value, selection=selection
    )
    indexed = options.wants_index(frame.height)
    if memory is None:
        return recommender_of_model(model, alone, catalogue, indexed=indexed)
    assert run.record.memory is not None
    info = replace(
        alone,
        stage=with_memory(stage_id),
        max_length=max(model.max_length, memory.max_length),
        memory=weights_of(memory, weight),
        validation=float(run.record.memory["beside"][stage_id]["validation"]),
        selection=WEIGHED_BY,
    )
    scorer = beside(scorer_of_model(model), memory, weight, indexed=indexed)
    return Recommender(info, scorer, catalogue, alone=alone)
