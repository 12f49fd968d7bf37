"""Recommendations for many users at once, into one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.ranking import Ranked
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import Request
from llmd4rec.io.files import atomic_file
from llmd4rec.log import bar

#: Users ranked together.
BATCH_SIZE = 1024
SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Histories:
    """Users and their histories, oldest first."""

    users: list[str]
    items: list[list[str]]


def histories_of(data: Dataset, users: Sequence[str] | None = None) -> Histories:
    """Whole histories, held-out items included, of some users of a data set in the order given; None: of all.

    Raises:
        DataError: a user is not in the data set.
    """
    ids, every = data.item_ids, data.user_ids.to_list()
    if users is None:
        chosen = range(len(every))
    else:
        places = {user: place for place, user in enumerate(every)}
        unknown = [user for user in users if user not in places]
        if unknown:
            raise DataError(
                f"the data set {data.path or ''} has no user {', '.join(map(repr, unknown[:5]))}",
                "Name users of the data set, or give --users all.",
            )
        chosen = [places[user] for user in users]  # type: ignore[assignment]
    offsets, items = data.offsets.tolist(), data.items.tolist()
    return Histories(
        [every[user] for user in chosen],
        [[ids[item] for item in items[offsets[user] : offsets[user + 1]]] for user in chosen],
    )


def recommend_all(recommender: Recommender, histories: Histories, request: Request) -> tuple[pl.DataFrame, int]:
    """Recommendations for every history.

    Args:
        request: how to recommend; its history is not read.

    Returns:
        Columns user_id, rank (from 1), item_id, title, score; and how many users got popular items, because no item of
        their history was known.

    Raises:
        DataError: the request is wrong.
    """
    users, ranks, rows, scores = [], [], [], []
    num_popular = 0
    # Users with histories of similar length are encoded together; the table is in the order given.
    order = sorted(range(len(histories.users)), key=lambda user: len(histories.items[user]))
    parts = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]

    def ranked(part: list[int]) -> tuple[Catalogue, list[Ranked]]:
        return recommender.rank_many([replace(request, history=histories.items[user]) for user in part])

    # Most of the time goes into libraries that let other threads run.
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with bar("Recommending", len(order), "users") as progress, ThreadPoolExecutor(workers) as pool:
        for chosen, (_, found) in zip(parts, pool.map(ranked, parts), strict=True):
            lengths = [len(each.rows) for each in found]
            num_popular += sum(each.popular for each in found)
            users.append(np.repeat(np.array(chosen, dtype=np.int64), lengths))
            ranks.append(np.concatenate([np.arange(1, length + 1) for length in lengths]))
            rows.append(np.concatenate([each.rows for each in found]))
            scores.append(np.concatenate([each.scores for each in found]))
            progress.advance(len(chosen))
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
    return (
        table.select(
            pl.Series("user_id", histories.users, dtype=pl.String).gather(table["user"]),
            "rank",
            names.gather(table["item"]).alias("item_id"),
            titles.gather(table["item"]).alias("title"),
            "score",
        ),
        num_popular,
    )


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
