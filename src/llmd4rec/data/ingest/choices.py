"""The values that settings of `prepare` choose from; apart from these, for the command line, which must start fast."""

from __future__ import annotations

from typing import Literal

Order = Literal["auto", "time", "position", "row"]
Ties = Literal["row", "hash", "last-first"]
MissingTimes = Literal["refuse", "drop"]
Duplicates = Literal["exact", "keep", "drop-consecutive", "drop"]
Split = Literal["leave-one-out", "temporal"]
#: Whose item behind a cut is a target; see :class:`~llmd4rec.data.ingest.settings.Prepare`.
TargetHistory = Literal["auto", "window", "event"]
#: How quotation marks are written in separated values; see :class:`~llmd4rec.data.ingest.separated.Layout`.
Quoting = Literal["auto", "double", "backslash", "none"]
