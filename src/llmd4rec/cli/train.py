"""`llmd4rec train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of settings; leave it out for all defaults.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Folder made by `llmd4rec prepare`.")] = None,
    run: Annotated[Path | None, typer.Option("--run", "-r", help="Run folder; an unfinished run is continued.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Afterwards score every model on the test items and write report.html.")
    ] = True,
    show_settings: Annotated[bool, typer.Option("--show-settings", help="Print every setting and stop.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train a recommender and a language model that teach each other.

    Trains the served CRM (SASRec) alone, then wider CRMs that only teach (most of the time goes there), then the
    language model, then language model and CRM in rounds of distillation. How much each teacher counts, epochs and
    rounds are chosen on the validation items.

    Whatever stops it, the same command goes on to the same numbers (on a GPU up to rounding). Settings may be changed
    in between where no training that has begun depends on them, such as those of the language model before its turn.
    Ctrl-C and SIGTERM write a checkpoint first; a second one does not wait for it. Exit codes: 0 finished; 2 something
    is wrong that going on would not cure; 130 Ctrl-C; 143 SIGTERM, and 137 killed, where a scheduler should start it
    again:

      until llmd4rec train -d data/mine -r runs/first; do [ $? -gt 130 ] || break; done

    Several processes share each batch, with results that differ by rounding and by what dropout draws (torchrun has
    exit codes of its own):

      torchrun --nproc-per-node 2 -m llmd4rec train -d data/mine -r runs/first

    Examples:

      llmd4rec train --data data/mine --run runs/first

      llmd4rec train my.yaml -d data/mine -r runs/r3 --set rounds=3 --set llm.layers=8

      llmd4rec train -d data/mine -r runs/alone --set rounds=0        (SASRec alone)
    """
    from llmd4rec.config.settings import describe, load_settings
    from llmd4rec.distillation.settings import MutualDistillation

    if show_settings:
        _print_settings(describe(MutualDistillation))
        return
    settings = load_settings(MutualDistillation, config, overrides or ())
    if data is None or run is None:
        raise typer.BadParameter("give --data DATA and --run RUN (see --help for an example)")
    if json_output and not evaluate:
        raise typer.BadParameter("--json prints the scores, which --no-evaluate leaves out; give one of the two")

    from llmd4rec.data.dataset import Dataset
    from llmd4rec.runs.results import print_table, score_run

    trained = settings.fit(Dataset.load(data), run)
    if evaluate and trained.writes:
        results = score_run(trained, Dataset.load(data))
        print_table(results, trained, as_json=json_output)


def _print_settings(rows: object) -> None:
    from rich.markup import escape
    from rich.table import Table

    from llmd4rec.log import stdout_console

    table = Table("setting", "default", "what it is", box=None, header_style="bold")
    for key, default, description in rows:  # type: ignore[attr-defined]
        table.add_row(key, escape(repr(default)), escape(description))
    stdout_console().print(table)
