"""`llmd4rec evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmd4rec.cli.opening import TrustCode, open_run

FilterSeen = Annotated[
    bool | None,
    typer.Option(
        "--filter-seen/--no-filter-seen",
        help="Leave items of the history out of the ranking, or keep them \\[default: as in the run].",
    ),
]
STAGES = "undistilled, teacher-1, llm, llm-round-1, distilled-round-1, distilled (the last round) or served"
Split = Literal["test", "valid"]
Targets = Annotated[
    str,
    typer.Option(
        metavar="next|next:K|all",
        help="What is to be found of each user: the next item, the next K, or everything held out of the split.",
    ),
]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder made by `llmd4rec train`.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The run's data set, if it is not where it was.")
    ] = None,
    stage: Annotated[
        str, typer.Option(metavar="ID", help=f"Which trained model: {STAGES}, which validation chose.")
    ] = "served",
    filter_seen: FilterSeen = None,
    split: Annotated[Split, typer.Option(help="Which held-out items.")] = "test",
    targets: Targets = "next",
    other_data: Annotated[
        bool,
        typer.Option(
            "--other-data",
            help="Take a --data that the run was not trained on, such as a newer log of the same items; "
            "the result says so.",
        ),
    ] = False,
    trust_code: TrustCode = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Rank the whole catalogue for every held-out item: the run's metrics (evaluation.metrics), overall and by slice.

    With --targets all, a user's history is what precedes the first of them, and recall, precision and MAP differ from
    HR and MRR. A leave-one-out split holds one item out, and has no more to find.

    Per-user results are saved in the run folder under evaluation/, for `llmd4rec compare`.

    Examples:

      llmd4rec evaluate runs/first

      llmd4rec evaluate runs/first --stage llm --no-filter-seen --json

      llmd4rec evaluate runs/first --targets next:5

      llmd4rec evaluate runs/first --data data/newer --other-data
    """
    from llmd4rec.log import logger, print_json, stdout_console
    from llmd4rec.runs.results import evaluation_table, score

    opened = open_run(run, trust_code)
    result = score(
        opened,
        opened.load_data(data, other=other_data),
        stage,
        filter_seen=filter_seen,
        split=split,
        targets=targets,
        other_data=other_data,
    )
    if result.other_data is not None:
        logger.warning(result.other_data["warning"])
    if json_output:
        print_json(result.to_json())
        return

    stdout_console().print(evaluation_table(result))
