"""What is chosen now: interactions with each item before a moment, of which older ones count less."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.arrays import Int32Array, Int64Array
from llmd4rec.scoring.memory.counting import DAY, Log
from llmd4rec.scoring.memory.settings import Recency
from llmd4rec.scoring.rows import Candidates, Mask, RowQuery, Rows, RowScorer, SearchLimits
from llmd4rec.scoring.topk import top_columns

Floats = NDArray[np.float32]
Counts = NDArray[np.float64]
#: Half-lives after which an interaction is forgotten: less than a four-billionth of it is left.
HORIZON = 32.0
#: Scores that are kept of moments for which many histories are answered: 64 MB.
_KEPT = 1 << 24
#: The most chosen rows of now that are kept at hand.
_LEADERS = 2000


class _Leaders(NamedTuple):
    """The most chosen rows, all rows chosen since they were sought, and what no other had then."""

    rows: Rows
    since: set[int]
    others: float


class _Scored(NamedTuple):
    """The scores of all rows at a moment behind the last interaction, and after how many additions."""

    added: int
    now: int
    scores: Floats


class Events:
    """Interactions in the order of time, and what they add up to behind the last of them.

    There may be one writer at a time. Readers need no lock: what belongs together is replaced together.

    Args:
        settings: what counts how much.
        times, items: of all interactions.
        num_rows: I.
    """

    def __init__(self, settings: Recency, times: Int64Array, items: Int32Array, num_rows: int) -> None:
        order = np.argsort(times, kind="stable")
        self.settings = settings
        self.writing = threading.Lock()
        self._half_life = None if settings.half_life_days is None else settings.half_life_days * DAY
        #: Times, items, and how many of them there are; behind these is room for more.
        self._log = np.asarray(times[order], np.int64), np.asarray(items[order], np.int32), len(order)
        self._leaders: _Leaders | None = None
        #: How often something was added, counted when it is there; and the scores of all rows that were made last.
        self._added, self._scored = 0, _Scored(-1, 0, np.empty(0, np.float32))
        #: A moment behind the last interaction, and the counts there; None where old ones leave a window.
        self._latest: tuple[int, Counts] | None = None
        if settings.window_days is None:
            behind = 0 if self.last is None else self.last + 1
            self._latest = behind, self._fresh(behind, num_rows)

    @property
    def last(self) -> int | None:
        """When the last interaction was."""
        times, _, size = self._log
        return int(times[size - 1]) if size else None

    def arrays(self) -> tuple[Int64Array, Int32Array]:
        """Times and items, oldest first."""
        times, items, size = self._log
        return times[:size], items[:size]

    def latest(self, now: int, rows: Rows | None, num_rows: int) -> Counts | None:
        """The counts of some rows, or of all, at a moment behind the last interaction; None: it is not behind it."""
        latest, last = self._latest, self.last
        if latest is None or (last is not None and now <= last):
            return None
        moment, stored = latest
        if rows is None:
            found = np.zeros(num_rows)
            found[: len(stored)] = stored[:num_rows]
        else:
            found = np.where(rows < len(stored), stored[np.minimum(rows, len(stored) - 1)], 0)
        result: Counts = found * self._left(moment, now)
        return result

    def scores(self, now: int, rows: Rows | None, num_rows: int) -> Floats | None:
        """log(1 + :meth:`latest`), which is made once for all histories of a moment; not to be changed."""
        added, kept = self._added, self._scored  # read first: what is added meanwhile makes these scores old
        if kept.added != added or kept.now != now or len(kept.scores) != num_rows:
            counts = self.latest(now, rows, num_rows)
            if counts is None or rows is not None:
                return None if counts is None else np.log1p(counts.astype(np.float32))
            self._scored = kept = _Scored(added, now, np.log1p(counts.astype(np.float32)))
        return kept.scores if rows is None else kept.scores[rows]

    def counts(self, now: int, num_rows: int, before: tuple[int, Counts] | None = None) -> Counts:
        """What the interactions before a moment add up to.

        Args:
            now: the moment.
            num_rows: I.
            before: an earlier moment and its counts, from which these are made where that is shorter.
        """
        if before is None or self.settings.window_days is not None:
            return self._fresh(now, num_rows)
        times, items = self.arrays()
        first, end = times.searchsorted([before[0], now])
        counts: Counts = before[1] * self._left(before[0], now)
        known = np.flatnonzero(items[first:end] < num_rows) + first  # a grown copy may have observed others
        np.add.at(counts, items[known], self._left(times[known], now))
        return counts

    def add(self, item: int, time: int) -> None:
        """Counts one interaction, in the order of time or late."""
        times, items, size = self._log
        place = int(times[:size].searchsorted(time, side="right"))
        if place < size:
            times, items = np.insert(times, place, time), np.insert(items, place, item)
        else:
            if size == len(times):
                room = max(1024, size // 8)
                times = np.concatenate([times, np.zeros(room, np.int64)])
                items = np.concatenate([items, np.zeros(room, np.int32)])
            times[size], items[size] = time, item
        self._log = times, items, size + 1
        if self._latest is None:
            return
        moment, stored = self._latest
        if not size:
            moment = time
        if item >= len(stored):
            stored = np.concatenate([stored, np.zeros(max(item + 1 - len(stored), len(stored) // 8))])
        weight = float(self._left(time, moment))
        if weight > 2.0**HORIZON:  # brought to this moment, or the numbers would grow without end
            stored, moment, weight = stored * self._left(moment, time), time, 1.0
            self._leaders = None
        stored[item] += weight
        self._latest = moment, stored
        if self._leaders is not None:
            self._leaders.since.add(item)
        self._added += 1

    def leaders(self, now: int, num_rows: int) -> tuple[Rows, float] | None:
        """Rows that hold the most chosen ones, and the highest count of another; None: the moment is not the last."""
        latest, last = self._latest, self.last
        if latest is None or (last is not None and now <= last):
            return None
        moment, stored = latest
        found = self._leaders
        if found is None or len(found.since) > _LEADERS:
            since: set[int] = set()  # made first: what is added while rows are sought is in it, or found
            self._leaders = found = _Leaders(np.empty(0, np.int64), since, np.inf)
            counts = stored[:num_rows].astype(np.float32)
            rows = top_columns(counts[None], min(_LEADERS + 1, len(counts)))[0]
            others = float(counts[rows[_LEADERS]]) if len(rows) > _LEADERS else 0.0
            self._leaders = found = _Leaders(rows[:_LEADERS], since, others)
        since_rows = np.array(sorted(found.since.copy()), np.int64)
        rows = np.union1d(found.rows, since_rows[since_rows < num_rows])
        return rows, found.others * float(self._left(moment, now))

    def _fresh(self, now: int, num_rows: int) -> Counts:
        times, items = self.arrays()
        oldest = np.iinfo(np.int64).min
        if self.settings.window_days is not None:
            oldest = now - int(self.settings.window_days * DAY)
        if self._half_life is not None:
            oldest = max(oldest, now - int(HORIZON * self._half_life))
        first, end = times.searchsorted([oldest, now])
        weights = None if self._half_life is None else self._left(times[first:end], now)
        return np.bincount(items[first:end], weights, minlength=num_rows).astype(np.float64)[:num_rows]

    def _left(self, then: int | Int64Array, now: int) -> Counts:
        """What is left at `now` of an interaction at `then`."""
        age = np.asarray(now - then, dtype=np.float64)
        # An event long after the log ended is more than a number holds of what was counted then.
        return np.ones_like(age) if self._half_life is None else np.exp2(np.minimum(-age / self._half_life, 1000))


class RecencyScorer(RowScorer):
    """log(1 + interactions before now, halved every few days or within a window); the same for every history.

    A history is scored for its own moment: nothing at or behind that counts. Where it has none, everything counts.
    Readers need no lock.

    Args:
        events: the interactions.
        num_rows: I.
        as_of: later moments are answered as this one; None: as they are.
    """

    name = "recency"

    def __init__(self, events: Events, num_rows: int, as_of: int | None = None) -> None:
        self.events, self._num_rows, self.as_of = events, num_rows, as_of

    @classmethod
    def count(cls, settings: Recency, log: Log, as_of: int | None) -> RecencyScorer:
        """Of a log with times; events whose time is not known should not be counted in it."""
        assert log.times is not None
        events = Events(settings, log.times[log.counted], log.items[log.counted], log.num_items)
        return cls(events, log.num_items, as_of)

    @property
    def num_rows(self) -> int:
        """I."""
        return self._num_rows

    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> RecencyQuery:
        """The moment of each."""
        return RecencyQuery(self.events, self._num_rows, np.array([self.moment(each) for each in now], np.int64))

    def moment(self, now: int | None) -> int:
        """For which moment one is answered that is asked for at `now`."""
        last = self.events.last
        behind = 0 if last is None else last + 1
        if now is None:
            return behind if self.as_of is None else max(behind, self.as_of)
        return now if self.as_of is None else min(now, self.as_of)

    def observe(self, item: int, time: int) -> None:
        """Counts one interaction."""
        with self.events.writing:
            self.events.add(item, time)
        if self.as_of is not None:
            self.as_of = max(self.as_of, time + 1)

    def grown(self, num_rows: int) -> RecencyScorer:
        """The same interactions for a catalogue of more items."""
        return RecencyScorer(self.events, num_rows, self.as_of)

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> RecencyScorer:
        """New items were not chosen until they are observed."""
        return self.grown(max(self._num_rows, max(rows, default=-1) + 1))


@dataclass(frozen=True)
class RecencyQuery(RowQuery):
    """Histories by the moments for which they are answered."""

    events: Events
    width: int
    now_B: Int64Array
    #: Scores of moments, for the histories that are asked for next.
    known: dict[int, Floats] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """I."""
        return self.width

    @property
    def search_limits(self) -> SearchLimits | None:
        """The most chosen of the last moment are at hand."""
        return SearchLimits() if self.events.settings.window_days is None else None

    def __len__(self) -> int:
        return len(self.now_B)

    def take(self, which: slice | Rows) -> Self:
        """Their moments."""
        return type(self)(self.events, self.width, self.now_B[which], self.known)

    def scores(self, rows: Rows | None = None) -> Floats:
        """Moment after moment."""
        moments, which = np.unique(self.now_B, return_inverse=True)
        found_BN = np.empty((len(self), self.width if rows is None else len(rows)), np.float32)
        order = np.argsort(which, kind="stable")
        first = np.searchsorted(which[order], np.arange(len(moments) + 1))
        before = None
        for number, now in enumerate(moments.tolist()):
            some_N = self.known.get(now)
            if some_N is not None:
                some_N = some_N if rows is None else some_N[rows]
            elif (latest := self.events.scores(now, rows, self.width)) is not None:
                some_N = latest
            else:
                counts = self.events.counts(now, self.width, before)
                before = now, counts
                every_I = np.log1p(counts.astype(np.float32))
                if len(self.known) * self.width < _KEPT:
                    self.known[now] = every_I
                some_N = every_I if rows is None else every_I[rows]
            found_BN[order[first[number] : first[number + 1]]] = some_N
        return found_BN

    def add_to(self, total_BN: Floats, weight: float, rows: Rows | None = None) -> None:
        """Once for all histories where they are answered for one moment."""
        if len(self) and (self.now_B == self.now_B[0]).all():
            total_BN += np.float32(weight) * self._of_moment(int(self.now_B[0]), rows)
        else:
            super().add_to(total_BN, weight, rows)

    def _of_moment(self, now: int, rows: Rows | None) -> Floats:
        """The scores of one moment, not to be changed."""
        latest = self.events.scores(now, rows, self.width)
        return self.take(slice(0, 1)).scores(rows)[0] if latest is None else latest

    def centred_scores(self, rows: Rows, present: Mask) -> Floats:
        """Less one mean for all histories where they are answered for one moment."""
        if not len(self) or (self.now_B != self.now_B[0]).any():
            return super().centred_scores(rows, present)
        every_I = self._of_moment(int(self.now_B[0]), None)
        centred_N = every_I[rows] - every_I[present].mean()
        return np.repeat(centred_N[None], len(self), axis=0)

    def candidates(self, m: int) -> list[Candidates]:
        """The most chosen rows that are at hand; other moments are counted."""
        found = []
        for place, now in enumerate(self.now_B.tolist()):
            one = self.take(slice(place, place + 1))
            leaders = self.events.leaders(now, self.width) if m <= _LEADERS else None
            if leaders is None:
                found += RowQuery.candidates(one, m)
                continue
            rows, others = leaders
            bound = float(np.log1p(others)) if len(rows) < self.width else -np.inf
            found.append(Candidates(rows, one.scores(rows)[0], bound))
        return found
