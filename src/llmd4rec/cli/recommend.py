"""`llmd4rec recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmd4rec.cli.evaluate import STAGES, FilterSeen
from llmd4rec.cli.opening import TrustCode, open_run

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.inference.recommender import Recommender
    from llmd4rec.inference.types import Answer, Filters, Request
    from llmd4rec.runs.run import Run


def recommend(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a folder made by `llmd4rec export`.")],
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
        str | None, typer.Option(metavar="ID", help=f"Which trained model of a run: {STAGES} \\[default: served].")
    ] = None,
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
    for given, name in ((explain, "--explain"), (skip_unknown, "--skip-unknown"), (json_output, "--json")):
        if users is not None and given:
            raise ConfigError(f"{name} is for --history", "Leave it out; --out names the format by its ending.")
    if history is not None and out is not None:
        raise ConfigError("--out is for --users", "Leave it out, or write `--json > FILE`.")
    request = Request(
        k=k,
        filter_seen=filter_seen,
        exclude=identifiers(exclude, "--exclude"),
        filters=parse_filters(conditions or []),
        diversity=diversity,
        explain=explain,
    )
    if users is not None and out is not None:
        _many(source, users, out, data, stage, request, trust_code)
    else:
        _one(source, history or "", data, stage, request, skip_unknown, json_output, trust_code)


def _one(
    source: Path,
    history: str,
    data: Path | None,
    stage: str | None,
    request: Request,
    skip_unknown: bool,
    json_output: bool,
    trust_code: bool,
) -> None:
    from dataclasses import replace

    from llmd4rec.inference.types import require_known
    from llmd4rec.log import print_json

    recommender, _ = _open(source, stage, data, trust_code, with_fields=request.filters is not None)
    items = identifiers(history, "the history")
    known, unknown = recommender.catalogue.rows(items)
    require_known(len(known) > 0, unknown, recommender.catalogue.ids, skip_unknown=skip_unknown)
    answer = recommender.recommend_many([replace(request, history=items)])[0]
    if json_output:
        print_json(
            {
                "stage": recommender.info.stage,
                "history": items,
                "recommendations": [_plain(item) for item in answer.items],
            }
        )
        return
    _print(answer)


def _plain(item: Any) -> dict[str, Any]:
    plain = {"item_id": item.item_id, "title": item.title, "score": item.score}
    if item.reasons is not None:
        plain["reasons"] = [vars(reason) for reason in item.reasons]
    return plain


def _print(answer: Answer) -> None:
    from rich.table import Table
    from rich.text import Text  # a title in [brackets] is no markup

    from llmd4rec.log import stdout_console

    reasons = any(item.reasons for item in answer.items)
    columns = ["", "item", "title", "score", *(["reasons"] if reasons else [])]
    table = Table(*columns, box=None, header_style="bold")
    for place, item in enumerate(answer.items, 1):
        why = "\n".join(f"{reason.effect:+.2f} {reason.title}" for reason in item.reasons or ())
        cells: list[str | Text] = [str(place), Text(item.item_id), Text(item.title), f"{item.score:.3f}"]
        table.add_row(*cells, *([Text(why)] if reasons else []))
    stdout_console().print(table)


def _many(
    source: Path, users: str, out: Path, data: Path | None, stage: str | None, request: Request, trust_code: bool
) -> None:
    from dataclasses import replace

    from llmd4rec.errors import ConfigError
    from llmd4rec.inference.batch import check_output_path, histories_of, recommend_all, write

    check_output_path(out)
    recommender, dataset = _open(source, stage, data, trust_code, with_fields=True)
    if dataset is None:
        raise ConfigError(f"{source} is an export, which holds no users", "Name a prepared data set with --data.")
    wanted = None if users == "all" else identifiers(users, "--users")
    histories = histories_of(dataset, wanted)
    table, popular = recommend_all(recommender, histories, replace(request, explain=False))
    write(table, out)
    line = f"{out}: {table.height:,} recommendations for {len(histories.users):,} users"
    print(line + (f"; {popular:,} without a known item got popular ones" if popular else ""))


def _open(
    source: Path, stage: str | None, data: Path | None, trust_code: bool, *, with_fields: bool
) -> tuple[Recommender, Dataset | None]:
    """The recommender of a run or an export; and the data set, if it is named or needed for the catalogue's fields."""
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.distillation.stage_ids import SERVED, is_distilled
    from llmd4rec.errors import ConfigError
    from llmd4rec.inference.recommender import Recommender

    if (source / "export.json").is_file():
        recommender = Recommender.load(source)
        names = {recommender.info.stage, SERVED, *(["distilled"] if is_distilled(recommender.info.stage) else [])}
        if stage is not None and stage not in names:
            other = recommender.undistilled
            if other is None or stage != other.info.stage:
                have = recommender.info.stage + (f" and {other.info.stage}" if other is not None else "")
                raise ConfigError(
                    f"{source} is an export of {have}, not of {stage}", "Leave out --stage, or name one of them."
                )
            recommender = other
        return recommender, Dataset.load(data) if data is not None else None
    from llmd4rec.log import logger

    run = open_run(source, trust_code)
    dataset = run.load_data(data, other=data is not None) if with_fields or data is not None else None
    own = dataset
    if dataset is not None and not dataset.is_known_as(run.record.data):
        own = _own_data(run) or dataset
        known = run.catalogue()["item_id"]
        unknown = int((~dataset.catalogue["item_id"].is_in(known.implode())).sum())
        logger.warning(
            f"{data} is not what {source} was trained on: the histories are taken from there, and {unknown:,} of its "
            f"{dataset.num_items:,} items, which the model does not know, are left out"
        )
    return run.recommender(stage or "served", own, other=True), dataset


def _own_data(run: Run) -> Dataset | None:
    """The data set that a run was trained on, where it is still there: its catalogue says what can be filtered by."""
    from llmd4rec.errors import LLMD4RecError

    try:
        return run.load_data()
    except LLMD4RecError:
        return None


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
