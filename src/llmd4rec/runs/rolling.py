"""A run where time passes: its model as it was trained, or brought up to each window, beside the memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.stage_ids import SERVED
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.rolling import ModelFor, rolling
from llmd4rec.evaluation.rolling_evaluation import RollingEvaluation
from llmd4rec.evaluation.slices import span
from llmd4rec.evaluation.windows import Rolling
from llmd4rec.runs.run import Run
from llmd4rec.scoring.base import Scorer

#: What happens to the model before each window.
MODES = ("frozen", "updated", "refitted")


def score_rolling(
    run: Run, data: Dataset, stage: str = SERVED, *, asked: Rolling, modes: tuple[str, ...] = ("frozen",)
) -> RollingEvaluation:
    """Evaluates one stage of a run in windows behind its test cut, and saves the result under evaluation/.

    Args:
        run: the run, trained on a temporal split.
        data: its data set.
        stage: which stage; see :meth:`Run.resolve`.
        asked: windows and targets.
        modes: what happens to the model before each window: some of :data:`MODES`.

    Raises:
        RunError: the data is not the run's, or there is no such stage.
        DataError: the split is not temporal.
        ConfigError: there is no such mode.
    """
    run.require(data)
    stage_id = run.resolve(stage)
    texts = run.text_vectors()
    found = rolling(
        data,
        asked,
        texts_IT=None if texts is None else texts.float().numpy(),
        models=models_of(run, stage_id, modes),
    )
    found.save(folder_of(run, stage_id, asked))
    return found


def models_of(run: Run, stage_id: str, modes: tuple[str, ...]) -> Mapping[str, ModelFor]:
    """Mode → the model of each window.

    Raises:
        ConfigError: there is no such mode.
    """
    found: dict[str, ModelFor] = {}
    for mode in modes:
        if mode != "frozen":
            raise ConfigError(f"mode is {mode!r}", f"Choose some of {', '.join(MODES)}.")
        found[mode] = _always(run.scorer(stage_id))
    return found


def _always(scorer: Scorer) -> ModelFor:
    return lambda window: scorer


def folder_of(run: Run, stage_id: str, asked: Rolling) -> Path:
    """Where a rolling evaluation is saved; other questions have other folders."""
    usual = Rolling()
    parts = [
        "" if asked.every == usual.every else span(asked.every).replace(" ", "-"),
        "" if asked.windows == usual.windows else f"{asked.windows}-windows",
        "" if asked.choose_on == usual.choose_on else f"chosen-on-{asked.choose_on}",
        "" if asked.count_to == usual.count_to else "counted-to-event",
        "" if asked.history == usual.history else "history-to-event",
        "" if asked.targets == usual.targets else asked.targets.replace(":", "-"),
        "" if asked.released is None else f"released-{asked.released}",
        "" if asked.filter_seen else "with-seen",
    ]
    return run.folder / "evaluation" / "-".join(["rolling", stage_id, *(part for part in parts if part)])
