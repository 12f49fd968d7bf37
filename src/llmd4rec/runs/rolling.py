"""A run where time passes: its model as it was trained, or brought up to each window, beside the memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.times import as_text
from llmd4rec.distillation.stage_ids import MEMORY, SERVED, without_memory
from llmd4rec.errors import ConfigError, RunError
from llmd4rec.evaluation.rolling import ModelFor, rolling
from llmd4rec.evaluation.rolling_evaluation import RollingEvaluation
from llmd4rec.evaluation.slices import span
from llmd4rec.evaluation.windows import Rolling, Window, cut_of
from llmd4rec.io.files import remove
from llmd4rec.log import logger
from llmd4rec.runs.memory import memory_texts
from llmd4rec.runs.origin import OtherOriginError, first_run
from llmd4rec.runs.refit import refit
from llmd4rec.runs.run import Run
from llmd4rec.runs.update import new_rows, update
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.memory.settings import Memory

#: What happens to the model before each window.
MODES = ("frozen", "updated", "refitted")


def score_rolling(
    run: Run, data: Dataset, stage: str = SERVED, *, asked: Rolling, modes: Sequence[str] = ("frozen",)
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
        RunError: the run is a refit or an update, which hold nothing out.
        DataError: the split is not temporal.
        ConfigError: there is no such mode, or the stage is no model.
    """
    if run.record.origin is not None:
        raise RunError(
            f"{run.folder} was trained on every row, so that no window is held out",
            f"Evaluate {first_run(run.record.origin)}, which it came from, with --modes frozen,updated,refitted.",
        )
    if without_memory(stage)[1] or stage == MEMORY:
        raise ConfigError(
            f"{stage} is no model: a rolling evaluation has the memory, and each model beside it, in any case",
            "Leave out --stage, or name a model.",
        )
    run.require(data)
    cut_of(data)  # or nothing is known to lie behind what the run was trained on
    asked = asked.on(data)
    stage_id = run.resolve(stage)
    memory = run.settings.memory or Memory()
    found = rolling(
        data,
        asked,
        memory=memory,
        texts_IT=memory_texts(run.settings.model_copy(update={"memory": memory}), data),
        models=models_of(run, data, stage_id, modes),
    )
    found.save(folder_of(run, stage_id, asked))
    return found


def models_of(run: Run, data: Dataset, stage_id: str, modes: Sequence[str]) -> Mapping[str, ModelFor]:
    """Mode → what gives the model of each window.

    Trainings of windows stay in the run folder under rolling/, so that they are not repeated.

    Args:
        run: the run.
        data: its data set.
        stage_id: which of its models.
        modes: what happens to it before each window.

    Raises:
        ConfigError: there is no such mode, or it is one of the served model and another is asked for.
    """
    makers: dict[str, ModelFor] = {}
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"there is no mode {mode!r}", f"Choose some of {', '.join(MODES)}.")
        if mode == "updated" and stage_id != run.resolve(SERVED):
            raise ConfigError(f"{stage_id} is not served, and only what is served can be updated", "Leave out --stage.")
    for mode in modes:
        if mode == "frozen":
            makers[mode] = _always(run.model_scorer(stage_id))
        elif mode == "updated":
            makers[mode] = _Updated(run, data)
        else:
            makers[mode] = _refitted(run, data, stage_id)
    return makers


def trained_before(run: Run, mode: str, window: Window) -> Path:
    """The run folder of what was updated or refitted before a window."""
    if mode == "updated":
        every = span(window.end - window.start).replace(" ", "-")
        return run.folder / "rolling" / f"updated-every-{every}" / f"window-{window.number}"
    day = as_text(window.start).replace(" ", "-").replace(":", "")
    return run.folder / "rolling" / "refitted" / day


class _Updated:
    """The model of the window before, brought up to each window's start."""

    def __init__(self, run: Run, data: Dataset) -> None:
        self._first, self._run, self._data = run, run, data

    def __call__(self, window: Window) -> Scorer:
        """The updated model; the one of before where nothing has happened since."""
        until = self._data.until(window.start)
        before = self._run
        if new_rows(before, until).any():
            logger.info(f"updating for window {window.number}")
            folder = trained_before(self._first, "updated", window)
            # The memory beside it is counted for each window by the evaluation itself.
            self._run = _of_this_run(folder, lambda: update(before, until, folder, memory=False))
        return self._run.model_scorer()


def _refitted(run: Run, data: Dataset, stage_id: str) -> ModelFor:
    def model_for(window: Window) -> Scorer:
        logger.info(f"refitting for window {window.number}")
        folder = trained_before(run, "refitted", window)
        made = _of_this_run(folder, lambda: refit(run, data.until(window.start), folder))
        return made.model_scorer(stage_id)

    return model_for


def _of_this_run(folder: Path, train: Callable[[], Run]) -> Run:
    """What is trained in a folder; what the folder holds of the run as it was before is trained anew."""
    try:
        return train()
    except OtherOriginError:
        logger.info(f"{folder} is of the run as it was before it was trained again, and is trained anew")
        remove(folder)
        return train()


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
        "" if asked.history != "event" else "history-to-event",
        "" if asked.targets == usual.targets else asked.targets.replace(":", "-"),
        "" if asked.released is None else f"released-{asked.released}",
        "" if asked.filter_seen else "with-seen",
    ]
    return run.folder / "evaluation" / "-".join(["rolling", stage_id, *(part for part in parts if part)])
