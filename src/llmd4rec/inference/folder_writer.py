"""Writing an export folder, and saving what a recommender serves as one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.errors import RunError
from llmd4rec.inference.card import model_card
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.factors import SPACE
from llmd4rec.inference.folder import MEMORY, Folder
from llmd4rec.inference.head import HEAD
from llmd4rec.inference.memory import counted_up_to, subset
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import ExportInfo
from llmd4rec.io.files import atomic_dir, sha256_file, write_json

Floats = NDArray[np.float32]


def to_int8(table_ID: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A table as 8-bit codes and a scale for each row: row ≈ codes · scale."""
    scales_I = np.abs(table_ID).max(axis=1) / np.float32(127)
    divisors_I = np.where(scales_I > 0, scales_I, np.float32(1))
    return np.rint(table_ID / divisors_I[:, None]).astype(np.int8), scales_I.astype(np.float32)


def write_table(folder: Path, table_ID: Floats, *, int8: bool) -> None:
    """Writes an item table into an export folder."""
    if int8:
        codes_ID, scales_I = to_int8(table_ID)
        np.save(folder / "item_table.npy", codes_ID, allow_pickle=False)
        np.save(folder / "item_scales.npy", scales_I, allow_pickle=False)
    else:
        np.save(folder / "item_table.npy", table_ID, allow_pickle=False)


def write_catalogue(folder: Path, catalogue: pl.DataFrame, counts: NDArray[np.int64]) -> None:
    """Writes catalogue and counts into an export folder."""
    catalogue.write_parquet(folder / "catalogue.parquet")
    np.save(folder / "counts.npy", counts, allow_pickle=False)


def finish(folder: Path, head: Mapping[str, Any]) -> None:
    """Writes the model card, and export.json with the checksums of all that is there: the last step of an export."""
    (folder / "README.md").write_text(model_card(dict(head)), encoding="utf-8")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(folder / HEAD, {**head, "files": {name: sha256_file(folder / name) for name in names}})


def require_export_or_new(folder: Path) -> None:
    """Refuses to replace anything but an export.

    Raises:
        RunError: `folder` exists and is not an export.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())) and not (folder / HEAD).is_file():
        raise RunError(f"{folder} exists and is not an export: it is not replaced", "Choose another folder.")


def save_changed(
    source: Folder | None, info: ExportInfo, snapshots: Mapping[str, Snapshot], folder: Path, *, overwrite: bool
) -> None:
    """Writes an export with other items and counts: what is served now, without removed items.

    Args:
        source: the export that was loaded; graphs and text maps are copied from there. None: there is none.
        info: what is served.
        snapshots: what each model serves, by its subfolder ("" or "undistilled/").

    Raises:
        RunError: there is no export, a file of it is gone or changed, or `folder` exists and is not an export.
        DataError: `folder` exists, and `overwrite` is false.
    """
    if source is None:
        if info.format == 0:
            raise RunError("this recommender was made from a run, not from an export", "Use llmd4rec export.")
        raise RunError(
            f"{info.stage} is a part of its export, and is not saved without the rest",
            "Save the recommender of the whole export: Recommender.load(FOLDER).",
        )
    require_export_or_new(folder)
    catalogue, memory = snapshots[""].catalogue, snapshots[""].memory
    rows = np.flatnonzero(catalogue.present)
    rewritten = {f"{prefix}{name}" for prefix in snapshots for name in ("item_table.npy", "item_scales.npy")}
    rewritten |= {"catalogue.parquet", "counts.npy", "README.md"}
    rewritten |= {name for name in source.has if name.startswith(f"{MEMORY}/")}
    with atomic_dir(folder, replace=overwrite) as temporary:
        for name, digest in source.head["files"].items():
            if name in rewritten:
                continue
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(source.path / name, temporary / name)
            except FileNotFoundError:
                raise RunError(f"{source.path / name} is gone", "Load the export again from where it is.") from None
            if sha256_file(temporary / name) != digest:
                raise RunError(f"{source.path / name} was changed after it was loaded", "Load the export again.")
        for prefix, snapshot in snapshots.items():
            table_ID = snapshot.scorer.tables[SPACE]
            write_table(temporary / prefix, table_ID[rows], int8=f"{prefix}item_scales.npy" in source.has)
        write_catalogue(temporary, _frame(source.catalogue, catalogue, rows), catalogue.counts[rows])
        untrained = np.flatnonzero(~catalogue.trained[rows])
        head = {**source.head, "items": len(rows), "untrained_rows": untrained.tolist()}
        if memory is not None:
            subset(memory, rows).save(temporary / MEMORY)
            head[MEMORY] = {**head[MEMORY], **counted_up_to(memory)}
        finish(temporary, {name: value for name, value in head.items() if name != "files"})


def _frame(original: pl.DataFrame, catalogue: Catalogue, rows: NDArray[np.int64]) -> pl.DataFrame:
    """Some rows of a catalogue as a data frame; with a title column if the original has one or it is needed."""
    columns: dict[str, list[Any]] = {"item_id": [catalogue.ids[row] for row in rows]}
    if "title" in original.columns or any(catalogue.titles):
        columns["title"] = [catalogue.titles[row] for row in rows]
    for name, field in catalogue.fields.items():
        columns[name] = [field.values[row] for row in rows]
    text = {"item_id": pl.String, "title": pl.String}
    types = {
        name: text.get(name) or (pl.Float64 if catalogue.fields[name].kind == "number" else pl.String)
        for name in columns
    }
    return pl.DataFrame(columns, schema=types)
