"""Events that are counted into a running memory: checked, looked up, and counted in without a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.moments import seconds_of, times_of
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import Event, identifiers

#: Clocks differ; an event may be so many seconds ahead of this one.
AHEAD = 3600


class _Counted(NamedTuple):
    """An event in rows, its times in seconds since 1970."""

    history: list[int]
    item: int
    time: int
    times: list[int] | None


def count_events(name: str, snapshots: Sequence[Snapshot], events: Sequence[Event]) -> None:
    """Counts events into the memory that models of one export share; all of them, or none if one is wrong.

    Args:
        name: of the export, for errors.
        snapshots: of its models.

    Raises:
        DataError: an event is wrong; names it.
        RunError: there is no memory.
    """
    memories = [snapshot.memory for snapshot in snapshots if snapshot.memory is not None]
    if not memories:
        raise RunError(
            f"{name} has no memory, into which events are counted",
            "Train with `memory: auto`, and export the run with --memory on.",
        )
    looked_up = []
    for place, event in enumerate(events):
        try:
            looked_up.append(_looked_up(snapshots[0].catalogue, event))
        except DataError as error:
            where = f"events[{place}]: " if len(events) > 1 else ""
            raise DataError(f"{where}{error.what}", error.remedy) from error
    for counted in looked_up:
        memories[0].observe(counted.history, counted.item, counted.time, counted.times)
        for beside in memories[1:]:
            beside.advance(counted.time + 1)  # the counts are shared; it answers for the same moment


def _looked_up(catalogue: Catalogue, event: Event) -> _Counted:
    """An event in rows; unknown items of its history are skipped.

    Raises:
        DataError: the item is unknown, there is not a time for each item of the history, or a time lies in the future.
    """
    clock = int(time.time())
    chosen, unknown = catalogue.rows(identifiers("item", [event.item]))
    if unknown:
        raise DataError(f"the catalogue has no item {unknown[0]!r}", "Add it first, or leave the event out.")
    when = clock if event.time is None else seconds_of("time", event.time)
    if when > clock + AHEAD:
        raise DataError(
            f"the event's time {when} is more than an hour ahead of this machine's clock, {clock}",
            "Give seconds since 1970 of what has happened.",
        )
    named = identifiers("history", event.history, ordered=True)
    seconds = None if event.times is None else times_of(event.times, len(named))
    known = [place for place, one in enumerate(named) if one in catalogue.index]
    rows = [catalogue.index[named[place]] for place in known]
    return _Counted(rows, chosen[0], when, None if seconds is None else [seconds[place] for place in known])
