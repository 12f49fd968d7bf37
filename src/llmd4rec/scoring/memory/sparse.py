"""Sparse rows that can grow, and histories as sums of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmd4rec.scoring.rows import Candidates, Mask, RowQuery, SearchLimits
from llmd4rec.scoring.topk import top_columns

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Starts = NDArray[np.int64]
Columns = NDArray[np.int32]
Numbers = tuple[float, ...]
#: Entries that are added to a row before they become part of it.
_ADDED = 64
#: So many rows are added up at once: what they hold stays near the processor.
_ROWS_AT_ONCE = 1024
#: Entries that are more than this share of all scores are added up in their places, not sorted; so many places at once,
#: which a processor keeps near.
_DENSE_FROM = 0.125
_PLACES_AT_ONCE = 1 << 16


class SparseRows:
    """The rows of a sparse matrix, columns ascending, to which entries can be added. An entry may be several numbers.

    What is added to a row is kept beside it, and becomes part of it when it has grown. There may be one writer at a
    time. Readers need no lock: a row and what was added to it are replaced together.

    Args:
        starts: [I + 1], where each row's entries begin.
        columns: of all entries, row by row.
        values_NC: their C numbers.
        max_per_row: of a row that has grown longer, the smallest entries are dropped.
    """

    def __init__(self, starts: Starts, columns: Columns, values_NC: Floats, max_per_row: int | None = None) -> None:
        self._starts, self._columns, self._values_NC, self._max = starts, columns, values_NC, max_per_row
        #: Row → its columns and numbers, and what was added since, by column.
        self._changed: dict[int, tuple[Columns, Floats, dict[int, Numbers]]] = {}

    @property
    def numbers(self) -> int:
        """C."""
        return int(self._values_NC.shape[1])

    def row(self, number: int) -> tuple[Columns, Floats]:
        """The columns, ascending, and the numbers of a row; a row that there is not is empty."""
        columns, values_NC = self._pieces(number)
        if number not in self._changed or not len(columns):
            return columns, values_NC
        order = columns.argsort(kind="stable")
        columns, values_NC = columns[order], values_NC[order]
        first = np.flatnonzero(np.concatenate([[True], columns[1:] != columns[:-1]]))
        return columns[first], np.add.reduceat(values_NC, first, axis=0)

    def longer_than(self, numbers: Rows, least: int) -> Rows:
        """Those of some rows that have at least so many entries."""
        changed, last = self._changed, len(self._starts) - 1
        lengths = self._starts[np.minimum(numbers + 1, last)] - self._starts[np.minimum(numbers, last)]
        touched = np.array([number in changed for number in numbers.tolist()], dtype=bool)
        lengths[touched] = [len(self.row(number)[0]) for number in numbers[touched].tolist()]
        return numbers[lengths >= least]

    def gathered(self, numbers: Rows) -> tuple[Rows, Columns, Floats]:
        """Many rows one after the other, in any order and perhaps in pieces: lengths, columns and numbers."""
        changed = self._changed
        if changed and any(number in changed for number in set(numbers.tolist())):
            rows = [self._pieces(number) for number in numbers.tolist()]
            lengths = np.array([len(columns) for columns, _ in rows], dtype=np.int64)
            return lengths, np.concatenate([each for each, _ in rows]), np.concatenate([each for _, each in rows])
        last = len(self._starts) - 1  # rows behind are empty
        first, end = self._starts[np.minimum(numbers, last)], self._starts[np.minimum(numbers + 1, last)]
        lengths = end - first
        entry = np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        return lengths, self._columns[entry], self._values_NC[entry]

    def add(self, number: int, column: int, added: Numbers, mix_C: Floats) -> None:
        """Adds to one entry.

        Args:
            number, column: which.
            added: to each of its numbers.
            mix_C: what each number weighs, where the smallest entries are to be dropped.
        """
        changed = self._changed.get(number)
        if changed is None:
            self._changed[number] = changed = (*self._stored(number), {})
        since = changed[2]
        old = since.get(column)
        since[column] = added if old is None else tuple(a + b for a, b in zip(old, added, strict=True))
        if len(since) > _ADDED:
            columns, values_NC = self.row(number)
            if self._max is not None and len(columns) > self._max:
                kept = np.sort(np.argsort(-(values_NC @ mix_C), kind="stable")[: self._max])
                columns, values_NC = columns[kept], values_NC[kept]
            self._changed[number] = columns, values_NC, {}

    def scaled(self, factor_C: Floats) -> SparseRows:
        """All numbers times a factor each."""
        starts, columns, values_NC = self.arrays()
        return SparseRows(starts, columns, values_NC * factor_C, self._max)

    def arrays(self) -> tuple[Starts, Columns, Floats]:
        """All rows as starts, columns and numbers."""
        changed = list(self._changed)
        if not changed:
            return self._starts, self._columns, self._values_NC
        rows = [self.row(number) for number in range(max(len(self._starts) - 1, max(changed) + 1))]
        starts = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in rows])])
        return starts, np.concatenate([each for each, _ in rows]), np.concatenate([each for _, each in rows])

    def _stored(self, number: int) -> tuple[Columns, Floats]:
        last = len(self._starts) - 1
        entries = slice(self._starts[min(number, last)], self._starts[min(number + 1, last)])
        return self._columns[entries], self._values_NC[entries]

    def _pieces(self, number: int) -> tuple[Columns, Floats]:
        """A row and behind it what was added."""
        changed = self._changed.get(number)
        if changed is None:
            return self._stored(number)
        columns, values_NC, since = changed
        added = list(since.items())  # in one step, so that no other thread adds to it meanwhile
        if not added:
            return columns, values_NC
        more = np.array([column for column, _ in added], np.int32)
        return (
            np.concatenate([columns, more]),
            np.concatenate([values_NC, np.array([each for _, each in added], np.float32)]),
        )


@dataclass(frozen=True)
class SparseRowQuery(RowQuery):
    """Histories that give few rows a score other than 0.

    Attributes:
        starts: [B + 1], where each history's rows begin.
        columns: their numbers, ascending within a history.
        values: their scores, none below 0 where candidates are asked for.
        width: I.
    """

    starts: Starts
    columns: Columns
    values: Floats
    width: int

    @classmethod
    def of_sums(
        cls,
        rows: SparseRows,
        picks: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]],
        width: int,
        mix_C: Floats | None = None,
        more: tuple[Rows, Columns, Floats] | None = None,
    ) -> SparseRowQuery:
        """Of each history the sum of some rows, weighted.

        Args:
            rows: all rows.
            picks: which of them for each history.
            weights: of each.
            width: I.
            mix_C: what each number of an entry weighs; None: it has one.
            more: history, ascending, column and value of what is added beside the rows.
        """
        behind = np.cumsum([len(each) for each in picks])
        if len(picks) > 1 and behind[-1] > _ROWS_AT_ONCE:
            cuts, parts = [0], []
            while (first := cuts[-1]) < len(picks):
                before = behind[first - 1] if first else 0
                cuts.append(max(first + 1, int(behind.searchsorted(before + _ROWS_AT_ONCE, side="right"))))
            for first, last in pairwise(cuts):
                some = None
                if more is not None:
                    theirs = slice(*more[0].searchsorted([first, last]))
                    some = more[0][theirs] - first, more[1][theirs], more[2][theirs]
                parts.append(cls.of_sums(rows, picks[first:last], weights[first:last], width, mix_C, some))
            ends = np.cumsum([0, *(len(each.columns) for each in parts)])
            starts = np.concatenate([[0], *(each.starts[1:] + end for each, end in zip(parts, ends, strict=False))])
            columns, values = (
                np.concatenate(each) for each in zip(*((e.columns, e.values) for e in parts), strict=True)
            )
            return cls(starts, columns, values, width)
        lengths, columns, values_NC = rows.gathered(np.array([row for each in picks for row in each], np.int64))
        values = values_NC[:, 0] if mix_C is None else values_NC @ mix_C
        if len(columns) and columns.max() >= width:  # of items that a grown copy has observed
            inside = columns < width
            owned = np.repeat(np.arange(len(lengths)), lengths)[inside]
            lengths, columns, values = np.bincount(owned, minlength=len(lengths)), columns[inside], values[inside]
        owner = np.repeat(np.arange(len(picks)) * width, [len(each) for each in picks])
        weight = np.array([each for some in weights for each in some], dtype=np.float32)
        keys = [np.repeat(owner, lengths) + columns]
        values_of = [np.repeat(weight, lengths) * values]
        if more is not None:
            keys.append(more[0] * width + more[1])
            values_of.append(more[2])
        return cls._added_up(keys, values_of, len(picks), width)

    @classmethod
    def weighted_sum(cls, queries: Sequence[SparseRowQuery], weights: Sequence[float]) -> SparseRowQuery:
        """The scores of several for the same histories, weighted and added up."""
        count, width = len(queries[0]), queries[0].width
        owners = [np.repeat(np.arange(count) * width, np.diff(each.starts)) for each in queries]
        keys = [owner + each.columns for owner, each in zip(owners, queries, strict=True)]
        values = [np.float32(weight) * each.values for weight, each in zip(weights, queries, strict=True)]
        return cls._added_up(keys, values, count, width)

    @classmethod
    def _added_up(cls, keys: Sequence[Rows], values: Sequence[Floats], count: int, width: int) -> Self:
        """Entries by history · width + column, history after history in each list; those of one place become one."""
        entries = sum(map(len, keys))
        if not entries:
            return cls(np.zeros(count + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), width)
        if entries > _DENSE_FROM * count * width:
            step = max(1, _PLACES_AT_ONCE // width)
            bounds = np.append(np.arange(0, count, step), count) * width
            cuts = [key.searchsorted(bounds).tolist() for key in keys]  # within a history they are in any order
            found_keys, found_values = [], []
            for block, (first, last) in enumerate(pairwise(bounds.tolist())):
                every = np.zeros(last - first)
                for key, value, cut in zip(keys, values, cuts, strict=True):
                    part = slice(cut[block], cut[block + 1])
                    every += np.bincount(key[part] - first, value[part], minlength=last - first)
                places = np.flatnonzero(every != 0)  # of numbers themselves it takes far longer
                found_keys.append(places + first)
                found_values.append(every[places].astype(np.float32))
            key, value = np.concatenate(found_keys), np.concatenate(found_values)
        else:
            key, value = np.concatenate(keys), np.concatenate(values)
            order = key.argsort(kind="stable")
            key, value = key[order], value[order]
            first_of = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
            key, value = key[first_of], np.add.reduceat(value, first_of)
        history, column = np.divmod(key, width)
        starts = history.searchsorted(np.arange(count + 1))
        return cls(starts, column.astype(np.int32), value.astype(np.float32), width)

    @property
    def num_rows(self) -> int:
        """I."""
        return self.width

    @property
    def search_limits(self) -> SearchLimits:
        """The best are known without scoring the catalogue."""
        return SearchLimits()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def entries(self, history: int) -> tuple[Columns, Floats]:
        """The rows with a score, and the scores."""
        inside = slice(self.starts[history], self.starts[history + 1])
        return self.columns[inside], self.values[inside]

    def take(self, which: slice | Rows) -> Self:
        """Their entries."""
        first, last = self.starts[:-1][which], self.starts[1:][which]
        lengths = last - first
        starts = np.concatenate([[0], np.cumsum(lengths)])
        inside = np.arange(starts[-1]) + np.repeat(first - starts[:-1], lengths)
        return type(self)(starts, self.columns[inside], self.values[inside], self.width)

    def scores(self, rows: Rows | None = None) -> Floats:
        """Zeros but for the entries."""
        if rows is None:
            every_BI = np.zeros((len(self), self.width), np.float32)
            every_BI[np.repeat(np.arange(len(self)), np.diff(self.starts)), self.columns] = self.values
            return every_BI
        first = int(rows[0]) if len(rows) else 0
        if len(rows) > 1 and rows[-1] - first == len(rows) - 1 and (np.diff(rows) == 1).all():  # a block of columns
            inside = (self.columns >= first) & (self.columns < first + len(rows))
            block_BN = np.zeros((len(self), len(rows)), np.float32)
            owner = np.repeat(np.arange(len(self)), np.diff(self.starts))[inside]
            block_BN[owner, self.columns[inside] - first] = self.values[inside]
            return block_BN
        some_BN = np.zeros((len(self), len(rows)), np.float32)
        for history, some_N in enumerate(some_BN):
            columns, values = self.entries(history)
            if len(columns):
                place = np.minimum(columns.searchsorted(rows), len(columns) - 1)
                some_N[:] = np.where(columns[place] == rows, values[place], 0)
        return some_BN

    def add_to(self, total_BN: Floats, weight: float, rows: Rows | None = None) -> None:
        """Of all rows the entries alone."""
        if rows is not None:
            super().add_to(total_BN, weight, rows)
            return
        added = np.float32(weight) * self.values
        owner = np.repeat(np.arange(len(self)), np.diff(self.starts))
        if not total_BN.flags.c_contiguous:
            total_BN[owner, self.columns] += added  # a row stands once in a history
            return
        flat = total_BN.reshape(-1)  # one number for each place is found in a third of the time that two take
        flat[owner * self.width + self.columns] += added

    def centred_scores(self, rows: Rows, present: Mask) -> Floats:
        """The mean is that of the entries, as all other rows have 0."""
        there = np.where(present[self.columns], self.values, np.float32(0))
        sums = np.concatenate([[0], np.cumsum(there, dtype=np.float64)])[self.starts]
        mean_B = (np.diff(sums) / max(1, int(present.sum()))).astype(np.float32)
        return self.scores(rows) - mean_B[:, None]

    def candidates(self, m: int) -> list[Candidates]:
        """The best entries, then rows of score 0 where there are fewer."""
        found = []
        for history in range(len(self)):
            columns, values = self.entries(history)
            if len(columns) > m:
                best = top_columns(values[None], m + 1)[0]
                rows, scores, bound = columns[best[:m]].astype(np.int64), values[best[:m]], float(values[best[m]])
            else:
                wanted = min(m, self.width)
                others = np.setdiff1d(np.arange(min(self.width, wanted + len(columns))), columns)
                rows = np.concatenate([columns.astype(np.int64), others[: wanted - len(columns)]])
                scores = np.concatenate([values, np.zeros(len(rows) - len(values), np.float32)])
                bound = 0.0 if len(rows) < self.width else -np.inf
            found.append(Candidates(rows, scores, bound))
        return found
