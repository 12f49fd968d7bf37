"""`llmd4rec evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Model(StrEnum):
    """Which of the two models."""

    crm = "crm"
    llm = "llm"


class Stage(StrEnum):
    """Before or after mutual distillation."""

    alone = "alone"
    distilled = "distilled"


class Seen(StrEnum):
    """Whether items of the history are candidates."""

    keep = "keep"
    remove = "remove"


class Split(StrEnum):
    """Which held-out items."""

    test = "test"
    valid = "valid"


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder made by `llmd4rec train`.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The run's data set, if it is not where it was.")
    ] = None,
    model: Annotated[Model, typer.Option(help="The served CRM or the language model.")] = Model.crm,
    stage: Annotated[
        Stage | None, typer.Option(help="Before or after distillation [default: distilled if the run has it].")
    ] = None,
    seen: Annotated[
        Seen | None, typer.Option(help="Whether items of the history are candidates [default: as in the run].")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which held-out items.")] = Split.test,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Rank the whole catalogue for every held-out item: HR, NDCG, MRR, slices, coverage, popularity.

    Per-user results are saved in the run folder under evaluation/, for `llmd4rec compare`.

    Examples:

      llmd4rec evaluate runs/first

      llmd4rec evaluate runs/first --model llm --stage alone --seen keep --json
    """
    import json

    from llmd4rec.distill.results import default_stage, score
    from llmd4rec.distill.run import Run

    opened = Run.open(run)
    result = score(
        opened,
        opened.load_data(data),
        model.value,
        stage.value if stage else default_stage(opened, model.value),
        seen=seen.value if seen else None,
        split=split.value,
    )
    if json_output:
        typer.echo(json.dumps(result.to_json()))
        return
    from rich.console import Console

    Console().print(result.table())
