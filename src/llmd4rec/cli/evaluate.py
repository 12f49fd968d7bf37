"""`llmd4rec evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmd4rec.cli.opening import TrustCode, open_run, refuse_given

FilterSeen = Annotated[
    bool | None,
    typer.Option(
        "--filter-seen/--no-filter-seen",
        help="Leave items of the history out of the ranking, or keep them \\[default: as in the run].",
    ),
]
STAGES = (
    "undistilled, teacher-1, llm, llm-round-1, distilled-round-1 or distilled (the last round), or one of them with "
    "the memory, as in distilled+memory or beside-memory+memory; memory; or served"
)
Split = Literal["test", "valid"]
Targets = Annotated[
    str,
    typer.Option(
        metavar="next|next:K|all",
        help="What is to be found of each user: the next item, the next K, or everything held out of the split.",
    ),
]
Windows = Annotated[int, typer.Option(min=1, max=1000, help="With --rolling: how many windows.")]
Every = Annotated[str, typer.Option(metavar="SPAN", help="With --rolling: length of a window, such as 7d or 6h.")]
ChooseOn = Annotated[
    int,
    typer.Option(min=0, help="With --rolling: weights are chosen on the first so many windows, which are in no total."),
]
CountTo = Annotated[
    Literal["window", "event"],
    typer.Option(help="With --rolling: the memory has counted everything before the window, or before each target."),
]
History = Annotated[
    Literal["window", "event"] | None,
    typer.Option(
        help="With --rolling: whose next item is to be found: users with a history before the window, or with an event "
        "before the target, for logs of short sessions \\[default: as `prepare` chose targets]."
    ),
]
Released = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="With --rolling: a field of the catalogue with dates; what comes out after the window's start is no "
        "candidate \\[default: every item is one].",
    ),
]


#: What is asked of windows alone.
ROLLING_ONLY = ("windows", "every", "choose_on", "modes", "count_to", "history", "released")


def evaluate(
    context: typer.Context,
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
    rolling: Annotated[
        bool,
        typer.Option(
            "--rolling",
            help="Of a run on a temporal split: windows behind the test cut, in each the next item of every user.",
        ),
    ] = False,
    windows: Windows = 10,
    every: Every = "7d",
    choose_on: ChooseOn = 3,
    modes: Annotated[
        str,
        typer.Option(
            metavar="MODE,...",
            help="With --rolling, what happens to the model before each window: frozen, updated, refitted.",
        ),
    ] = "frozen",
    count_to: CountTo = "window",
    history: History = None,
    released: Released = None,
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

      llmd4rec evaluate runs/temporal --rolling --modes frozen,updated
    """
    from llmd4rec.log import logger, print_json, stdout_console
    from llmd4rec.runs.results import evaluation_table, score

    if rolling:
        why, remedy = (
            "has no meaning with --rolling, which evaluates the run's own data behind its test cut",
            "Leave it out.",
        )
        refuse_given(context, ("split", "other_data"), why, remedy)
    else:
        refuse_given(context, ROLLING_ONLY, "is for --rolling", "Add --rolling, or leave it out.")
    opened = open_run(run, trust_code)
    if rolling:
        from llmd4rec.evaluation.rolling_tables import print_rolling
        from llmd4rec.evaluation.windows import Rolling, seconds_of
        from llmd4rec.runs.rolling import score_rolling

        asked = Rolling(
            windows=windows,
            every=seconds_of(every),
            choose_on=choose_on,
            count_to=count_to,
            targets=targets,
            history=history,
            released=released,
            filter_seen=opened.settings.evaluation.filter_seen if filter_seen is None else filter_seen,
        )
        kinds = tuple(mode.strip() for mode in modes.split(","))
        found = score_rolling(opened, opened.load_data(data), stage, asked=asked, modes=kinds)
        if json_output:
            print_json(found.to_json())
        else:
            print_rolling(found, f"{run}, {opened.resolve(stage)}")
        return
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
