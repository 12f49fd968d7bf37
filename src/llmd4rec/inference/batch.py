"""Recommendations for many users at once, from a frame or a data set into one table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from llmd4rec.errors import DataError
from llmd4rec.extras import explained
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.ranking import Ranked
from llmd4rec.inference.types import Fallback, Request
from llmd4rec.io.files import atomic_file
from llmd4rec.log import bar, logger

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.inference.recommender import Recommender

#: Users ranked together.
BATCH_SIZE = 1024
SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Histories:
    """Users and their histories, oldest first; and when each item was chosen, where that is known."""

    users: pl.Series
    items: list[list[Any]]
    times: list[list[Any]] | None = None

    @classmethod
    def of_frame(cls, frame: pl.DataFrame) -> Histories:
        """Those of a frame with a row for each interaction, in the order in which users first come.

        Raises:
            DataError: a column is missing.
        """
        missing = [name for name in ("user_id", "item_id") if name not in frame.columns]
        if missing:
            raise DataError(
                f"the frame has no column {missing[0]!r}; it has {', '.join(frame.columns)}",
                "Rename its columns to user_id and item_id (and timestamp, where there is one).",
            )
        if "timestamp" not in frame.columns:
            grouped = frame.group_by("user_id", maintain_order=True).agg("item_id")
            return cls(grouped["user_id"], grouped["item_id"].to_list())
        by_time = pl.col("item_id", "timestamp").sort_by("timestamp", maintain_order=True)
        grouped = frame.group_by("user_id", maintain_order=True).agg(by_time)
        return cls(grouped["user_id"], grouped["item_id"].to_list(), grouped["timestamp"].to_list())

    @classmethod
    def of_data(cls, data: Dataset, users: Sequence[str] | None = None) -> Histories:
        """Whole histories, held-out items included, of some users of a data set in the order given; None: of all.

        Raises:
            DataError: a user is not in the data set.
        """
        ids, every = data.item_ids, data.user_ids.to_list()
        chosen: Iterable[int] = range(len(every))
        if users is not None:
            places = {user: place for place, user in enumerate(every)}
            unknown = [user for user in users if user not in places]
            if unknown:
                raise DataError(
                    f"the data set {data.path or ''} has no user {', '.join(map(repr, unknown[:5]))}",
                    "Name users of the data set, or give --users all.",
                )
            chosen = [places[user] for user in users]
        offsets, items = data.offsets.tolist(), data.items.tolist()
        times = None if data.times is None else data.times.tolist()
        return cls(
            pl.Series([every[user] for user in chosen], dtype=pl.String),
            [[ids[item] for item in items[offsets[user] : offsets[user + 1]]] for user in chosen],
            None if times is None else [times[offsets[user] : offsets[user + 1]] for user in chosen],
        )


def is_several(history: Any) -> bool:
    """Whether this is a list of histories, and not one."""
    return (
        isinstance(history, Sequence)
        and not isinstance(history, str | bytes)
        and len(history) > 0
        and isinstance(history[0], Iterable)
        and not isinstance(history[0], str | bytes)
    )


def recommend_frame(recommender: Recommender, frame: Any, request: Request) -> Any:
    """Recommendations for each user of a frame of polars or pandas, as a frame of the same kind.

    Raises:
        DataError: a column is missing, or the request is wrong.
    """
    if isinstance(frame, pl.DataFrame):
        return recommend_histories(recommender, Histories.of_frame(frame), request)
    with explained():
        rows = pl.from_pandas(frame)
    return recommend_histories(recommender, Histories.of_frame(rows), request).to_pandas()


def recommend_histories(recommender: Recommender, histories: Histories, request: Request) -> pl.DataFrame:
    """Recommendations for every history; users with popular items and unknown items are warned of.

    Args:
        request: how to recommend; its history is not read.

    Returns:
        Columns user_id, rank (from 1), item_id, title, score.

    Raises:
        DataError: the request is wrong.
    """
    if request.explain:
        raise DataError("a table of recommendations has no reasons", "Ask for reasons with a list of histories.")
    users, ranks, rows, scores = [], [], [], []
    strangers: dict[Fallback, list[int]] = {"recent": [], "popular": []}
    unknown: dict[str, None] = {}
    # Users with histories of similar length are encoded together; the table is in the order given.
    order = sorted(range(len(histories.users)), key=lambda user: len(histories.items[user]))
    parts = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]

    # A model that reads no times is not held up by a column that is written in a way of its own.
    times = histories.times if recommender.info.reads else None

    def ranked(part: list[int]) -> tuple[Catalogue, list[Ranked]]:
        return recommender.rank_many(
            [
                replace(request, history=histories.items[user], times=None if times is None else times[user])
                for user in part
            ]
        )

    # Most of the time goes into libraries that let other threads run.
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with bar("Recommending", len(order), "users") as progress, ThreadPoolExecutor(workers) as pool:
        for chosen, (_, found) in zip(parts, pool.map(ranked, parts), strict=True):
            lengths = [len(each.rows) for each in found]
            for user, each in zip(chosen, found, strict=True):
                if each.fallback:
                    strangers[each.fallback].append(user)
            unknown.update(dict.fromkeys(item for each in found for item in each.unknown))
            users.append(np.repeat(np.array(chosen, dtype=np.int64), lengths))
            ranks.append(np.concatenate([np.arange(1, length + 1) for length in lengths]))
            rows.append(np.concatenate([each.rows for each in found]))
            scores.append(np.concatenate([each.scores for each in found]))
            progress.advance(len(chosen))
    _warn(histories.users, strangers, list(unknown))
    table = pl.DataFrame(
        {
            "user": _joined(users, np.int64),
            "rank": _joined(ranks, np.int32),
            "item": _joined(rows, np.int64),
            "score": _joined(scores, np.float32),
        }
    ).sort("user", "rank")
    catalogue = recommender.catalogue
    names = pl.Series(catalogue.ids, dtype=pl.String)
    titles = pl.Series([catalogue.title(row) for row in range(len(catalogue))], dtype=pl.String)
    return table.select(
        histories.users.gather(table["user"]).alias("user_id"),
        "rank",
        names.gather(table["item"]).alias("item_id"),
        titles.gather(table["item"]).alias("title"),
        "score",
    )


def _warn(users: pl.Series, strangers: Mapping[Fallback, list[int]], unknown: list[str]) -> None:
    parts = []
    if unknown:
        some = ", ".join(map(repr, unknown[:3]))
        parts.append(f"{len(unknown):,} items of histories are not in the catalogue and were skipped (such as {some})")
    got: dict[Fallback, str] = {"recent": "those chosen most of late", "popular": "the most frequent ones"}
    for fallback, which in got.items():
        if found := sorted(strangers[fallback]):
            some = ", ".join(repr(users[user]) for user in found[:3])
            parts.append(f"{len(found):,} users have no known item and got {which} (such as {some})")
    if parts:
        logger.warning("; ".join(parts))


def _joined(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)


def check_output_path(path: Path) -> None:
    """Refuses a file that cannot be written, before anything is computed.

    Raises:
        DataError: its ending is not a known format, or it is a folder.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{path}: the ending {path.suffix!r} is not a known format", f"Use one of {', '.join(SUFFIXES)}."
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder", "Give the name of a file.")


def write(table: pl.DataFrame, path: Path) -> None:
    """Writes a table in the format of the path's ending; all or nothing, an existing file is replaced."""
    with atomic_file(path) as temporary:
        if path.suffix == ".parquet":
            table.write_parquet(temporary)
        elif path.suffix == ".csv":
            table.write_csv(temporary)
        else:
            table.write_ndjson(temporary)
