"""`llmd4rec recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmd4rec.cli.evaluate import STAGES, FilterSeen
from llmd4rec.cli.opening import TrustCode, open_recommender, open_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmd4rec.inference.types import Answer, Filters, Request


def recommend(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, folder made by `llmd4rec export`, or hub id of one.")
    ],
    history: Annotated[
        str | None,
        typer.Option(
            help='Item identifiers, oldest first: "a,b,c" as in a CSV line ("x,y" in quotes if an identifier holds a '
            'comma), or a JSON list ["a","b"].'
        ),
    ] = None,
    users: Annotated[
        str | None,
        typer.Option(help="Instead of --history: `all` users of the data set, or some, written as items are above."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the recommendations of --users go: .parquet, .csv or .jsonl.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Data set with the users, which may be newer \\[default: the run's]."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    stage: Annotated[
        str, typer.Option(metavar="ID", help=f"Which trained model of a run or an export: {STAGES}.")
    ] = "served",
    filter_seen: FilterSeen = None,
    exclude: Annotated[str, typer.Option(help="Items that must not come, written as the history is.")] = "",
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="Only items with FIELD=VALUE, FIELD>=NUMBER or FIELD<=NUMBER; may be given several times (several "
            "values of one field: any of them).",
        ),
    ] = None,
    diversity: Annotated[float, typer.Option(help="From 0 (scores alone) to 1 (items unlike each other).")] = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Say which items of the history moved a score.")] = False,
    times: Annotated[
        str | None,
        typer.Option(
            help="When each item of the history was chosen, for models that read times: seconds since 1970 or ISO "
            "text, written as the history is."
        ),
    ] = None,
    now: Annotated[
        str | None, typer.Option(help="The moment for which is recommended, likewise \\[default: the current time].")
    ] = None,
    skip_unknown: Annotated[bool, typer.Option(help="Leave out identifiers that are not in the catalogue.")] = False,
    trust_code: TrustCode = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Recommend the next items for a history, also of a user never seen in training; or for all users of a data set.

    Examples:

      llmd4rec recommend runs/first --history "50,181,172" -k 10

      llmd4rec recommend exports/first --history '["id, with comma", "other"]' --filter brand=Dove --json

      llmd4rec recommend runs/first --users all --out recs.parquet
    """
    from llmd4rec.errors import ConfigError
    from llmd4rec.inference.types import Request

    if (history is None) == (users is None):
        raise ConfigError("give either --history or --users", "For example: --history a,b,c or --users all.")
    if users is not None and out is None:
        raise ConfigError("--users needs a file to write to", "Give one: --out recs.parquet")
    of_one = {"--explain": explain, "--times": times, "--skip-unknown": skip_unknown, "--json": json_output}
    for option, value in of_one.items():
        if users is not None and value:
            raise ConfigError(f"{option} is for --history", "Leave it out; --out names the format by its ending.")
    for path, name in ((out, "--out"), (data, "--data")):
        if history is not None and path is not None:
            raise ConfigError(f"{name} is for --users", "Leave it out, or name --users.")
    request = Request(
        identifiers(history or "", "the history"),
        k,
        filter_seen=filter_seen,
        exclude=identifiers(exclude, "--exclude"),
        filters=parse_filters(conditions or []),
        diversity=diversity,
        explain=explain,
        skip_unknown=skip_unknown or users is not None,
        times=None if times is None else identifiers(times, "--times"),
        now=now,
    )
    if users is not None and out is not None:
        _many(source, users, out, data, stage, request, trust_code)
        return
    recommender = open_recommender(source, stage, trust_code)
    answer = recommender.recommend_many([request])[0]
    if json_output:
        _print_json(recommender.info.stage, request.history, answer)
    else:
        print(answer)


def _print_json(stage: str, history: Sequence[str | int], answer: Answer) -> None:
    from llmd4rec.log import print_json

    found = []
    for item in answer.items:
        found.append({"item_id": item.item_id, "title": item.title, "score": item.score})
        if item.reasons is not None:
            found[-1]["reasons"] = [vars(reason) for reason in item.reasons]
    print_json(
        {
            "stage": stage,
            "history": history,
            "recommendations": found,
            "unknown": answer.unknown,
            "fallback": answer.fallback,
        }
    )


def _many(
    source: Path, users: str, out: Path, data: Path | None, stage: str, request: Request, trust_code: bool
) -> None:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.errors import ConfigError
    from llmd4rec.inference.batch import Histories, check_output_path, recommend_histories, write

    check_output_path(out)
    recommender = open_recommender(source, stage, trust_code)
    if data is not None:
        dataset = Dataset.load(data)
    elif recommender.info.format:
        raise ConfigError(f"{source} is an export, which holds no users", "Name a prepared data set with --data.")
    else:
        dataset = open_run(source, trust_code).load_data()
    histories = Histories.of_data(dataset, None if users == "all" else identifiers(users, "--users"))
    table = recommend_histories(recommender, histories, request)
    write(table, out)
    print(f"{out}: {table.height:,} recommendations for {len(histories.users):,} users")


def identifiers(text: str, what: str) -> list[str]:
    """Identifiers out of one line: a JSON list, or values separated by commas, quoted where they hold a comma.

    Raises:
        DataError: the text is neither.
    """
    import csv
    import json

    from llmd4rec.errors import DataError

    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{what} is not a JSON list: {error}", 'Write it as ["a", "b"] or "a,b".') from error
        return [str(value) for value in values]
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{what} cannot be split at its commas: {error}", 'Close every quote, or write a JSON list ["a", "b"].'
        ) from error
    return [value.strip() for row in rows for value in row if value.strip()]


def parse_filters(conditions: list[str]) -> Filters | None:
    """Conditions of --filter; None without any.

    Raises:
        DataError: one is no condition.
    """
    import re

    from llmd4rec.errors import DataError
    from llmd4rec.inference.types import Filters

    any_of: dict[str, list[str]] = {}
    bounds: dict[str, dict[str, float]] = {">=": {}, "<=": {}}
    for condition in conditions:
        parts = re.fullmatch(r"\s*(.+?)\s*(>=|<=|=)\s*(.*?)\s*", condition)
        if parts is None or not parts[3]:
            raise DataError(
                f"--filter {condition!r} is no condition", "Write FIELD=VALUE, 'FIELD>=NUMBER' or 'FIELD<=NUMBER'."
            )
        name, sign, value = parts.groups()
        if sign == "=":
            any_of.setdefault(name, []).append(value)
            continue
        try:
            bounds[sign][name] = float(value)
        except ValueError as error:
            raise DataError(f"--filter {condition!r}: {value!r} is no number", "Compare with a number.") from error
    return Filters(any_of, bounds[">="], bounds["<="]) if conditions else None
