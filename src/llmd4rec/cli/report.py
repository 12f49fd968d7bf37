"""`llmd4rec report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmd4rec.cli.opening import TrustCode, open_run


def report(
    run: Annotated[Path, typer.Argument(help="Run folder made by `llmd4rec train`.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The run's data set, if it is not where it was.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write it \\[default: RUN/report.html].")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Write one self-contained HTML page about a run, and print its table of results.

    Of a refitted or updated run nothing is held out: the page has the figures of the run that it came from.

    Example:

      llmd4rec report runs/first
    """
    from llmd4rec.report.from_run import write_run_report
    from llmd4rec.runs.results import print_table, score_run

    opened = open_run(run, trust_code)
    dataset = opened.load_data(data)
    results = [] if opened.record.origin is not None else score_run(opened, dataset)
    print_table(results, opened, write_run_report(opened, dataset, results, out))
