"""`llmd4rec refit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmd4rec.cli.opening import TrustCode, open_run


def refit(
    run: Annotated[Path, typer.Argument(help="Run folder, finished, made by `llmd4rec train`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new run; an unfinished refit is continued.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="A newer data set \\[default: the run's own, with what it held out]."),
    ] = None,
    keep_teachers: Annotated[
        bool,
        typer.Option(
            "--keep-teachers", help="Keep teachers and language model as they are; they read the longer histories."
        ),
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Train so many independent stages side by side.")
    ] = 1,
    trust_code: TrustCode = False,
) -> None:
    """Train a run's plan once more on all interactions, those that were held out too.

    Epochs, ensemble weights, logit adjustment, rounds and what is served are as validation chose them in the run.
    Nothing is held out any more: `evaluate` takes only newer data, and an export carries the figures of the run that it
    came from. Whatever stops it, the same command goes on.

    Examples:

      llmd4rec refit runs/first --out runs/first-all

      llmd4rec refit runs/first --data data/newer --out runs/newer --keep-teachers
    """
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.log import logger
    from llmd4rec.runs.refit import refit as refit_run

    given = None if data is None else Dataset.load(data)
    made = refit_run(open_run(run, trust_code), given, out, keep_teachers=keep_teachers, jobs=jobs)
    logger.info(f"{out}: {made.resolve()}, trained on every row; nothing is held out")
