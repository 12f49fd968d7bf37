"""`llmd4rec compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmd4rec.cli.evaluate import Model, Seen, Stage


def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder: what is compared against.")],
    run_b: Annotated[Path, typer.Argument(help="Another run folder, or the same one.")],
    model: Annotated[Model, typer.Option(help="The served CRM, the language model or the wider CRM.")] = "crm",
    stage_a: Annotated[Stage | None, typer.Option(help="Of the first run \\[default: distilled if it has it].")] = None,
    stage_b: Annotated[
        Stage | None, typer.Option(help="Of the second run \\[default: distilled if it has it].")
    ] = None,
    seen: Annotated[
        Seen | None, typer.Option(help="Whether items of the history are candidates \\[default: as in the second run].")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The runs' data set, if it is not where it was.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two models user by user: differences with an interval and a paired test, overall and by slice.

    Examples:

      llmd4rec compare runs/first runs/first --stage-a alone --stage-b distilled

      llmd4rec compare runs/sasrec runs/mutual --json
    """
    from llmd4rec.evaluation.significance import compare as compare_evaluations
    from llmd4rec.log import print_json, stdout_console
    from llmd4rec.runs.results import saved_or_scored
    from llmd4rec.runs.run import Run

    a, b = Run.open(run_a), Run.open(run_b)
    name = model
    chosen_seen = seen or b.settings.evaluation.seen
    first = saved_or_scored(a, name, stage_a or a.default_stage(name), chosen_seen, data)
    second = saved_or_scored(b, name, stage_b or b.default_stage(name), chosen_seen, data)
    result = compare_evaluations(first, second)
    if json_output:
        print_json(result.to_json())
        return

    stdout_console().print(result.table())
