"""A trained model with its catalogue: histories of identifiers in, titles and scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import polars as pl
import torch
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import DataError
from llmd4rec.inference.types import identifiers, require_known
from llmd4rec.models.base import SequenceEncoder, last_states

#: Histories that are read at once.
_BATCH = 256


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    title: str
    score: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Recommender:
    """A model and the names of its items.

    Args:
        model: with its weights.
        item_ids: identifiers in index order.
        titles: in index order; an item without one is called by its identifier.
        filter_seen: what :meth:`recommend` does with items of the history where it is not told.
    """

    def __init__(
        self,
        model: SequenceEncoder,
        item_ids: Sequence[str],
        titles: Sequence[str | None],
        *,
        filter_seen: bool = True,
    ) -> None:
        self.filter_seen = filter_seen
        self.model = model.eval()
        self.item_ids = list(item_ids)
        self.titles = [title or item_id for title, item_id in zip(titles, item_ids, strict=True)]
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}

    @overload
    def recommend(  # type: ignore[overload-overlap]  # a text is a sequence of texts, and is refused
        self,
        histories: Sequence[str | int],
        k: int = 10,
        *,
        filter_seen: bool | None = None,
        skip_unknown: bool = False,
    ) -> list[Recommendation]: ...
    @overload
    def recommend(
        self,
        histories: Sequence[Sequence[str | int]],
        k: int = 10,
        *,
        filter_seen: bool | None = None,
        skip_unknown: bool = False,
    ) -> list[list[Recommendation]]: ...
    @overload
    def recommend(
        self, histories: pl.DataFrame, k: int = 10, *, filter_seen: bool | None = None, skip_unknown: bool = False
    ) -> pl.DataFrame: ...
    def recommend(
        self, histories: Any, k: int = 10, *, filter_seen: bool | None = None, skip_unknown: bool = False
    ) -> Any:
        """The k best next items for each history, best first; users need not have been seen in training.

        Args:
            histories: one history (identifiers, oldest first), several, or a frame of polars or pandas with the columns
                `user_id` and `item_id`, a row for each interaction: by `timestamp` where it has that column, else each
                user's rows oldest first.
            k: how many; fewer come back when the catalogue has no more.
            filter_seen: whether items of the history are left out; None: as the model was evaluated.
            skip_unknown: ignore identifiers that the catalogue does not have.

        Returns:
            For one history a list, for several a list of lists, for a frame a frame of the same kind: `user_id`,
            `rank`, `item_id`, `title`, `score`.

        Raises:
            DataError: a history is empty or a text, an item is unknown, k is below 1, or a frame lacks a column.
        """
        if k < 1:
            raise DataError(f"k is {k}", "Ask for at least 1 item.")
        filtered = self.filter_seen if filter_seen is None else filter_seen
        if hasattr(histories, "columns"):
            return self._frame(histories, k, filtered, skip_unknown)
        several = _is_history(histories) and len(histories) > 0 and _is_history(histories[0])
        given = list(histories) if several else [histories]
        found = self._best([self._known(history, skip_unknown) for history in given], k, filtered)
        return found if several else found[0]

    def _frame(self, frame: Any, k: int, filtered: bool, skip_unknown: bool) -> Any:
        pandas = not isinstance(frame, pl.DataFrame)
        rows = pl.from_pandas(frame) if pandas else frame
        missing = [name for name in ("user_id", "item_id") if name not in rows.columns]
        if missing:
            raise DataError(
                f"the frame has no column {missing[0]!r}; it has {', '.join(rows.columns)}",
                "Rename its columns to user_id and item_id (and timestamp, where there is one).",
            )
        items = (
            pl.col("item_id").sort_by("timestamp", maintain_order=True) if "timestamp" in rows.columns else "item_id"
        )
        grouped = rows.group_by("user_id", maintain_order=True).agg(items)
        histories = [self._known(history, skip_unknown) for history in grouped["item_id"].to_list()]
        lists = self._best(histories, k, filtered)
        result = pl.DataFrame(
            {
                "user_id": grouped["user_id"].gather([user for user, one in enumerate(lists) for _ in one]),
                "rank": [rank for one in lists for rank, _ in enumerate(one, 1)],
                "item_id": [item.item_id for one in lists for item in one],
                "title": [item.title for one in lists for item in one],
                "score": [item.score for one in lists for item in one],
            }
        )
        return result.to_pandas() if pandas else result

    def _known(self, history: Any, skip_unknown: bool) -> list[int]:
        """The indices of a history's items."""
        named = identifiers("history", history, ordered=True)
        known = [self._index[item] for item in named if item in self._index]
        unknown = [item for item in named if item not in self._index]
        require_known(bool(known), unknown, self.item_ids, skip_unknown=skip_unknown)
        return known

    @torch.inference_mode()
    def _best(self, histories: list[list[int]], k: int, filtered: bool) -> list[list[Recommendation]]:
        device = next(self.model.parameters()).device
        table_ID = self.model.item_table()
        found: list[list[Recommendation]] = []
        for start in range(0, len(histories), _BATCH):
            batch = histories[start : start + _BATCH]
            windows = [history[-self.model.max_length :] for history in batch]
            lengths = [len(window) for window in windows]
            items_BL = torch.zeros(len(batch), max(lengths), dtype=torch.int64)
            for row, window in enumerate(windows):
                items_BL[row, : len(window)] = torch.tensor(window)
            state_BD = last_states(self.model, SequenceBatch(items_BL, torch.tensor(lengths)).to(device))
            scores_BI = (state_BD @ table_ID.t()).float()
            rows = zip(scores_BI, batch, strict=True)
            found += [self._top(scores_I, history, k, filtered) for scores_I, history in rows]
        return found

    def _top(self, scores_I: Tensor, history: list[int], k: int, filtered: bool) -> list[Recommendation]:
        available = len(scores_I)
        if filtered:
            seen = torch.tensor(sorted(set(history)), device=scores_I.device)
            scores_I[seen] = -torch.inf
            available -= len(seen)
        best = scores_I.topk(min(k, available))
        return [
            Recommendation(self.item_ids[index], self.titles[index], float(score))
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _is_history(value: Any) -> bool:
    return not isinstance(value, str | bytes) and isinstance(value, Sequence)
