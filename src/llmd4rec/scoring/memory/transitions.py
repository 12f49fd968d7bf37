"""What follows what: counts of items that came shortly after one another."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.scoring.memory.counting import DAY, Log, count_pairs, mixed, pair_weight
from llmd4rec.scoring.memory.settings import Transitions
from llmd4rec.scoring.memory.sparse import SparseRowQuery, SparseRows
from llmd4rec.scoring.rows import RowScorer

#: Scores are log(1 + 3 · count).
STEEPNESS = 3.0
#: Half-lives after which the stored counts are brought to another moment, long before a 32-bit number ends.
_RESCALED_AFTER = 40.0


@dataclass(frozen=True)
class _State:
    """The counts, at which moment they are as old as they are stored, and at which they are asked for.

    Both moments are None where there is no age, or no event with a time yet.
    """

    rows: SparseRows
    moment: int | None
    asked_at: int | None

    def left(self, settings: Transitions) -> float:
        """From stored counts with a half-life to those asked for."""
        if self.moment is None or self.asked_at is None:
            return 1.0
        return float(2.0 ** ((self.moment - self.asked_at) / (settings.half_life_days * DAY)))

    def mix_C(self, settings: Transitions) -> NDArray[np.float32]:
        """What the stored numbers of an entry weigh."""
        return mixed(settings, self.rows.numbers) * self._factor_C(settings)

    def _factor_C(self, settings: Transitions) -> NDArray[np.float32]:
        return np.array([1.0, self.left(settings)][: self.rows.numbers], dtype=np.float32)

    def brought(self, settings: Transitions) -> _State:
        """Stored as they are asked for."""
        return _State(self.rows.scaled(self._factor_C(settings)), self.asked_at, self.asked_at)


class _Counts:
    """What grown copies of a scorer share. One writer at a time; readers take the state once."""

    def __init__(self, state: _State) -> None:
        self.state, self.writing = state, threading.Lock()


class TransitionScorer(RowScorer):
    """log(1 + 3 · Σ over the most recent items, weighted, of how often an item came shortly after them).

    Readers need no lock: a row that is changed is replaced as a whole.

    Args:
        settings: what counts how much.
        rows: how often items followed each item.
        num_rows: I.
        moment: at which the counts are as old as they are; None: there is no age.
    """

    name = "transitions"

    def __init__(self, settings: Transitions, rows: SparseRows, num_rows: int, moment: int | None) -> None:
        self.settings, self._num_rows = settings, num_rows
        self._counts = _Counts(_State(rows, moment, moment))

    @classmethod
    def count(cls, settings: Transitions, log: Log, now: int | None) -> TransitionScorer:
        """Of a log, as old as counts are at `now`."""
        moment = now if log.times is not None and settings.recent_weight else None
        rows = SparseRows(*count_pairs(log, settings, moment), settings.max_per_row)
        return cls(settings, rows, log.num_items, moment)

    @property
    def num_rows(self) -> int:
        """I."""
        return self._num_rows

    def followers(self, item: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What came shortly after an item, ascending, and how often, without age."""
        columns, values_NC = self._counts.state.rows.row(item)
        return columns, values_NC[:, 0]

    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> SparseRowQuery:
        """Sums of the most recent items' rows."""
        return self._scored(self._counts.state, *self._picks(windows), None)

    def prepare_leaving_out(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
        items: Sequence[int | None],
    ) -> SparseRowQuery:
        """As :meth:`prepare`, for steps that were counted themselves: less what each of them added.

        Scores that a model learns from, or is taught with, must not know the step that is to be predicted.

        Args:
            windows, times: as for :meth:`prepare`; the last :attr:`Transitions.gaps` items at least.
            now: when each step was.
            items: the item of each step; None: it was not counted.
        """
        state = self._counts.state
        mix_C = state.mix_C(self.settings)
        picks, weights = self._picks(windows)
        owners: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        for place, (window, item) in enumerate(zip(windows, items, strict=True)):
            if item is None:
                continue
            for one, other, numbers in self._added(state, window, times[place], item, now[place]):
                for pick, weight in zip(picks[place], weights[place], strict=True):
                    if pick == one:
                        owners.append(place)
                        columns.append(other)
                        values.append(-weight * float(np.dot(numbers, mix_C)))
        corrections = np.array(owners, np.int64), np.array(columns, np.int32), np.array(values, np.float32)
        return self._scored(state, picks, weights, corrections)

    def observe(self, history: Sequence[int], item: int, time: int | None, times: Sequence[int] | None = None) -> None:
        """Counts one event.

        Args:
            history: what came before it, oldest first.
            item: what was chosen.
            time: when.
            times: when each of the history was; needed where items of one moment count half each way.
        """
        with self._counts.writing:
            if time is not None:
                self._age(time)
            state = self._counts.state
            mix_C = state.mix_C(self.settings)
            for one, other, numbers in self._added(state, history, times, item, time):
                state.rows.add(one, other, numbers, mix_C)

    def age(self, now: int) -> None:
        """Lets counts be as old as they are at a moment, if it is later than the one before."""
        with self._counts.writing:
            self._age(now)

    def grown(self, num_rows: int) -> TransitionScorer:
        """The same counts for a catalogue of more items."""
        grown = TransitionScorer(self.settings, self._counts.state.rows, num_rows, None)
        grown._counts = self._counts
        return grown

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, NDArray[np.float32]]) -> TransitionScorer:
        """New items follow nothing until they are observed."""
        return self.grown(max(self._num_rows, max(rows, default=-1) + 1))

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The counts as sparse rows, as of :attr:`moment`."""
        starts, columns, values_NC = self._counts.state.brought(self.settings).rows.arrays()
        return (
            np.concatenate([starts, np.full(max(0, self._num_rows + 1 - len(starts)), starts[-1])]),
            columns,
            values_NC,
        )

    @property
    def moment(self) -> int | None:
        """At which the counts are as old as they are; None: there is no age."""
        return self._counts.state.asked_at

    def _picks(self, windows: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[tuple[float, ...]]]:
        last = self.settings.last
        picks = [list(window)[-len(last) :][::-1] for window in windows]
        return picks, [last[: len(each)] for each in picks]  # type: ignore[return-value]

    def _scored(self, state: _State, picks: Any, weights: Any, more: Any) -> SparseRowQuery:
        mix_C = state.mix_C(self.settings)
        summed = SparseRowQuery.of_sums(state.rows, picks, weights, self._num_rows, mix_C, more)
        return replace(summed, values=np.log1p(np.float32(STEEPNESS) * np.maximum(summed.values, 0)))

    def _added(
        self, state: _State, history: Sequence[int], times: Sequence[int] | None, item: int, time: int | None
    ) -> list[tuple[int, int, tuple[float, ...]]]:
        """What an event adds to which row and column, in stored numbers."""
        settings, age = self.settings, 0.0
        if state.moment is not None and time is not None:
            age = 2.0 ** ((time - state.moment) / (settings.half_life_days * DAY))
        numbers = (1.0, age)[: state.rows.numbers]
        added = []
        for gap in range(1, min(settings.gaps, len(history)) + 1):
            before = history[-gap]
            tied = times is not None and time is not None and times[-gap] == time
            forward, back = pair_weight(settings, gap, tied)
            added.append((before, item, tuple(forward * number for number in numbers)))
            if back:
                added.append((item, before, tuple(back * number for number in numbers)))
        return added

    def _age(self, now: int) -> None:
        state = self._counts.state
        if state.moment is None or state.asked_at is None:
            if state.rows.numbers < 2:
                return
            state = replace(state, moment=now, asked_at=now)  # the first event with a time
        state = replace(state, asked_at=max(state.asked_at or now, now))
        self._counts.state = (
            state if state.left(self.settings) > 2.0**-_RESCALED_AFTER else state.brought(self.settings)
        )
