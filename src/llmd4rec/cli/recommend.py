"""`llmd4rec recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmd4rec.cli.evaluate import Model, Seen, Stage


def recommend(
    run: Annotated[Path, typer.Argument(help="Run folder made by `llmd4rec train`.")],
    history: Annotated[
        str,
        typer.Option(
            help='Item identifiers, oldest first: "a,b,c" as in a CSV line ("x,y" in quotes if an identifier holds a '
            'comma), or a JSON list ["a","b"].'
        ),
    ],
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    model: Annotated[Model, typer.Option(help="The served CRM, the language model or the wider CRM.")] = "crm",
    stage: Annotated[
        Stage | None, typer.Option(help="Before or after distillation [default: the better on validation].")
    ] = None,
    seen: Annotated[Seen, typer.Option(help="Whether items of the history may come back.")] = "remove",
    skip_unknown: Annotated[bool, typer.Option(help="Leave out identifiers that are not in the catalogue.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Recommend the next items for a history, also of a user never seen in training.

    Examples:

      llmd4rec recommend runs/first --history "50,181,172" -k 10

      llmd4rec recommend runs/first --history '["id, with comma", "other"]' --json
    """
    import json

    from llmd4rec.distill.recommend import parse_history
    from llmd4rec.distill.run import Run

    opened = Run.open(run)
    chosen = stage or opened.served_stage(model)
    recommender = opened.recommender(model, chosen)
    items = parse_history(history)
    found = recommender.recommend(items, k, seen=seen, skip_unknown=skip_unknown)
    if json_output:
        typer.echo(
            json.dumps(
                {
                    "model": model,
                    "stage": chosen,
                    "history": items,
                    "recommendations": [item.to_json() for item in found],
                },
                ensure_ascii=False,
            )
        )
        return
    from rich.table import Table
    from rich.text import Text  # a title in [brackets] is no markup

    from llmd4rec.progress import stdout_console

    table = Table("", "item", "title", "score", box=None, header_style="bold")
    for place, item in enumerate(found, 1):
        table.add_row(str(place), Text(item.item_id), Text(item.title), f"{item.score:.3f}")
    stdout_console().print(table)
