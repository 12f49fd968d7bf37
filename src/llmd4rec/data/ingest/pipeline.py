"""From a raw log and a catalogue to checked arrays: what :class:`~llmd4rec.data.dataset.Dataset` is made of.

read → drop rows without ids → sort → duplicates → k-core and shortest history → longest history
     → index → catalogue → split
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.arrays import NO_TIME, PreparedData
from llmd4rec.data.ingest.catalogue import bare_catalogue, read_catalogue
from llmd4rec.data.ingest.clean import clean
from llmd4rec.data.ingest.interaction_log import about_times, read_log
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.ingest.splits import Targets, leave_one_out, seen_before, temporal
from llmd4rec.data.ingest.table import Table, table_of
from llmd4rec.data.ingest.times import to_seconds
from llmd4rec.log import logger

if TYPE_CHECKING:
    import pandas as pd


#: A warning says so where more of the targets than this are items that their user had before.
MANY_REPEATS = 0.05


def prepare_frames(
    interactions: pl.DataFrame | pl.LazyFrame | pd.DataFrame,
    items: pl.DataFrame | pl.LazyFrame | pd.DataFrame | None,
    settings: Prepare,
) -> PreparedData:
    """Prepares two frames; see :meth:`~llmd4rec.data.dataset.Dataset.from_frames`."""
    catalogue = None if items is None else table_of(items, "the items frame")
    return prepare_tables(table_of(interactions, "the interactions frame"), catalogue, settings)


def prepare_tables(interactions: Table, items: Table | None, settings: Prepare) -> PreparedData:
    """Cleans, indexes and splits.

    Raises:
        DataError: a column is missing or cannot be understood; nothing is left after cleaning.
    """
    report = Report()
    logger.info(f"Reading {interactions.where} …")
    log = read_log(interactions, settings, report)
    logger.info(f"Cleaning {log.frame.height:,} interactions …")
    frame = clean(log, settings, report)
    report.facts["interactions"] |= about_times(log)

    # Codes of users follow their first appearance, and stay in that order when gaps are closed.
    counts = np.bincount(frame["user"].to_numpy())
    user_codes = np.flatnonzero(counts)
    lengths = counts[user_codes]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    item_codes = frame["item"].to_numpy()
    in_use = np.flatnonzero(np.bincount(item_codes))
    used = log.item_ids.gather(in_use)

    if items is None:
        catalogue = bare_catalogue(used)
        report.facts["catalogue"] = {"items_with_interactions": len(used), "text_columns": {}}
    else:
        catalogue = read_catalogue(items, used, log.item_column, settings, report)
    index = _positions(catalogue.frame["item_id"], used)
    lookup = np.zeros(len(log.item_ids), dtype=np.int32)
    lookup[in_use] = index

    times = None
    if log.unit is not None:
        times = to_seconds(frame["time"], log.unit).fill_null(NO_TIME).to_numpy().astype(np.int64)
        times = times if (times != NO_TIME).any() else None
    if settings.split == "temporal" and times is not None:
        targets = temporal(offsets, times, settings.valid_fraction, settings.test_fraction, settings.history)
    else:
        targets = leave_one_out(offsets)
    items_in_order = lookup[item_codes]
    if targets.warning:
        report.warn(targets.warning)
    report.facts["split"] = targets.facts | _repeats(offsets, items_in_order, targets, report)
    report.facts["totals"] = {
        "users": len(lengths),
        "items": catalogue.frame.height,
        "interactions": frame.height,
        "mean_length": round(frame.height / len(lengths), 4),
        "validation_targets": len(targets.valid),
        "test_targets": len(targets.test),
    }
    return PreparedData(
        user_ids=log.user_ids.gather(user_codes).alias("user_id"),
        catalogue=catalogue.frame,
        offsets=offsets,
        items=items_in_order,
        train_end=targets.train_end,
        valid=targets.valid,
        test=targets.test,
        times=times,
        text_fields=catalogue.text_fields,
        multi_fields=catalogue.multi_fields,
        settings=settings.as_dict(),
        report=report.as_dict(),
    )


def _repeats(offsets: NDArray[np.int64], items: NDArray[np.int32], targets: Targets, report: Report) -> dict[str, int]:
    """How many targets their user had before, for the report; a warning where these are many."""
    facts = {}
    for what, positions in (("validation", targets.valid), ("test", targets.test)):
        again = seen_before(offsets, items, positions)
        facts[f"{what}_targets_the_user_had_before"] = again
        if again > MANY_REPEATS * len(positions):
            share = again / len(positions)
            report.warn(
                f"{again:,} of {len(positions):,} {what} targets ({share:.1%}) are items that the user had before: "
                "with evaluation.filter_seen, the default, they are never found; set it to false if people "
                "come back to items, or prepare with --duplicates drop"
            )
    return facts


def _positions(catalogue_ids: pl.Series, used: pl.Series) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The catalogue row of each item in use."""
    rows = pl.DataFrame({"item_id": catalogue_ids}).with_row_index("at")
    wanted = pl.DataFrame({"item_id": used})
    return wanted.join(rows, on="item_id", how="left", maintain_order="left")["at"].to_numpy().astype(np.int32)
