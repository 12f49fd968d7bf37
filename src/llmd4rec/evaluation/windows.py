"""Windows of time behind a cut, and whose next items are to be found in each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.splits import moment_before_last, targets_in
from llmd4rec.data.ingest.table import Table
from llmd4rec.data.ingest.times import as_text, guess_unit, plan, to_seconds
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.evaluation.held_out import HeldOut, held_out_at, number_of_targets

Int64Array = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: What a span of time is written in: `7d`, `6h`, `30m`, `90s`, `2w`.
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
DAY = SECONDS["d"]
CountTo = Literal["window", "event"]
History = Literal["window", "event"]


@dataclass(frozen=True)
class Rolling:
    """What a rolling evaluation does.

    Attributes:
        windows: how many, from the cut on; fewer where the log ends before.
        every: how long each is, in seconds.
        choose_on: weights are chosen on the first so many windows; the figures to quote are those of the others.
        count_to: counts are of everything before a window's start (`window`), or before each target's moment
            (`event`).
        targets: `next`, `next:5` or `all` of what a user does in a window; see
            :class:`~llmd4rec.evaluation.evaluator.Evaluator`.
        history: whose next item is to be found: users with a history before the window (`window`), or with an event
            before the target, be it in the window (`event`, for logs of short sessions). None: as the targets of the
            data set were chosen.
        released: a field of the catalogue with dates; in a window, items of a later date than its start are no
            candidates. None: every item is one.
        filter_seen: items of the history are no candidates.
        cut: the moment at which the first window begins, in seconds since 1970; None: the test cut of a temporal split.

    Raises:
        ConfigError: one of them is out of range.
    """

    windows: int = 10
    every: int = 7 * DAY
    choose_on: int = 3
    count_to: CountTo = "window"
    targets: str = "next"
    history: History | None = None
    released: str | None = None
    filter_seen: bool = True
    cut: int | None = None

    def __post_init__(self) -> None:
        number_of_targets(self.targets)
        for name, least in (("windows", 1), ("every", 1), ("choose_on", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}", f"Give a whole number from {least}.")
        if self.choose_on >= self.windows:
            raise ConfigError(
                f"choose_on is {self.choose_on} of {self.windows} windows, which leaves none to show",
                "Choose on fewer windows, or take more of them.",
            )
        for name, value in (("count_to", self.count_to), ("history", self.history)):
            if value not in ("window", "event") and not (name == "history" and value is None):
                raise ConfigError(f"{name} is {value!r}", "Choose window or event.")

    def on(self, data: Dataset) -> Rolling:
        """The same with what the data set decides: the cut, and whose next item is to be found.

        Raises:
            DataError: the data set has no moment behind which everything is held out.
        """
        cut = cut_of(data) if self.cut is None else self.cut
        return replace(self, cut=cut, history=self.history or data.target_history)


class Window(NamedTuple):
    """One window: from `start` up to, not including, `end`, in seconds since 1970; the first has number 0."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class WindowTargets:
    """What is to be found in one window.

    Attributes:
        window: the window.
        held: the targets of users with a history.
        first_events: flat positions of the first events ever of users whose first is in the window.
        candidates_I: which items may be recommended; None: all.
    """

    window: Window
    held: HeldOut
    first_events: Int64Array
    candidates_I: Mask | None = None


def seconds_of(span: str) -> int:
    """`7d`, `6h`, `30m`, `90s` or `2w` in seconds.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"(\d{1,9})([smhdw])", span.strip())
    if found is None or int(found[1]) == 0:
        raise ConfigError(f"{span!r} is no span of time", "Write it as 7d (days), 6h (hours), 30m, 90s or 2w (weeks).")
    return int(found[1]) * SECONDS[found[2]]


def cut_of(data: Dataset) -> int:
    """The moment at which the test part of a temporal split begins, in seconds since 1970.

    Raises:
        DataError: the data set is split otherwise.
    """
    if not data.is_temporal or data.times is None or not len(data.test):
        split = data.report.get("split", {}).get("kind", "another split")
        raise DataError(
            f"{data.path or 'the data set'} has no moment behind which everything is held out: its split is {split}",
            "Prepare it with `llmd4rec prepare --split temporal` and train on that; or, for baselines alone, give "
            "--cut-fraction.",
        )
    return int(moment_before_last(np.asarray(data.times), data.settings["test_fraction"]))


def cut_at_fraction(data: Dataset, fraction: float) -> int:
    """The moment at which the last share of the interactions begins.

    Raises:
        DataError: the data set has no times.
        ConfigError: the share is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"the cut fraction is {fraction}", "Give a share between 0 and 1, such as 0.1.")
    return int(moment_before_last(event_times(data), fraction))


def event_times(data: Dataset) -> Int64Array:
    """When each interaction was.

    Raises:
        DataError: the data set has no times, or they fall within a history.
    """
    times = data.event_times
    if times is None:
        raise DataError(
            f"{data.path or 'the data set'} has no times, without which no window can be cut",
            "Prepare it from a log with timestamps.",
        )
    falls = np.flatnonzero(np.diff(times) < 0) + 1
    if len(falls := np.setdiff1d(falls, data.offsets)):
        user = data.user_ids[int(data.users_of(falls[:1])[0])]
        raise DataError(
            f"{data.path or 'the data set'} is not in the order of time: times fall within the history of {user!r}",
            "Prepare it with --order-by time.",
        )
    return times


def windows_of(data: Dataset, rolling: Rolling) -> list[WindowTargets]:
    """The windows and their targets. Those that begin behind the end of the log are left out.

    Raises:
        DataError: the data set has no times or no cut, there is no target with a history, or no date of release.
        ConfigError: the catalogue has no such field.
    """
    rolling = rolling.on(data)
    cut = rolling.cut
    assert cut is not None
    times, starts = event_times(data), np.asarray(data.offsets[:-1])
    released = None if rolling.released is None else release_times(data, rolling.released)
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))

    def first_since(moment: int) -> Int64Array:
        """Flat position of each user's first event at or after a moment; their end if there is none."""
        return starts + np.bincount(users[times < moment], minlength=data.num_users)

    found = []
    last_moment = int(times.max())
    if int(times.min()) == last_moment:
        raise DataError(
            f"all interactions of {data.path or 'the data set'} have the same time, so that no moment divides them",
            "Prepare it with the column that holds the times of the events.",
        )
    first = first_since(cut)
    for number in range(rolling.windows):
        window = Window(number, cut + number * rolling.every, cut + (number + 1) * rolling.every)
        if window.start > last_moment:
            break
        end = first_since(window.end)
        positions = targets_in(starts, first, end, rolling.history or "window")
        held = held_out_at(data, positions, end[data.users_of(positions)], rolling.targets)
        allowed = None if released is None else released <= window.start
        found.append(WindowTargets(window, held, starts[(first == starts) & (end > starts)], allowed))
        first = end
    if not any(len(each.held.positions) for each in found):
        raise DataError(
            f"no user with a history has a target behind the cut, {as_text(cut)}",
            "Take longer windows, an earlier cut, or histories up to the event (--history event).",
        )
    if not any(len(each.held.positions) for each in found[rolling.choose_on :]):
        count = f"{len(found)} window{'s' if len(found) > 1 else ''}"
        raise DataError(
            f"the log has {count} behind the cut, {as_text(cut)}, and weights are chosen on the first "
            f"{rolling.choose_on}: there is no target left to show",
            "Choose on fewer windows (--choose-on), take shorter ones (--every), or, for logs of short sessions, let "
            "histories begin in a window (--history event).",
        )
    return found


def release_times(data: Dataset, field: str) -> Int64Array:
    """When each item came out, in seconds since 1970; the earliest possible where its field is empty or unreadable.

    Raises:
        ConfigError: the catalogue has no such field.
        DataError: it holds no times.
    """
    if field not in data.catalogue.columns:
        known = ", ".join(name for name in data.catalogue.columns if name != "item_id") or "none"
        raise ConfigError(f"the catalogue has no field {field!r}", f"It has: {known}.")
    values = data.catalogue[field]
    years = values.cast(pl.Int64, strict=False)
    if years.drop_nulls().is_between(1800, 2200).all() and years.null_count() == values.null_count():
        first_day = pl.date(pl.col("year"), 1, 1).cast(pl.Datetime("ms"))
        seconds = pl.DataFrame({"year": years}).select(first_day.dt.epoch("s")).to_series()
    else:
        table = Table(data.catalogue.lazy().select(field), "the catalogue")
        how = plan(field, table)
        numbers = data.catalogue.select(how.value).to_series()
        seconds = to_seconds(numbers, how.unit or guess_unit(numbers.drop_nulls()))
    if seconds.null_count() == len(seconds):
        raise DataError(f"the catalogue's field {field!r} holds no date", "Name a field with the dates of release.")
    return seconds.cast(pl.Int64).fill_null(np.iinfo(np.int64).min).to_numpy()
