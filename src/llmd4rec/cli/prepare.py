"""`llmd4rec prepare`: a raw log and a catalogue become a prepared data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmd4rec.data.ingest.choices import Duplicates, MissingTimes, Order, Quoting, Split, TargetHistory, Ties

_INPUT, _COLUMNS, _CLEANING, _SPLIT = "Input", "Columns", "Cleaning", "Split"


def prepare(
    interactions: Annotated[
        list[Path],
        typer.Option(
            help="The log, one row per interaction or per history: CSV, TSV, Parquet, JSON lines, RecBole .inter or "
            "S3-Rec text; plain, .gz or .zst. A folder of parts or a quoted pattern such as 'log/*.csv' is read in the "
            "natural order of names; may be repeated.",
            rich_help_panel=_INPUT,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to make.", rich_help_panel=_INPUT)],
    items: Annotated[
        Path | None,
        typer.Option(
            help="The catalogue, one row per item with its texts, in any of these formats.", rich_help_panel=_INPUT
        ),
    ] = None,
    encoding: Annotated[
        str, typer.Option(help="Encoding of text files, e.g. latin-1.", rich_help_panel=_INPUT)
    ] = "utf-8",
    columns: Annotated[
        str | None,
        typer.Option(
            help="Names of the columns of a log without a header line, such as user,item,time; a blank name leaves a "
            "column out.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    item_columns: Annotated[str | None, typer.Option(help="The same of the catalogue.", rich_help_panel=_INPUT)] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            help="What stands between the fields of the log, such as ; or :: (found from the first line if not given).",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    item_separator: Annotated[
        str | None, typer.Option(help="The same of the catalogue.", rich_help_panel=_INPUT)
    ] = None,
    quoting: Annotated[
        Quoting,
        typer.Option(
            help='Quotation marks in the log. double: doubled inside quoted fields ("5"" disk"), as Excel and pandas '
            'write; backslash: behind a backslash ("5\\" disk"), as Spark and MySQL write; none: they are text; auto: '
            "the one under which every row has as many fields as the header.",
            rich_help_panel=_INPUT,
        ),
    ] = "auto",
    item_quoting: Annotated[Quoting, typer.Option(help="The same of the catalogue.", rich_help_panel=_INPUT)] = "auto",
    user_col: Annotated[
        str | None, typer.Option(help="User column (guessed if not given).", rich_help_panel=_COLUMNS)
    ] = None,
    item_col: Annotated[
        str | None, typer.Option(help="Item column (guessed if not given).", rich_help_panel=_COLUMNS)
    ] = None,
    time_col: Annotated[
        str | None,
        typer.Option(
            help="Time column (guessed if not given): seconds to nanoseconds since 1970, or like 2024-01-31 12:34:56.",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    time_format: Annotated[
        list[str] | None,
        typer.Option(
            help="What the times are in where they do not tell, as strptime takes it (%d/%m/%Y %H:%M), or one of "
            "seconds, milliseconds, microseconds, nanoseconds, excel; once for each form.",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    position_col: Annotated[
        str | None,
        typer.Option(
            help="Column of the place in the user's history (guessed if not given).", rich_help_panel=_COLUMNS
        ),
    ] = None,
    item_id_col: Annotated[
        str | None, typer.Option(help="Item column of the catalogue (guessed if not given).", rich_help_panel=_COLUMNS)
    ] = None,
    text_cols: Annotated[
        str | None,
        typer.Option(
            help="Text columns of the catalogue, separated by commas (guessed if not given: title, category, ...).",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help='Keep only the rows for which this holds, before anything else: "rating >= 4", "click = 1", '
            '"event in (view, buy)", "user_id != \'NA\'", "time >= 2020-01-01"; once for each condition.',
            rich_help_panel=_CLEANING,
        ),
    ] = None,
    multi_cols: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=SIGN",
            help="A catalogue column that holds several values of an item, and the sign between them: 'genres=|'; "
            "tags=list for ['a', 'b'], tags=blank for words, 'brand=' for single values. Repeat it for more; columns "
            "not named are split where they look like it.",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    no_split: Annotated[
        bool,
        typer.Option("--no-split", help="Split no columns but those of --multi-cols.", rich_help_panel=_COLUMNS),
    ] = False,
    order_by: Annotated[
        Order,
        typer.Option(
            help="auto: by position if there is one, else by time, else as the rows stand.",
            rich_help_panel=_CLEANING,
        ),
    ] = "auto",
    ties: Annotated[
        Ties,
        typer.Option(
            help="What comes first of a user's interactions of one time: row: as they stand; last-first: the other way "
            "round; hash: by a hash of user and item, so that no item comes first everywhere.",
            rich_help_panel=_CLEANING,
        ),
    ] = "row",
    missing_times: Annotated[
        MissingTimes,
        typer.Option(
            help="drop: leave out the rows without the time (or position) that the order needs.",
            rich_help_panel=_CLEANING,
        ),
    ] = "refuse",
    duplicates: Annotated[
        Duplicates,
        typer.Option(
            help="exact: drop rows equal in user, item and time (or position) to an earlier one; keep: drop none; "
            "drop-consecutive: also an item that follows itself; drop: all but a user's first of each item.",
            rich_help_panel=_CLEANING,
        ),
    ] = "exact",
    k_core: Annotated[
        int,
        typer.Option(
            help="Drop users and items with fewer interactions, until none is left; 0: off.",
            rich_help_panel=_CLEANING,
        ),
    ] = 0,
    min_history: Annotated[
        int, typer.Option(help="Drop users with fewer interactions.", rich_help_panel=_CLEANING)
    ] = 1,
    max_history: Annotated[
        int | None,
        typer.Option(help="Keep only the last so many interactions of each user.", rich_help_panel=_CLEANING),
    ] = None,
    keep_unseen_items: Annotated[
        bool,
        typer.Option(
            "--keep-unseen-items",
            help="Keep items of the catalogue that nobody has interacted with.",
            rich_help_panel=_CLEANING,
        ),
    ] = False,
    split: Annotated[
        Split,
        typer.Option(
            help="leave-one-out: each user's last interaction is for test, the one before for validation; "
            "temporal: two moments cut the whole log.",
            rich_help_panel=_SPLIT,
        ),
    ] = "leave-one-out",
    test_fraction: Annotated[
        float, typer.Option(help="Temporal: share of interactions behind the later cut.", rich_help_panel=_SPLIT)
    ] = 0.1,
    valid_fraction: Annotated[
        float, typer.Option(help="Temporal: share of interactions between the cuts.", rich_help_panel=_SPLIT)
    ] = 0.1,
    history: Annotated[
        TargetHistory,
        typer.Option(
            help="Temporal: whose item behind a cut is a target: of users with a history before the cut (window), or "
            "of anyone from the second interaction on (event, for short sessions); auto: event where window leaves "
            "fewer than one target in ten.",
            rich_help_panel=_SPLIT,
        ),
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is a prepared data set.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")] = False,
) -> None:
    """Clean, index and split a log and a catalogue into a data set to train on.

    Everything dropped is counted, with the reason and example rows, in report.md and report.json of the folder.

    Examples:

      llmd4rec prepare --interactions log.csv --items items.csv --out data/mine

      llmd4rec prepare --interactions reviews.jsonl.gz --out data/mine --k-core 5 --split temporal
    """
    from llmd4rec.data.ingest.separated import Layout
    from llmd4rec.data.ingest.settings import Prepare
    from llmd4rec.data.prepare import prepare_files

    settings = Prepare(
        user_col=user_col,
        item_col=item_col,
        time_col=time_col,
        position_col=position_col,
        item_id_col=item_id_col,
        text_cols=None if text_cols is None else tuple(name.strip() for name in text_cols.split(",") if name.strip()),
        where=tuple(where or ()),
        time_format=tuple(time_format or ()),
        multi_cols=_multi_cols(multi_cols),
        split_fields=not no_split,
        order_by=order_by,
        ties=ties,
        missing_times=missing_times,
        duplicates=duplicates,
        k_core=k_core,
        min_history=min_history,
        max_history=max_history,
        split=split,
        test_fraction=test_fraction,
        valid_fraction=valid_fraction,
        history=history,
        keep_unseen_items=keep_unseen_items,
    )
    dataset = prepare_files(
        interactions if len(interactions) > 1 else interactions[0],
        items,
        out,
        settings,
        encoding=encoding,
        layout=Layout(quoting, _character(separator), _names(columns)),
        item_layout=Layout(item_quoting, _character(item_separator), _names(item_columns)),
        overwrite=overwrite,
    )
    if as_json:
        from llmd4rec.log import print_json

        print_json({"out": str(out), "fingerprint": dataset.fingerprint, **dataset.report})
        return
    totals = dataset.report["totals"]
    for step in dataset.report["steps"][1:]:
        if step["rows_in"] > step["rows_out"]:
            print(f"dropped {step['rows_in'] - step['rows_out']:,} rows: {step['step']} ({step.get('note', '')})")
    for warning in dataset.report["warnings"]:
        print(f"look at this: {warning}")
    for line in _about_catalogue(dataset.report["catalogue"]):
        print(line)
    print(
        f"{out}: {totals['users']:,} users, {totals['items']:,} items, {totals['interactions']:,} interactions, "
        f"ordered by {dataset.report['interactions']['ordered_by']}; "
        f"{totals['validation_targets']:,} validation and {totals['test_targets']:,} test targets; "
        f"texts: {', '.join(dataset.text_fields) or 'none'}"
    )
    print(f"what was read, dropped and why: {out / 'report.md'}")


def _names(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(name.strip() for name in given.split(","))


def _character(given: str | None) -> str | None:
    """A separator, where a tab and Hive's may be written as `\\t` and `\\x01`."""
    return given and given.replace("\\t", "\t").replace("\\x01", "\x01")


def _multi_cols(given: list[str] | None) -> dict[str, str] | None:
    """Columns and how they are written.

    Raises:
        ConfigError: one has no `=`.
    """
    from llmd4rec.errors import ConfigError

    for each in given or ():
        if "=" not in each:
            raise ConfigError(f"--multi-cols {each!r} is not COLUMN=SIGN", "For example: --multi-cols 'genres=|'")
    pairs = [each.rsplit("=", 1) for each in given or ()]
    return {name.strip(): how for name, how in pairs} or None


def _about_catalogue(facts: dict[str, Any]) -> list[str]:
    """What was made of the catalogue's columns, in lines."""
    if "identifier" not in facts:
        return []
    lines = [f"several values in {name}: {how}" for name, how in facts["fields_with_several_values"].items()]
    lines += [f"left whole: {name} ({doubt})" for name, doubt in facts["left_whole"].items()]
    taken = ", ".join(facts["text_columns"]) or "no column"
    lines.append(f"items with a text: {facts['items_with_a_text']}, from {taken}")
    if facts["text_columns_without_text"]:
        lines.append(f"text columns without any text: {', '.join(facts['text_columns_without_text'])}")
    if facts["filled_columns_not_taken_as_text"]:
        left = ", ".join(f"{name} ({why})" for name, why in facts["filled_columns_not_taken_as_text"].items())
        lines.append(f"not taken as text: {left}; --text-cols decides otherwise")
    return lines
