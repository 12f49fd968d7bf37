"""`llmd4rec compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmd4rec.cli.evaluate import STAGES, Targets
from llmd4rec.cli.opening import TrustCode, open_run


def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder: what is compared against.")],
    run_b: Annotated[Path, typer.Argument(help="Another run folder, or the same one.")],
    stage_a: Annotated[str, typer.Option(metavar="ID", help=f"Of the first run: {STAGES}.")] = "served",
    stage_b: Annotated[str, typer.Option(metavar="ID", help="Of the second run.")] = "served",
    filter_seen: Annotated[
        bool | None,
        typer.Option(
            "--filter-seen/--no-filter-seen",
            help="Leave items of the history out of the ranking, or keep them \\[default: as in the second run].",
        ),
    ] = None,
    targets: Targets = "next",
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The runs' data set, if it is not where it was.")
    ] = None,
    trust_code: TrustCode = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two models user by user: differences with an interval and a paired test, overall and by slice.

    Examples:

      llmd4rec compare runs/first runs/first --stage-a undistilled --stage-b served

      llmd4rec compare runs/sasrec runs/default --json
    """
    from llmd4rec.evaluation.significance import compare as compare_evaluations
    from llmd4rec.log import print_json, stdout_console
    from llmd4rec.runs.results import saved_or_scored

    a, b = open_run(run_a, trust_code), open_run(run_b, trust_code)
    filtered = b.settings.evaluation.filter_seen if filter_seen is None else filter_seen
    first = saved_or_scored(a, stage_a, filtered, data, targets)
    second = saved_or_scored(b, stage_b, filtered, data, targets)
    result = compare_evaluations(first, second)
    if json_output:
        print_json(result.to_json())
        return

    stdout_console().print(result.table())
