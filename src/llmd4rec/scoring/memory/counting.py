"""Counts of a log, in bounded memory: which item came shortly after which, and which the same users chose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.arrays import Int32Array, Int64Array
from llmd4rec.log import Bar, bar
from llmd4rec.scoring.memory.settings import Transitions

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
DAY = 86_400
#: Events that are looked at together, and pairs that are sorted together: about 1 GB.
EVENTS_AT_ONCE = 1 << 22
PAIRS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Log:
    """Histories of which some events count.

    Attributes:
        items: all events, history after history, oldest first.
        offsets: history h is items[offsets[h]:offsets[h + 1]].
        counted: which events count, [N]; those before an event that counts in the same history do, too.
        times: when each was, in seconds; None where that is not known.
        num_items: I.
    """

    items: Int32Array
    offsets: Int64Array
    counted: Mask
    times: Int64Array | None
    num_items: int


def pair_weight(settings: Transitions, gap: int, tied: bool) -> tuple[float, float]:
    """What one pair adds: to the later item as a follower of the earlier one, and the other way round."""
    if tied and settings.ties == "half":
        half = (1 + settings.reverse) / (2 * gap)
        return half, half
    return 1 / gap, settings.reverse / gap


def count_pairs(
    log: Log, settings: Transitions, now: int | None, pairs_at_once: int = PAIRS_AT_ONCE
) -> tuple[Int64Array, Int32Array, NDArray[np.float32]]:
    """How often items followed each item, as sparse rows (starts, columns, counts), each cut to the highest counts.

    Rows are counted a range of items at a time, so that memory is bounded by `pairs_at_once` and the result. Each row
    is complete before it is cut.

    Args:
        log: the histories.
        settings: what counts how much.
        now: the moment at which counts are as old as they are; None: there is no age.
        pairs_at_once: how many pairs are held at once.

    Returns:
        Starts [I + 1], columns [N] and counts [N, 1]; or [N, 2], where the second is the count with a half-life.
    """
    sizes = np.zeros(log.num_items, dtype=np.int64)
    for rows, _, _, _ in _entries(log, settings, None, 0, log.num_items):
        sizes += np.bincount(rows, minlength=log.num_items)
    ranges = _ranges(sizes, pairs_at_once)
    parts = []
    with bar("counting transitions", int(sizes.sum()), "pairs") as progress:
        for first, last in ranges:
            entries = list(_entries(log, settings, now, first, last))
            rows, columns, values, ages = (np.concatenate(each) for each in zip(*entries, strict=True))
            numbers = [values] if now is None else [values, values * ages]
            mix_C = mixed(settings, len(numbers))
            parts.append(
                _summed(rows - first, columns, numbers, last - first, log.num_items, mix_C, settings.max_per_row)
            )
            progress.advance(int(sizes[first:last].sum()))
    counts, columns, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    return np.concatenate([[0], np.cumsum(counts)]), columns, values


def _entries(
    log: Log, settings: Transitions, now: int | None, first: int, last: int
) -> Iterator[tuple[Int32Array, Int32Array, Floats, Floats]]:
    """(row, column, count, what is left of it) of all pairs, of rows first..last; no age where `now` is None."""
    place = (np.arange(len(log.items)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))).astype(np.int32)
    yield np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0), np.empty(0)
    for start in range(0, len(log.items), EVENTS_AT_ONCE):
        part = slice(start, start + EVENTS_AT_ONCE)
        counted = log.counted[part]
        for gap in range(1, settings.gaps + 1):
            later = start + np.flatnonzero(counted & (place[part] >= gap))
            one, two = log.items[later - gap], log.items[later]
            forward, back = np.full((2, len(later)), [[value] for value in pair_weight(settings, gap, False)])
            if settings.ties == "half" and log.times is not None:
                tied = log.times[later - gap] == log.times[later]
                forward[tied], back[tied] = pair_weight(settings, gap, True)
            age = np.empty(0)
            if now is not None and log.times is not None:
                age = np.exp2((log.times[later] - now) / (settings.half_life_days * DAY))
            for rows, columns, values in ((one, two, forward), (two, one, back)):
                chosen = np.flatnonzero((rows >= first) & (rows < last) & (values > 0))
                yield rows[chosen], columns[chosen], values[chosen], age if now is None else age[chosen]


def _ranges(sizes: Int64Array, pairs_at_once: int) -> list[tuple[int, int]]:
    """Ranges of rows with at most so many pairs, or a single row."""
    behind = np.cumsum(sizes)
    ranges, first = [], 0
    while first < len(sizes):
        before = behind[first - 1] if first else 0
        last = max(first + 1, int(behind.searchsorted(before + pairs_at_once, side="right")))
        ranges.append((first, last))
        first = last
    return ranges


def _summed(
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    numbers: list[Floats],
    height: int,
    width: int,
    mix_C: NDArray[np.float32],
    max_per_row: int,
) -> tuple[Int64Array, Int32Array, NDArray[np.float32]]:
    """Entries of one place added up, by row and column, and the largest of each row: lengths, columns and counts."""
    key = rows.astype(np.int64) * width + columns
    order = key.argsort(kind="stable")
    key = key[order]
    if not len(key):
        return np.zeros(height, np.int64), np.empty(0, np.int32), np.empty((0, len(numbers)), np.float32)
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    values_NC = np.stack([np.add.reduceat(each[order], first) for each in numbers], axis=1)
    row, column = np.divmod(key[first], width)
    lengths = np.bincount(row, minlength=height)
    if lengths.max() > max_per_row:
        ranked = np.lexsort((column, -(values_NC @ mix_C), row))
        inside = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = np.sort(ranked[inside < max_per_row])
        row, column, values_NC = row[kept], column[kept], values_NC[kept]
        lengths = np.bincount(row, minlength=height)
    return lengths, column.astype(np.int32), values_NC.astype(np.float32)


def mixed(settings: Transitions, numbers: int) -> NDArray[np.float32]:
    """What the numbers of an entry weigh: its count, and its count with a half-life, where it has that."""
    return np.array([1.0, settings.recent_weight][:numbers], dtype=np.float32)


def count_together(
    log: Log,
    reach: int,
    max_per_row: int,
    pairs_at_once: int = PAIRS_AT_ONCE,
    shown: bool = True,
) -> tuple[Int64Array, Int32Array, NDArray[np.float32], Int64Array]:
    """How often two items were chosen together, as sparse rows, symmetric but for their cut; how often each was chosen.

    An event counts its item together with each different item among the `reach` events before it in its history, once
    each. An item that is itself among these counts as chosen before, and not again. Rows are counted a range of items
    at a time, so that memory is bounded by `pairs_at_once` and the result.

    Args:
        log: the histories.
        reach: how far back an event looks.
        max_per_row: of each complete row, so many of the highest counts are kept.
        pairs_at_once: how many pairs are held at once.
        shown: with a progress bar.

    Returns:
        Starts [I + 1], columns [N], counts [N, 1]; and how often each item was chosen, [I].
    """
    counted = np.flatnonzero(log.counted)
    items = np.asarray(log.items)[counted]
    history = np.searchsorted(log.offsets, counted, side="right") - 1
    starts_of = np.searchsorted(history, np.arange(len(log.offsets)))
    place = np.arange(len(items)) - starts_of[history]
    behind = starts_of[history + 1] - 1 - np.arange(len(items))
    same_before, same_behind = _same_item(history, items, log.num_items)
    is_new = np.arange(len(items)) - same_before > reach
    chosen_I = np.bincount(items[is_new], minlength=log.num_items)
    sizes = np.bincount(items, np.minimum(place, reach) + np.minimum(behind, reach), log.num_items).astype(np.int64)
    by_item = np.argsort(items, kind="stable")
    first_of = np.concatenate([[0], np.cumsum(np.bincount(items, minlength=log.num_items))])
    parts = []
    silent = contextlib.nullcontext(Bar(lambda amount, note: None))
    with bar("counting what the same users chose", int(sizes.sum()), "pairs") if shown else silent as progress:
        for first, last in _ranges(sizes, pairs_at_once):
            events = by_item[first_of[first] : first_of[last]]
            own, other = [], []
            # Of each pair the earlier event is the last one of its item before the later, and the later one is new.
            for one, two, rows in (
                (*_spread(events, -np.minimum(place[events], reach)), 1),
                (*_spread(events, np.minimum(behind[events], reach)), 0),
            ):
                earlier, later = (two, one) if rows else (one, two)
                kept = is_new[later] & (same_behind[earlier] > later) & (items[earlier] != items[later])
                own.append(items[one[kept]])
                other.append(items[two[kept]])
            rows_N, columns_N = np.concatenate(own), np.concatenate(other)
            ones = np.ones(len(rows_N))
            parts.append(
                _summed(
                    rows_N - first, columns_N, [ones], last - first, log.num_items, np.ones(1, np.float32), max_per_row
                )
            )
            progress.advance(int(sizes[first:last].sum()))
    lengths, columns, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    return np.concatenate([[0], np.cumsum(lengths)]), columns, values, chosen_I


def _same_item(history: Int64Array, items: Int32Array, num_items: int) -> tuple[Int64Array, Int64Array]:
    """Where each event's item stands in its history before, and behind it; far away where it does not."""
    key = history * num_items + items
    order = np.argsort(key, kind="stable")
    same = key[order][1:] == key[order][:-1]
    before = np.full(len(items), -(1 << 60), np.int64)
    behind = np.full(len(items), 1 << 60, np.int64)
    before[order[1:][same]] = order[:-1][same]
    behind[order[:-1][same]] = order[1:][same]
    return before, behind


def _spread(events: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Each event with so many events behind it, or before it where the count is negative."""
    sizes = np.abs(counts)
    one = np.repeat(events, sizes)
    step = np.arange(len(one)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    return one, one + np.repeat(np.sign(counts), sizes) * step
