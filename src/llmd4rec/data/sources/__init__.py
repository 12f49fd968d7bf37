"""Public data sets by name: each with its origins, a checksum where one is known, and a note on its terms."""

from __future__ import annotations

import difflib
import errno
import os
from pathlib import Path
from typing import Any

import polars as pl

from llmd4rec.data.sources import amazon, movielens, others
from llmd4rec.data.sources.source import Files, MissingFileError, Origin, Source
from llmd4rec.errors import DataError
from llmd4rec.io.files import atomic_dir

_FILES = ("README.md", "interactions.parquet", "items.parquet")


def all_sources() -> tuple[Source, ...]:
    """Every named set."""
    return (*movielens.SOURCES, *amazon.SOURCES, *others.SOURCES)


def source(name: str) -> Source:
    """The set of that name.

    Raises:
        DataError: there is none; says the nearest.
    """
    known = {found.name: found for found in all_sources()}
    if name.lower() in known:
        return known[name.lower()]
    nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"Nearest: {', '.join(nearest)}. " if nearest else ""
    raise DataError(f"no data set is called {name!r}", f"{hint}See them all with: llmd4rec data list")


def get_source(name: str, out: Path, *, from_path: Path | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Writes a set's tables and a README into the folder `out`, all or nothing.

    Args:
        name: the set.
        out: the folder to make.
        from_path: an archive or a folder that was downloaded by hand; None: fetched from the set's origins.
        overwrite: replace `out` if this function made it.

    Returns:
        Counts of interactions, users and items, and the origin in words.

    Raises:
        DataError: no such set; `out` exists; a file is missing or damaged.
        FetchError: no origin can be reached.
    """
    wanted = source(name)
    if out.exists() and not (out.is_dir() and all(path.name in _FILES for path in out.iterdir())):
        raise DataError(f"{out} already exists and holds other things", "Choose another folder with --out.")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise DataError(f"{out} already exists", "Choose another folder with --out, or pass --overwrite.")
    missing: MissingFileError | None = None
    for opened, origin, label in wanted.attempts(from_path):
        with opened as files:
            try:
                return _write(wanted, origin, files, label, out, overwrite)
            except MissingFileError as error:
                missing = missing or error
    raise missing or DataError(f"{wanted.name} has no files", "See: llmd4rec data list")


def _write(wanted: Source, origin: Origin, files: Files, label: str, out: Path, overwrite: bool) -> dict[str, Any]:
    with atomic_dir(out, replace=overwrite) as folder:
        try:
            tables = origin.read(files)
            tables.interactions.sink_parquet(folder / "interactions.parquet")
            items = tables.items.filter(pl.col("item_id").is_not_null())
            items.unique("item_id", keep="first", maintain_order=True).sink_parquet(folder / "items.parquet")
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            if "os error 28" in str(error):  # no space left: not the file's fault
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
            raise DataError(
                f"{wanted.name}: {label} is not in the published format: {str(error).splitlines()[0]}",
                "Get the files again; they may be damaged or of another version.",
            ) from error
        counts = _counts(folder)
        if not counts["interactions"]:
            raise DataError(f"{wanted.name}: {label} holds no interactions", "Get the files again.")
        (folder / "README.md").write_text(_readme(wanted, label, counts), encoding="utf-8")
    return {"name": wanted.name, **counts, "origin": label}


def _counts(folder: Path) -> dict[str, int]:
    log = pl.scan_parquet(folder / "interactions.parquet", glob=False)
    counted = log.select(interactions=pl.len(), users=pl.col("user_id").n_unique(), rated=pl.col("item_id").n_unique())
    interactions, users, items = counted.collect(engine="streaming").row(0)
    rows = pl.scan_parquet(folder / "items.parquet", glob=False).select(pl.len()).collect().item()
    return {"interactions": interactions, "users": users, "items": items, "catalogue_rows": rows}


def _readme(wanted: Source, label: str, counts: dict[str, int]) -> str:
    lines = [
        f"# {wanted.name}",
        "",
        wanted.title + ".",
        "",
        f"{counts['interactions']:,} interactions of {counts['users']:,} users with {counts['items']:,} items; "
        f"{counts['catalogue_rows']:,} rows in the catalogue.",
        "",
        f"Made by `llmd4rec data get {wanted.name}` from {label}.",
        *([wanted.notes] if wanted.notes else []),
        "",
        "## Terms",
        wanted.licence,
        "",
    ]
    return "\n".join(lines)
