"""Before a run is trained: its folder made or put in order, its data checked, and everybody else kept out of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from llmd4rec.data.batching import TrainingWindows, check_inputs
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import plan
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.errors import DataError, LLMD4RecError, RunError
from llmd4rec.features.event_features import EVENT_FEATURES
from llmd4rec.io.files import read_json, remove, write_json
from llmd4rec.io.leftovers import remove_leftovers
from llmd4rec.log import logger
from llmd4rec.models.llm.settings import LLM
from llmd4rec.runs.memory import FOLDER, forget_memory
from llmd4rec.runs.run import Run
from llmd4rec.training.backends.base import Backend
from llmd4rec.training.runtime import environment


def new_folder() -> str:
    """Where a run goes that nobody named a folder for."""
    return str(Path(tempfile.mkdtemp(prefix="llmd4rec-"), "run"))


def tidy(run: Run) -> None:
    """Brings a folder into order that a process was killed in, or that somebody has deleted files from."""
    remove_leftovers(run.folder)
    missing: set[str] = set()
    for stage in run.plan:  # each stands behind what it needs
        done = stage.id in run.record.stages
        lost = done and not (run.checkpoint_of(stage.id) / "best.safetensors").exists()
        if lost or (done and not missing.isdisjoint(stage.needs)):
            missing.add(stage.id)
    if missing:
        again = [stage for stage in run.record.stages if stage in missing]
        logger.warning(f"{run.folder}: weights are missing, so these stages are trained again: {', '.join(again)}")
        for stage_id in again:
            del run.record.stages[stage_id]
            remove(run.checkpoint_of(stage_id))
            for split in ("test", "valid"):
                for evaluation in (run.folder / "evaluation").glob(f"{stage_id}-{split}*"):
                    remove(evaluation)
    no_texts = run.record.text_vectors is not None and not (run.folder / "text_vectors.safetensors").exists()
    no_memory = run.record.memory is not None and not (run.folder / FOLDER).is_dir()
    if missing or no_memory:
        forget_memory(run)  # it is weighed beside models
    if missing or no_texts or no_memory:
        run.record.finished = False
        run.save()
    for name in run.record.stages:
        remove(run.checkpoint_of(name) / "training")
    if run.record.finished:
        for name in ("teachers", "rollouts"):
            remove(run.folder / name)
    elif run.begun():
        note_environment(run.folder)


def note_environment(folder: Path) -> None:
    """Adds to environment.json what is different from the session before, and says what may change the numbers."""
    path = folder / "environment.json"
    noted, now = read_json(path), environment()
    sessions = noted.setdefault("later_sessions", [])
    latest = {name: value for name, value in noted.items() if name != "later_sessions"}
    for session in sessions:
        latest |= session
    new = {name: value for name, value in now.items() if latest.get(name, value) != value}
    if new:
        sessions.append(new)
        write_json(path, noted)
    if rounding := [name for name in ("processor", "threads", "processes", "gpu", "packages") if name in new]:
        logger.warning(
            f"{folder} goes on with other {' and '.join(rounding)} than before: from here on numbers may "
            "differ in their last digits from those of a run never stopped"
        )


def check_data(settings: DistillationSettings, data: Dataset, *, validates: bool = True) -> None:
    """Refuses, before anything is written, data that cannot be trained on or selected on.

    Args:
        settings: of the run.
        data: to train on.
        validates: whether anything is chosen on validation.
    """
    if not TrainingWindows(data, settings.model.max_length).num_positions:
        raise DataError(
            "there is nothing to train on: no user has two interactions in the training part",
            "Prepare a data set with longer histories (leave-one-out needs 4 interactions of some users).",
        )
    if validates and not len(data.valid):
        raise DataError("the data set has no validation targets", "Prepare it with a split that holds items out.")
    for stage in plan(settings):
        if not isinstance(stage.network, LLM):
            for feature in stage.network.event_features:
                check_inputs(data, feature.reads, f"the event feature {EVENT_FEATURES.name_of(type(feature))}")
    for name in ("half_life_days", "newest_days"):
        if isinstance(getattr(settings.training, name), float) and data.event_times is None:
            raise DataError(
                f"training.{name} is given, and the data set has no times",
                f"Prepare it from a log with timestamps, or set training.{name}=null.",
            )
    if settings.rounds:
        settings.distill.method.check(settings.training.model, data.num_items)


@contextlib.contextmanager
def locked(
    folder: Path, settings: DistillationSettings, data: Dataset, origin: dict[str, Any] | None = None
) -> Iterator[None]:
    """Makes the run folder where there is none, and keeps two trainings out of it.

    The operating system lifts the lock of a process that died.
    """
    try:
        Run.start(folder, settings, data, locked=False, origin=origin)
    except LLMD4RecError:
        if not (folder / "run.json").exists():
            raise
        # Another process was faster; what it made is looked at like any other.
        Run.start(folder, settings, data, locked=False, origin=origin)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{folder} is being trained by another process", "Wait for it or stop it; two would spoil each other."
        ) from error
    try:
        yield
    finally:
        lock.release()


def carried_out(
    settings: DistillationSettings,
    data: Dataset,
    folder: Path | str | None,
    work: Callable[[Run], None],
    *,
    backend: Backend,
    origin: dict[str, Any] | None = None,
    first: Callable[[Run], None] = lambda run: None,
) -> Run:
    """A run folder, made or found and kept from others, in which work is done unless the run is finished.

    Args:
        settings: of the run.
        data: to train on.
        folder: of the run; None: a temporary one.
        work: done by all processes.
        backend: the processes that train together.
        origin: what the run comes from; None: it is trained from nothing.
        first: done before it in a folder that is new or unfinished, by the first process alone.
    """
    path = Path(folder or backend.from_first(new_folder() if backend.first else ""))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with locked(path, settings, data, origin) if backend.first else contextlib.nullcontext():
        if backend.first:
            opened = Run.start(path, settings, data, origin=origin)
            if not opened.record.finished:
                first(opened)
            tidy(opened)
        backend.wait()  # until the folder is there and in order
        run = Run.start(path, settings, data, origin=origin)
        if not run.record.finished:
            work(run)
        backend.wait()  # nobody scores what is not yet written
    return run
