"""What the same users choose: item-based collaborative filtering, over much longer spans than transitions.

B. Sarwar et al., Item-based collaborative filtering recommendation algorithms, WWW 2001.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmd4rec.scoring.memory.counting import Log, count_together
from llmd4rec.scoring.memory.settings import ItemKNN
from llmd4rec.scoring.memory.sparse import SparseRowQuery, SparseRows
from llmd4rec.scoring.rows import RowScorer

Int64Array = NDArray[np.int64]
Floats = NDArray[np.float32]
_ONE = np.ones(1, np.float32)


class _Counts:
    """What grown copies of a scorer share. One writer at a time; readers need no lock."""

    def __init__(self, rows: SparseRows, chosen_I: Int64Array) -> None:
        self.rows, self.chosen_I, self.writing = rows, chosen_I, threading.Lock()


class ItemKNNScorer(RowScorer):
    """Σ over the different items i of a history of r_i^-½ · n_ij / (n_i^.7 · n_j^.3).

    `n_ij` is how often one of i and j was chosen with the other among the items before it, n_i how often i was chosen,
    and r_i the place of i from the end of the history. A cosine would have the powers ½ and ½; these favour what many
    chose, which is better (docs/research/memory.md).

    Args:
        settings: how far it reads, and which of the powers.
        rows: n_ij, symmetric.
        chosen_I: n_i.
    """

    name = "item_knn"

    def __init__(self, settings: ItemKNN, rows: SparseRows, chosen_I: Int64Array) -> None:
        self.settings, self._num_rows = settings, len(chosen_I)
        self._counts = _Counts(rows, chosen_I)

    @classmethod
    def count(cls, settings: ItemKNN, log: Log) -> ItemKNNScorer:
        """Of a log."""
        starts, columns, counts, chosen_I = count_together(log, settings.last, settings.max_per_row)
        return cls(settings, SparseRows(starts, columns, counts, settings.max_per_row), chosen_I)

    @property
    def num_rows(self) -> int:
        """I."""
        return self._num_rows

    def together(self, item: int) -> tuple[NDArray[np.int32], Floats]:
        """What was chosen with an item, ascending, and how often."""
        columns, values_NC = self._counts.rows.row(item)
        return columns, values_NC[:, 0]

    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> SparseRowQuery:
        """Sums of the rows of the most recent items."""
        return self._scored(*self._picks(windows), None)

    def prepare_leaving_out(
        self, windows: Sequence[Sequence[int]], histories: Sequence[NDArray[np.int32]], history_B: Int64Array
    ) -> SparseRowQuery:
        """As :meth:`prepare`, for users who were counted themselves: less what each of them added to the pairs.

        What a user chose later was chosen with what came before, by this very user, and would be known.

        Args:
            windows: as for :meth:`prepare`.
            histories: whole ones, as far as they were counted.
            history_B: which of them each window is part of.
        """
        picks, weights = self._picks(windows)
        width = self._num_rows
        # Each item of each history is an item of its own, so that pairs of different histories do not meet.
        lengths = [len(each) for each in histories]
        key = np.repeat(np.arange(len(histories)) * width, lengths) + np.concatenate([[], *histories]).astype(np.int64)
        own, codes = np.unique(key, return_inverse=True)
        place = np.repeat(np.arange(len(picks)), [len(each) for each in picks])
        item = np.array([item for each in picks for item in each], np.int64)
        asked = history_B[place] * width + item
        code = own.searchsorted(asked)
        known = np.flatnonzero(own[np.minimum(code, len(own) - 1)] == asked) if len(own) else np.empty(0, np.int64)
        if not len(known):
            return self._scored(picks, weights, None)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        log = Log(codes.astype(np.int32), offsets, np.ones(len(codes), bool), None, len(own))
        starts, others, counts, _ = count_together(log, self.settings.last, len(own), shown=False)
        counts[~self._kept(np.repeat(own, np.diff(starts)) % width, own[others] % width)] = 0
        entries, columns, values_NC = SparseRows(starts, others, counts).gathered(code[known])
        weight = np.array([each for some in weights for each in some], np.float32)[known]
        values = -np.repeat(weight, entries) * values_NC[:, 0]
        more = np.repeat(place[known], entries), (own[columns] % width).astype(np.int32), values
        return self._scored(picks, weights, more)

    def _kept(self, row_N: Int64Array, column_N: Int64Array) -> NDArray[np.bool_]:
        """Whether pairs are among those that long rows were cut to."""
        rows, width = self._counts.rows, self._num_rows
        kept_N = np.ones(len(row_N), bool)
        cut = rows.longer_than(np.unique(row_N), self.settings.max_per_row)
        if len(cut):
            lengths, columns, _ = rows.gathered(cut)
            in_cut = np.isin(row_N, cut)
            kept_N[in_cut] = np.isin((row_N * width + column_N)[in_cut], np.repeat(cut, lengths) * width + columns)
        return kept_N

    def _picks(self, windows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[float]]]:
        """The different items of each history, newest first, and what each of their pairs is worth."""
        chosen_I, asked = self._counts.chosen_I, self.settings
        picks = [list(dict.fromkeys(list(window)[-asked.last :][::-1])) for window in windows]
        weights = [
            (np.maximum(chosen_I[each], 1) ** -asked.history_power / np.sqrt(np.arange(1, len(each) + 1))).tolist()
            for each in picks
        ]
        return picks, weights

    def _scored(
        self,
        picks: list[list[int]],
        weights: list[list[float]],
        more: tuple[Int64Array, NDArray[np.int32], Floats] | None,
    ) -> SparseRowQuery:
        summed = SparseRowQuery.of_sums(self._counts.rows, picks, weights, self._num_rows, more=more)
        # Of a catalogue that has grown meanwhile there may be counts of more items, and never of fewer.
        popular = np.maximum(self._counts.chosen_I[summed.columns], 1).astype(np.float32)
        values = summed.values * popular ** np.float32(-self.settings.item_power)
        return replace(summed, values=values if more is None else np.maximum(values, 0))

    def observe(self, history: Sequence[int], item: int) -> None:
        """Counts one event.

        Args:
            history: what came before it, oldest first.
            item: what was chosen.
        """
        before = set(list(history)[-self.settings.last :])
        if item in before:
            return
        with self._counts.writing:
            for other in before:
                self._counts.rows.add(other, item, (1.0,), _ONE)
                self._counts.rows.add(item, other, (1.0,), _ONE)
            if item >= len(self._counts.chosen_I):  # of a grown copy; readers of the old one know of fewer items
                more = np.zeros(item + 1 - len(self._counts.chosen_I), np.int64)
                self._counts.chosen_I = np.concatenate([self._counts.chosen_I, more])
            self._counts.chosen_I[item] += 1

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> ItemKNNScorer:
        """New items were chosen with nothing until they are observed."""
        num_rows = max(self._num_rows, max(rows, default=-1) + 1)
        grown = ItemKNNScorer(self.settings, self._counts.rows, np.zeros(num_rows, np.int64))
        with self._counts.writing:
            missing = num_rows - len(self._counts.chosen_I)
            if missing > 0:
                self._counts.chosen_I = np.concatenate([self._counts.chosen_I, np.zeros(missing, np.int64)])
        grown._counts = self._counts
        return grown

    def arrays(self) -> tuple[Int64Array, NDArray[np.int32], Floats, Int64Array]:
        """The counts as sparse rows: starts, columns and counts; and how often each item was chosen."""
        starts, columns, values_NC = self._counts.rows.arrays()
        starts = np.concatenate([starts, np.full(max(0, self._num_rows + 1 - len(starts)), starts[-1])])
        return starts, columns, values_NC, self._counts.chosen_I[: self._num_rows].copy()
