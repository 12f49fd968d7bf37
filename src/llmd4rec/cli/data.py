"""`llmd4rec data`: public data sets by name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Public data sets by name: what there is, and getting one ready for `llmd4rec prepare`.",
)


@app.command("list")
def list_(
    name: Annotated[str, typer.Argument(help="Only names that hold this, e.g. amazon-2018.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Show the sets with their origins, checksums and terms.

    Examples:

      llmd4rec data list

      llmd4rec data list amazon-2014
    """
    from llmd4rec.data.sources import all_sources

    chosen = [source for source in all_sources() if name.lower() in source.name]
    if as_json:
        from llmd4rec.log import print_json

        print_json([source.as_dict() for source in chosen], indent=2)
        return
    licence = ""
    for source in chosen:
        if source.licence != licence:
            licence = source.licence
            print(f"\n{source.title}\n  terms: {licence}")
        print(f"  {source.name}")
        for line in source.origin_lines():
            print(f"      {line}")


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="The set's name; see `llmd4rec data list`.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make (./NAME if not given).")] = None,
    from_path: Annotated[
        Path | None,
        typer.Option("--from", help="Read an archive or a folder of files that you have downloaded yourself."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder made by this command.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Get one set as interactions.parquet and items.parquet, ready for `llmd4rec prepare`.

    Examples:

      llmd4rec data get ml-100k --out raw/ml-100k

      llmd4rec data get yelp --from ~/Downloads/yelp_dataset.tar --out raw/yelp
    """
    from llmd4rec.data.sources import get_source

    folder = out if out is not None else Path(name)
    counts: dict[str, Any] = get_source(name, folder, from_path=from_path, overwrite=overwrite)
    if as_json:
        from llmd4rec.log import print_json

        print_json({"out": str(folder), **counts})
        return
    print(
        f"{folder}: {counts['interactions']:,} interactions of {counts['users']:,} users with "
        f"{counts['items']:,} items, from {counts['origin']}"
    )
    log, items = (shlex.quote(str(folder / f"{table}.parquet")) for table in ("interactions", "items"))
    print(f"next: llmd4rec prepare --interactions {log} --items {items} --out data/{name}")
