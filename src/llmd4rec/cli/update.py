"""`llmd4rec update`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmd4rec.cli.opening import TrustCode, open_run


def update(
    run: Annotated[Path, typer.Argument(help="Run folder, finished: of `train`, `refit` or `update`.")],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="A newer data set, with the older rows that are still wanted.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new run; an unfinished update is continued.")],
    step_days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            min=1e-9,
            max=1e6,
            help="New rows are learned in order of time, those of so many days at once, in eight steps at most "
            "\\[default: 7].",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the new rows of a step and a sample of older ones \\[default: 6]."),
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the older training positions in each pass \\[default: 0.02]."),
    ] = None,
    half_life: Annotated[
        float | None,
        typer.Option(
            "--half-life",
            metavar="DAYS",
            min=1e-9,
            help="Older rows are drawn half as often for each so many days \\[default: 60].",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, help="Peak learning rate \\[default: 0.002].")
    ] = None,
    remember: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of a distillation term whose teacher is the model as it was \\[default: 0]."),
    ] = None,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Drop items that the new data set's catalogue does not have.")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Bring a served model up to date: go on from its weights with the rows that have come since.

    Items are found again by their identifiers, new ones are placed by their features, and users have nothing of their
    own. New rows of several weeks are learned in order, a week at a time, in eight steps at most: the first step takes
    all that is older. Every row of the data set is trained on, so `evaluate` takes only newer data. Whatever stops it,
    the same command goes on.

    Examples:

      llmd4rec update runs/first --data data/this-week --out runs/this-week

      llmd4rec update runs/this-week --data data/next-week --out runs/next-week --replay 0.5
    """
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.log import logger
    from llmd4rec.runs.update import Update
    from llmd4rec.runs.update import update as update_run

    given = {
        "step_days": step_days,
        "epochs": epochs,
        "replay": replay,
        "half_life_days": half_life,
        "learning_rate": learning_rate,
        "remember": remember,
        "drop_missing": drop_missing,
    }
    how = Update(**{name: value for name, value in given.items() if value is not None})
    made = update_run(open_run(run, trust_code), Dataset.load(data), out, how=how)
    logger.info(f"{out}: {made.resolve()}, trained on every row; nothing is held out")
