"""Cleaning a log: duplicates, k-core, short and long histories. Each step says what it dropped."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest import ties
from llmd4rec.data.ingest.interaction_log import Log
from llmd4rec.data.ingest.report import Report
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.errors import DataError


def clean(log: Log, settings: Prepare, report: Report) -> pl.DataFrame:
    """The rows that are kept, sorted by user code, then by time.

    Raises:
        DataError: fewer than two users or items are left.
    """
    frame = _sort(log, settings)
    _warn_of_falling_times(frame, log, report)
    if settings.duplicates != "keep":
        frame = _drop_exact(frame, report)
    if settings.duplicates == "drop-consecutive":
        again = (frame["user"] == frame["user"].shift(1)) & (frame["item"] == frame["item"].shift(1))
        frame = _drop(frame, again.fill_null(False), "repeats in a row", "the same item again", report)
    if settings.duplicates == "drop":
        kept = frame.unique(["user", "item"], keep="first", maintain_order=True)
        frame = _replace(frame, kept, "repeats", "the user's first interaction with the item stays", report)
    if settings.k_core > 1 or settings.min_history > 1:
        frame = _core(frame, settings, report)
    if settings.max_history is not None:
        frame = _cut(frame, settings.max_history, report)
    for what in ("user", "item"):
        if frame[what].n_unique() < 2:
            before = report.steps[0][f"{what}s"]
            found = "no" if not frame.height else "only one"
            raise DataError(
                f"{found} {what} is left after cleaning ({before:,} in the input): nothing can be ranked",
                "Give more data, or loosen k-core and min-history."
                if before > 1
                else f"Check that the {what} column is the right one (--{what}-col).",
            )
    ties.examine(frame, _ordered_by(log, settings), log.item_ids, settings.ties, report)
    return frame


def _sort(log: Log, settings: Prepare) -> pl.DataFrame:
    by = _ordered_by(log, settings)
    if not by or settings.ties == "row":
        return log.frame.sort("user", *by, "row")
    if settings.ties == "last-first":
        return log.frame.sort("user", *by, "row", descending=[False] * (len(by) + 1) + [True])
    tie = ties.mixed(log.frame, log.user_ids, log.item_ids).alias("tie")
    return log.frame.with_columns(tie).sort("user", *by, "tie", "row").drop("tie")


def _ordered_by(log: Log, settings: Prepare) -> list[str]:
    """The columns by which a user's rows are sorted before ties are broken."""
    by = [] if log.order == "row" else [log.order]
    if settings.split == "temporal" and "position" in log.frame.columns:
        by.append("position")
    return by


def _warn_of_falling_times(frame: pl.DataFrame, log: Log, report: Report) -> None:
    """A position that contradicts the times is often no position in the history but, say, a slot on a page."""
    if log.order == "time" or "time" not in frame.columns:
        return
    falls = ((frame["user"] == frame["user"].shift(1)) & (frame["time"] < frame["time"].shift(1))).sum()
    if falls:
        report.warn(
            f"ordered by {log.order}, the time falls from one interaction to the next in {falls:,} places; "
            "if it is the time that is right, use --order-by time"
        )


def _drop_exact(frame: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Drops rows equal in user, item, time and position to an earlier one, if they have a time or a position."""
    moment = [name for name in ("position", "time") if name in frame.columns]
    name, note = "exact duplicates", "same user, item, time and position as an earlier row"
    if not moment:
        return frame
    # Equal rows share user and moment, and those stand side by side; only such rows need the costly comparison.
    key = ["user", *moment]
    same = pl.all_horizontal(pl.col(column).eq_missing(pl.col(column).shift(1)) for column in key)
    after = same.fill_null(False) & (pl.int_range(pl.len()) > 0)
    known = pl.any_horizontal(pl.col(column).is_not_null() for column in moment)
    suspects = frame.filter((after | after.shift(-1).fill_null(False)) & known)
    repeated = suspects.filter(~suspects.select(pl.struct(*key, "item").is_first_distinct()).to_series())["row"]
    return _drop(frame, frame["row"].is_in(repeated.implode()), name, note, report)


def _drop(frame: pl.DataFrame, gone: pl.Series, name: str, note: str, report: Report) -> pl.DataFrame:
    kept = frame.filter(~gone)
    report.step(name, frame.height, kept, frame.filter(gone)["row"].sort().head(20), note)
    return kept


def _replace(frame: pl.DataFrame, kept: pl.DataFrame, name: str, note: str, report: Report) -> pl.DataFrame:
    gone = frame.height - kept.height and np.setdiff1d(frame["row"].to_numpy(), kept["row"].to_numpy())
    report.step(name, frame.height, kept, gone if isinstance(gone, np.ndarray) else (), note)
    return kept


def core_mask(
    users: NDArray[np.uint32], items: NDArray[np.uint32], user_least: int, item_least: int
) -> tuple[NDArray[np.bool_], int]:
    """Which interactions are in the largest part where every user and every item has enough of them.

    Args:
        users, items: codes, [N] each.
        user_least, item_least: how many interactions a user and an item must have.

    Returns:
        The mask [N], and how many rounds changed something.
    """
    alive = np.arange(len(users))
    rounds = 0
    while len(alive):
        user_counts, item_counts = np.bincount(users[alive]), np.bincount(items[alive])
        enough = (user_counts[users[alive]] >= user_least) & (item_counts[items[alive]] >= item_least)
        if enough.all():
            break
        alive, rounds = alive[enough], rounds + 1
    mask = np.zeros(len(users), dtype=np.bool_)
    mask[alive] = True
    return mask, rounds


def _core(frame: pl.DataFrame, settings: Prepare, report: Report) -> pl.DataFrame:
    """k-core and the shortest history together, so that the result satisfies both."""
    user_least = max(settings.k_core, settings.min_history)
    mask, rounds = core_mask(frame["user"].to_numpy(), frame["item"].to_numpy(), user_least, max(settings.k_core, 1))
    note = f"users with fewer than {user_least} interactions"
    if settings.k_core > 1:
        note += f" and items with fewer than {settings.k_core}, until none was left ({rounds} rounds)"
    gone = ~pl.Series(mask)
    kept = frame.filter(pl.Series(mask))
    if not kept.height:
        raise DataError(
            f"nothing is left: every interaction belongs to {note}",
            "Lower k-core or min-history.",
        )
    name = "k-core" if settings.k_core > 1 else "short histories"
    report.step(name, frame.height, kept, frame.filter(gone)["row"].sort().head(20), note)
    return kept


def _cut(frame: pl.DataFrame, longest: int, report: Report) -> pl.DataFrame:
    behind = pl.len().over("user") - pl.int_range(pl.len()).over("user")
    gone = frame.select(behind > longest).to_series()
    return _drop(frame, gone, "long histories", f"all but each user's last {longest}", report)
