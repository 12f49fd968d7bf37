"""Files in, a prepared folder out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.folder import check_target
from llmd4rec.data.ingest.pipeline import prepare_tables
from llmd4rec.data.ingest.readers import open_table
from llmd4rec.data.ingest.separated import Layout
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.errors import DataError
from llmd4rec.log import logger


def prepare_files(
    interactions: Path | Sequence[Path],
    items: Path | None,
    out: Path,
    settings: Prepare | None = None,
    *,
    encoding: str = "utf-8",
    layout: Layout | None = None,
    item_layout: Layout | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Prepares files into the folder `out`, all or nothing, and returns the data set.

    Args:
        interactions, items: the files, folders of parts or patterns, several for the interactions; see
            :func:`~llmd4rec.data.ingest.readers.open_table` for the formats.
        out: the folder to make.
        encoding: of text files.
        layout, item_layout: how the two are written, where that is known: quoting, separator, names of columns.
        overwrite: replace `out` if it is a prepared folder.

    Raises:
        DataError: an input cannot be used (says file, row and column), or `out` exists.
    """
    check_target(out, overwrite=overwrite)
    logs = [interactions] if isinstance(interactions, Path | str) else list(interactions)
    for path in (*map(Path, logs), items):
        if path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise DataError(
                f"--out {out} is or holds the input {path}, which would be replaced",
                "Choose another folder for the result.",
            )
    with open_table(interactions, encoding=encoding, layout=layout) as log:
        if items is None:
            prepared = prepare_tables(log, None, settings or Prepare())
        else:
            its_layout = replace(item_layout or Layout(), option="--item-")
            with open_table(items, encoding=encoding, layout=its_layout) as catalogue:
                prepared = prepare_tables(log, catalogue, settings or Prepare())
    dataset = Dataset(**vars(prepared))
    logger.info(f"Writing {out} …")
    dataset.save(out, overwrite=overwrite)
    return dataset
