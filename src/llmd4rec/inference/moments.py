"""Moments in requests: whole seconds since 1970, dates with times, or ISO text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from numbers import Integral
from typing import Any

from llmd4rec.errors import DataError

#: What a moment may be given as. A date without a time zone is in UTC.
Moment = int | float | str | datetime | date
#: From here on a number of seconds is beyond the year 5000, and most likely one of milliseconds.
_LATEST = 10**11
_REMEDY = 'Give seconds since 1970, a datetime, or ISO text such as "2026-11-28T20:15:00Z".'


def seconds_of(name: str, given: Any) -> int:
    """A moment in seconds since 1970.

    Raises:
        DataError: it is none; `name` says what it was given as.
    """
    if isinstance(given, str):
        text = given.strip()
        try:
            given = int(text) if text.lstrip("-").isdigit() else datetime.fromisoformat(text)
        except ValueError:
            raise DataError(f"{name} is {text!r}, which is no moment", _REMEDY) from None
    if isinstance(given, datetime):
        return int((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp())
    if isinstance(given, date):
        return int(datetime(given.year, given.month, given.day, tzinfo=UTC).timestamp())
    if isinstance(given, float) and math.isfinite(given):  # what time.time() gives
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise DataError(f"{name} is {given!r}, which is no moment", _REMEDY)
    if abs(int(given)) >= _LATEST:
        raise DataError(f"{name} is {given}, which is too large for seconds since 1970", "Divide milliseconds by 1000.")
    return int(given)


def times_of(given: Any, num_items: int) -> list[int]:
    """The times of a history's items, in seconds since 1970.

    Raises:
        DataError: there is not one for each item, or one is no moment.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(f"times is {given!r}, not a list", "Give one for each item of the history.")
    times: Sequence[Any] = list(given)
    if len(times) != num_items:
        raise DataError(
            f"times has {len(times):,} entries, the history {num_items:,}", "Give one for each item of the history."
        )
    return [seconds_of(f"times[{place}]", each) for place, each in enumerate(times)]
