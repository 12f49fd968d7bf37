"""Recommenders small enough that their answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec import Recommender
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.encoder import HistoryBatch
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.types import Answer, ExportInfo, Item
from llmd4rec.scoring.index import ApproximateIndex


class MeanEncoder:
    """The state of a history is the mean of its rows: an encoder whose answers can be worked out by hand."""

    reads: tuple[str, ...] = ()

    def __call__(self, batch: HistoryBatch, table_ID: NDArray[Any]) -> NDArray[Any]:
        real_BL = np.arange(batch.rows_BL.shape[1]) < batch.lengths_B[:, None]
        sums_BD = (table_ID[batch.rows_BL] * real_BL[:, :, None]).sum(axis=1)
        states_BD: NDArray[np.float32] = (sums_BD / batch.lengths_B[:, None]).astype(np.float32)
        return states_BD


def by_hand(
    table: NDArray[Any],
    frame: pl.DataFrame | None = None,
    counts: Sequence[int] | None = None,
    max_length: int = 4,
    index: ApproximateIndex | None = None,
) -> Recommender:
    table = np.asarray(table, dtype=np.float32)
    frame = pl.DataFrame({"item_id": [f"i{row}" for row in range(len(table))]}) if frame is None else frame
    kinds = kinds_of(frame)
    numbers = np.array(range(len(table), 0, -1) if counts is None else counts, dtype=np.int64)
    info = ExportInfo(
        "hand", 0, "undistilled", "mean", table.shape[1], len(table), max_length, kinds, "", 0.0, "NDCG@10"
    )
    return Recommender(info, FactorRowScorer(MeanEncoder(), table, index), Catalogue.of(frame, numbers, kinds))


def item_of(recommender: Recommender, item_id: str) -> Item:
    found = recommender.item(item_id)
    assert found is not None
    return found


def undistilled_of(recommender: Recommender) -> Recommender:
    assert recommender.undistilled is not None
    return recommender.undistilled


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]
