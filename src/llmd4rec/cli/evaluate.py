"""`llmd4rec evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Literal["crm", "llm", "wide"]
Stage = Literal["alone", "distilled"]
Seen = Literal["keep", "remove"]
Split = Literal["test", "valid"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder made by `llmd4rec train`.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The run's data set, if it is not where it was.")
    ] = None,
    model: Annotated[Model, typer.Option(help="The served CRM, the language model or the wider CRM.")] = "crm",
    stage: Annotated[
        Stage | None, typer.Option(help="Before or after distillation \\[default: distilled if the run has it].")
    ] = None,
    seen: Annotated[
        Seen | None, typer.Option(help="Whether items of the history are candidates \\[default: as in the run].")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which held-out items.")] = "test",
    other_data: Annotated[
        bool,
        typer.Option(
            "--other-data",
            help="Take a --data that the run was not trained on, such as a newer log of the same items; "
            "the result says so.",
        ),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Rank the whole catalogue for every held-out item: HR, NDCG, MRR, slices, coverage, popularity.

    Per-user results are saved in the run folder under evaluation/, for `llmd4rec compare`.

    Examples:

      llmd4rec evaluate runs/first

      llmd4rec evaluate runs/first --model llm --stage alone --seen keep --json

      llmd4rec evaluate runs/first --data data/newer --other-data
    """
    from llmd4rec.log import print_json, stdout_console
    from llmd4rec.runs.results import evaluation_table, score
    from llmd4rec.runs.run import Run

    opened = Run.open(run)
    result = score(
        opened,
        opened.load_data(data, other=other_data),
        model,
        stage or opened.default_stage(model),
        seen=seen,
        split=split,
        other_data=other_data,
    )
    if result.other_data is not None:
        print(f"LOOK: {result.other_data['warning']}", file=sys.stderr)
    if json_output:
        print_json(result.to_json())
        return

    stdout_console().print(evaluation_table(result))
