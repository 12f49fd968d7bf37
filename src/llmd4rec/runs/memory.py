"""The memory of a run: counted when its models are trained, and weighed on validation, alone and beside each model.

    memory/        the parts, see scoring/memory/state.py
    run.json       `memory`: which parts there are, which there cannot be and why, and for the memory alone and beside
                   each model the weights, the validation value, and whether validation wants it there

Whoever asks a run for `served` gets the model that validation chose, with the memory where validation wants it. Other
names say what they mean: `undistilled`, `undistilled+memory`, `memory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import find
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.distillation.stage_ids import MEMORY, SERVED, with_memory, without_memory
from llmd4rec.errors import RunError
from llmd4rec.evaluation.memory_weights import FittedWeights, fit_memory, standard_error, surely_better
from llmd4rec.evaluation.validation import validation_values
from llmd4rec.features.text_settings import TextSettings
from llmd4rec.io.files import remove
from llmd4rec.log import logger
from llmd4rec.models.llm.item_text import encode_texts
from llmd4rec.runs.record import last_training_time
from llmd4rec.runs.validation import validation_users
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.baselines import BASELINES, baseline_scorers, shown
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.settings import WEIGHED_BY, Memory
from llmd4rec.scoring.memory.state import CountedMemory, count_memory
from llmd4rec.scoring.sums import WeightedSum

if TYPE_CHECKING:
    from llmd4rec.runs.run import Run

FOLDER = "memory"
_REMEDY = "Set memory: auto in the run's settings, or run `train` again with `--set memory=auto`."


def memory_texts(
    settings: DistillationSettings, data: Dataset, device: torch.device | str = "cpu"
) -> NDArray[np.float32] | None:
    """The text vectors that the content part compares items by, [I, T]; None where no item has a text.

    They are those of the sentence encoder as it gives them. Vectors that were encoded before are found in the cache.
    """
    texts = settings.texts
    lines = data.texts(texts.fields)
    if settings.memory is None or settings.memory.content is None or not any(lines):
        return None
    # A language model is too large to serve; new items are placed by the usual sentence encoder.
    encoder = texts.encoder if texts.encoder != "llm" else TextSettings().encoder
    return encode_texts(lines, encoder, device=device)


def add_memory(run: Run, data: Dataset, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Counts the memory of a run whose models are trained, weighs it, and writes it into the folder.

    A refitted or updated run has no validation left: it takes weights and half-lives of the run that it came from.

    Returns:
        What the record says of it; None where nothing can be counted, or nothing was in the run that it came from.
    """
    origin = run.record.origin
    before = None if origin is None else origin["memory"]
    settings = run.settings.memory
    if settings is None or (origin is not None and before is None):
        return None
    if before is not None:
        settings = Memory.model_validate(before["settings"])
        if not _uses_item_knn(before["alone"], before["beside"]):  # it would be counted at every refit, for nothing
            settings = settings.model_copy(update={"item_knn": None})
    logger.info(MEMORY)
    counted = count_memory(settings, data, memory_texts(run.settings, data, device), before=counted_to(data))
    if counted is None:
        logger.info("  nothing can be counted: no item has a text, and no training history two items")
        return None
    for part, why in counted.missing.items():
        logger.info(f"  no {part}: {why}")
    found = _weighed(run, counted, data) if before is None else (counted, before["alone"], before["beside"])
    counted, alone, beside = found
    about = counted.settings.model_dump(mode="json")
    counted = counted.with_weights(alone["weights"])
    (counted if _uses_item_knn(alone, beside) else counted.without_unused()).save(run.folder / FOLDER)
    return {"settings": about, "missing": counted.missing, "alone": alone, "beside": beside}


def counted_to(data: Dataset) -> int | None:
    """The moment that the training part of a temporal split reaches to, from which counts age; None for other splits.

    Of leave-one-out, whose held-out items lie in the same time as those of training, nothing ages.
    """
    last = last_training_time(data) if data.is_temporal else None
    return None if last is None else last + 1


def _weighed(run: Run, counted: CountedMemory, data: Dataset) -> tuple[CountedMemory, dict[str, Any], dict[str, Any]]:
    """The memory with the half-life that validation chose; its weights alone, and those beside each model."""
    filter_seen, seed = run.settings.evaluation.filter_seen, run.settings.seed
    stages = [stage.id for stage in run.reported() if stage.role == "model"]
    if counted.settings.weights != "auto":
        logger.info(f"  weights as given: {counted.weights}")
        given = FittedWeights(counted, counted.weights, 0.0, {}, 0.0, 0.0, 0.0, wanted=True)
        alone_U = validation_values(
            memory_scorer(counted), data, filter_seen, validation_users(run.settings, data), seed
        )
        alone = replace(given, value=float(alone_U.mean()), standard_error=standard_error(alone_U))
        each = replace(given, memory=counted.beside_model(), model=1.0)
        judged = {stage: _judged(each, run.model_scorer(stage), run, data) for stage in stages}
        # Who gives weights wants the memory, whatever validation says of it.
        return counted, _written(alone), {stage: _written(replace(one, wanted=True)) for stage, one in judged.items()}
    alone = fit_memory(counted, data, filter_seen=filter_seen, seed=seed)
    _say("alone", alone)
    beside = {}
    for stage in stages:
        model = run.model_scorer(stage)
        fitted = fit_memory(alone.memory.beside_model(), data, model=model, filter_seen=filter_seen, seed=seed)
        fitted = _judged(fitted, model, run, data)
        beside[stage] = _written(fitted)
        _say(f"beside {stage}", fitted)
    return alone.memory, _written(alone), beside


def _judged(fitted: FittedWeights, model: Scorer, run: Run, data: Dataset) -> FittedWeights:
    """The same weights, judged as models are: on all validation users, or on as many as these are chosen by.

    The targets that the weights are fitted on are enough for a few numbers, and too few to tell two models apart.
    """
    settings = run.settings
    given = settings.evaluation.filter_seen, validation_users(settings, data), settings.seed
    alone_U = validation_values(model, data, *given)
    both_U = alone_U
    if any(fitted.weights.values()):
        both = WeightedSum([model, memory_scorer(fitted.memory)], [fitted.model, 1.0])
        both_U = validation_values(both, data, *given)
    return replace(
        fitted,
        value=float(both_U.mean()),
        standard_error=standard_error(both_U),
        model_value=float(alone_U.mean()),
        wanted=surely_better(both_U, alone_U),
    )


def forget_memory(run: Run) -> None:
    """Takes the memory out of the record, and what was evaluated with it or with its parts alone.

    It is counted anew in the next `train`.
    """
    run.record.memory = None
    for name in (MEMORY, with_memory("*"), *BASELINES, "rolling"):
        for evaluation in (run.folder / "evaluation").glob(f"{name}-*"):
            remove(evaluation)


def is_wanted(run: Run, stage_id: str) -> bool:
    """Whether validation wants the memory beside the model of a stage."""
    return bool(_beside(run, stage_id).get("wanted"))


def as_served(run: Run, stage_id: str) -> str:
    """What a stage's model is called as it would be served: with the memory where validation wants that."""
    return with_memory(stage_id) if is_wanted(run, stage_id) else stage_id


def validation_with(run: Run, stages: Sequence[str]) -> dict[str, float]:
    """The validation value of each stage as it would be served: with the memory where that is wanted there.

    Values beside a memory are NDCG@10, whatever models are selected by, so that all are or none is: a stage beside
    which the memory has not been weighed is left out where others were. Of several rounds those have been weighed that
    a table shows.
    """
    weighed = {stage: _beside(run, stage) for stage in stages if _beside(run, stage)}
    if not weighed:  # no memory
        return {stage: run.validation_of(stage) for stage in stages}
    return {
        stage: float(each["validation" if each["wanted"] else "model_validation"]) for stage, each in weighed.items()
    }


def validation_alone(run: Run, stage_id: str) -> tuple[float, str]:
    """What the model of a stage is worth on validation without a memory, and by which metric.

    Of a model that was taught beside the memory that is known when the memory has been weighed; until then it is the
    value of both.
    """
    entry = _beside(run, stage_id)
    if entry and find(run.plan, stage_id).beside_memory:
        return float(entry["model_validation"]), WEIGHED_BY
    return run.validation_of(stage_id), run.settings.evaluation.selection.label


def memory_of(run: Run, stage_id: str | None = None) -> tuple[CountedMemory, float]:
    """The memory with the weights that it has alone, or beside the model of a stage, and that model's weight.

    Raises:
        RunError: the run has no memory, or none beside that stage; or its files are missing or damaged.
    """
    record = run.record.memory
    if record is None:
        raise RunError(f"{run.folder} has no memory", _REMEDY)
    entry = record["alone"] if stage_id is None else record["beside"].get(stage_id)
    if entry is None:
        there = ", ".join(with_memory(name) for name in record["beside"])
        raise RunError(f"{run.folder} has no memory beside {stage_id}; it has: {MEMORY}, {there}", "Name one of these.")
    memory = CountedMemory.load(run.folder / FOLDER).with_weights(entry["weights"])
    if (dim := entry.get("content_dim")) is not None:
        memory = memory.with_content_dim(int(dim))
    return memory, float(entry.get("model", 0.0))


def named(run: Run, name: str) -> tuple[str | None, bool]:
    """The stage that a name means, None for the memory alone, and whether the memory is asked for.

    Args:
        name: a stage or what stands for one (see :meth:`Run.resolve`), such a name with `+memory` behind it, or
            `memory`.
    """
    if name == MEMORY:
        return None, True
    stage, beside = without_memory(name)
    stage_id = run.resolve(stage)
    return stage_id, beside or (name == SERVED and is_wanted(run, stage_id))


def label_of(run: Run, name: str) -> str:
    """The id of what a name means: `distilled-round-1`, `distilled-round-1+memory`, `memory`."""
    stage_id, beside = named(run, name)
    if stage_id is None:
        return MEMORY
    return with_memory(stage_id) if beside else stage_id


def scorer_of(run: Run, name: str) -> Scorer:
    """What a name means, as an evaluator asks it; see :func:`named`."""
    stage_id, beside = named(run, name)
    if stage_id is None:
        return memory_scorer(memory_of(run)[0])
    model = run.model_scorer(stage_id)
    if not beside:
        return model
    memory, weight = memory_of(run, stage_id)
    both = WeightedSum([model, memory_scorer(memory)], [weight, 1.0])
    both.name, both.stage, both.vectors_ID = f"{model.name} + memory", with_memory(stage_id), model.vectors_ID
    return both


def memory_scorer(memory: CountedMemory) -> Scorer:
    """A memory as an evaluator asks it."""
    return RowsScorer(memory, MEMORY, max_length=memory.max_length, reads=memory.reads, stage=MEMORY)


def baseline_scorers_of(run: Run, data: Dataset) -> dict[str, Scorer]:
    """The training-free methods that the data allows, by name; see :mod:`llmd4rec.scoring.baselines`.

    Of a run without a memory texts are not encoded, only to have a baseline of them.
    """
    return baseline_scorers(data, memory_texts(run.settings, data), run.settings.memory or Memory(content=None))


def _uses_item_knn(alone: Mapping[str, Any], beside: Mapping[str, Any]) -> bool:
    """Whether the largest part has a weight anywhere."""
    return any(each["weights"].get("item_knn") for each in (alone, *beside.values()))


def _beside(run: Run, stage_id: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (run.record.memory or {}).get("beside", {}).get(stage_id, {})
    return found


def _written(fitted: FittedWeights) -> dict[str, Any]:
    return {
        "content_dim": _content_dim(fitted.memory),
        "weights": fitted.weights,
        "model": fitted.model,
        "left_out": fitted.left_out,
        "validation": fitted.value,
        "model_validation": fitted.model_value,
        "standard_error": fitted.standard_error,
        "wanted": fitted.wanted,
    }


def _content_dim(memory: CountedMemory) -> int | None:
    return None if memory.content is None else memory.content.vectors_ID.shape[1]


def _say(where: str, fitted: FittedWeights) -> None:
    weights = ", ".join(f"{shown(name)} {weight:.3g}" for name, weight in fitted.weights.items() if weight)
    beside = f"model {fitted.model:.3g}, " if fitted.model else ""
    logger.info(f"  {where}: {beside}{weights or 'nothing helps'}; validation {fitted.value:.4f}")
    for part, why in fitted.left_out.items():
        logger.info(f"  {where}: {shown(part)} is left out: {why}")


def stages_with_memory(run: Run) -> list[str]:
    """The stages beside whose models the memory has been weighed."""
    return list((run.record.memory or {}).get("beside", {}))


def names(run: Run) -> list[str]:
    """What can be named in a run beside its stages."""
    return [*map(with_memory, stages_with_memory(run)), *([MEMORY] if run.record.memory else [])]
