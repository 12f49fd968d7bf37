"""A run's plan once more, on all interactions: what validation chose is kept, and nothing is held out any more.

Epochs, ensemble weights, logit adjustment, rounds and the served stage are those of the run that it comes from. An
epoch of the longer log has more steps; the schedule of the learning rate is planned as before.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError, RunError
from llmd4rec.io.files import atomic_file
from llmd4rec.log import logger
from llmd4rec.runs.opening import carried_out, check_data
from llmd4rec.runs.origin import CHOSEN, origin_of
from llmd4rec.runs.pipeline import Pipeline
from llmd4rec.runs.run import Run
from llmd4rec.training.backends.torch_distributed import init_distributed


def refit(
    run: Run,
    data: Dataset | None = None,
    folder: Path | str | None = None,
    *,
    keep_teachers: bool = False,
    jobs: int = 1,
) -> Run:
    """Trains the plan of a finished run on every row of a data set, or goes on with that.

    Args:
        run: whose settings and choices are taken.
        data: to train on; None: the run's own. Its held-out rows are trained on too.
        folder: of the new run; an unfinished refit found there is continued. None: a temporary one.
        keep_teachers: take the weights of teachers and language model from the run; they read the longer histories.
        jobs: how many independent stages are trained side by side.

    Raises:
        RunError: the run is not finished, is an update, or `folder` holds something else; or teachers are kept for
            another catalogue.
        DataError: the data cannot be trained on.
    """
    backend = init_distributed()
    given = run.load_data() if data is None else data
    if run.record.origin is not None and run.record.origin["kind"] == "update":
        raise RunError(
            f"{run.folder} is an update: validation chose no epochs in it",
            f"Refit the run that it came from: llmd4rec refit {run.record.origin['run']} --data DATA --out RUN2",
        )
    stages = {
        stage: {name: values[name] for name in CHOSEN if name in values} for stage, values in run.record.stages.items()
    }
    kept = [stage.id for stage in run.plan if keep_teachers and stage.role != "model" and stage.id in stages]
    if keep_teachers and not kept:
        logger.warning(f"{run.folder} has no teachers that could be kept")
    origin = origin_of(run, "refit", given, stages=stages, kept=kept)
    whole = given.whole()
    if kept and whole.item_ids != run.catalogue()["item_id"].to_list():
        raise RunError(
            "the teachers can be kept only for the catalogue that they were trained on, and this data set has another",
            "Leave out --keep-teachers: they are then trained anew.",
        )
    check_data(run.settings, whole, validates=False)
    if given.event_times is None and any(
        each.get(name) is not None for each in stages.values() for name in ("half_life_days", "newest_days")
    ):
        raise DataError(
            f"{given.path or 'the data set'} has no times, and {run.folder} was trained by age",
            "Prepare it from a log with timestamps, or train a new run on it.",
        )

    def take_over(new: Run) -> None:
        for stage in kept:
            if stage not in new.record.stages:
                _copy(run, new, stage)
        if kept:
            new.record.llm = run.record.llm
            new.save()
            logger.info(f"kept: {', '.join(kept)}")

    return carried_out(
        run.settings,
        whole,
        folder,
        lambda new: Pipeline(new, whole, backend=backend).run(jobs),
        backend=backend,
        origin=origin,
        first=take_over,
    )


def _copy(run: Run, new: Run, stage: str) -> None:
    """Takes over the weights and the figures of a stage."""
    run.weights_of(stage)  # which are refused where they are not what the training ended with
    source, target = run.checkpoint_of(stage), new.checkpoint_of(stage)
    target.mkdir(parents=True, exist_ok=True)
    for name in ("best.safetensors", "metrics.jsonl"):
        if (source / name).exists():
            with atomic_file(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
    new.record.stages[stage] = dict(run.record.stages[stage])
