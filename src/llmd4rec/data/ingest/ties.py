"""Interactions of one user and one moment: which comes first, and whether their order says more than it should.

Where rows of one moment stand in order of their items' identifiers, a model learns to name the next identifier: on
data of random choices this triples HR@10.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest.report import Report

#: So large a share of tied neighbours in order of their identifiers is pointed out; by chance it is a half.
_MOST = 2 / 3
#: The same where nothing orders the rows but the file: identifiers numbered as they first appear rise there, too.
_NEARLY_ALL = 0.9
#: So many standard deviations from a half, so that few ties say nothing.
_CERTAIN = 4
#: Ties in a smaller share of the neighbours matter little.
_FEW = 0.01


def hashes(texts: pl.Series) -> NDArray[np.uint64]:
    """64 bits for each text, the same everywhere."""
    return np.fromiter(
        (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts.to_list()),
        dtype=np.uint64,
        count=len(texts),
    )


def mixed(frame: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series) -> pl.Series:
    """A hash of user and item for each row: within a tie no item comes first everywhere."""
    users, items = hashes(user_ids)[frame["user"].to_numpy()], hashes(item_ids)[frame["item"].to_numpy()]
    with np.errstate(over="ignore"):
        mix = users ^ (items * np.uint64(0x9E3779B97F4A7C15))
        # The finisher of splitmix64.
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mix = (mix ^ (mix >> np.uint64(shift))) * np.uint64(factor)
        mix ^= mix >> np.uint64(31)
    return pl.Series(mix)


def examine(frame: pl.DataFrame, by: Sequence[str], item_ids: pl.Series, broken_by: str, report: Report) -> None:
    """Counts the neighbours that only `broken_by` orders, for the report, and warns where they follow the identifiers.

    Args:
        frame: the rows that are kept, sorted: `user`, `item` (codes) and what `by` names.
        by: the columns that order a user's rows; none: the rows stand as in the file.
        item_ids: identifier of each item code.
        broken_by: `row`, `hash` or `last-first`.
        report: gets the counts and the warning.
    """
    same_user = frame["user"].to_numpy()[1:] == frame["user"].to_numpy()[:-1]
    tied = same_user.copy()
    for name in by:
        column = frame[name]
        tied &= column.eq_missing(column.shift(1)).to_numpy()[1:]
    items = frame["item"].to_numpy()
    before, after = items[:-1][tied], items[1:][tied]
    other = before != after
    before, after = before[other], after[other]
    share = _ascending(before, after, item_ids)
    neighbours, count = int(same_user.sum()), int(tied.sum())
    facts: dict[str, Any] = {"ordered_by_row_alone": True} if not by else {"broken_by": broken_by}
    if by:
        facts |= {"neighbours": neighbours, "tied": count}
        facts |= {"tied_share": round(count / neighbours, 4)} if neighbours else {}
    facts |= {"ascending_by_identifier": round(share, 4)} if share is not None else {}
    report.facts["interactions"]["ties"] = facts
    if share is None or count < _FEW * neighbours or _from_half(share) * 2 * math.sqrt(len(before)) <= _CERTAIN:
        return
    way = "ascending" if share > 0.5 else "descending"
    most = max(share, 1 - share)
    if by and most > _MOST:
        report.warn(
            f"{count:,} of {neighbours:,} neighbours in the histories share their {_shared(by)}, and of these "
            f"{most:.0%} stand in {way} order of their identifiers, which a model may learn in place of what people "
            "choose; --ties hash orders them by a hash"
        )
    elif not by and most > _NEARLY_ALL:
        report.warn(
            f"{most:.0%} of the neighbours in the histories stand in {way} order of their identifiers, and nothing but "
            "the order of the rows says what came first: is the file sorted by item?"
        )


def _ascending(before: NDArray[np.uint32], after: NDArray[np.uint32], item_ids: pl.Series) -> float | None:
    """In what share of pairs of items the identifier rises, by the ranking in which that is farthest from a half."""
    if not len(before):
        return None
    return max((float((rank[after] > rank[before]).mean()) for rank in _ranks(item_ids)), key=_from_half)


def _shared(by: Sequence[str]) -> str:
    return {"time": "moment"}.get(by[0], by[0])


def _from_half(share: float) -> float:
    return abs(share - 0.5)


def _ranks(item_ids: pl.Series) -> list[NDArray[np.int64]]:
    """The rank of each identifier as a text, and, where numbers tell them apart, by these (`v9` before `v10`)."""
    texts = item_ids.rank("ordinal").cast(pl.Int64).to_numpy() if len(item_ids) else np.empty(0, dtype=np.int64)
    found = [texts]
    parts = item_ids.str.extract_groups(r"^(\D*)(\d{1,18})(\D*)$").struct.unnest()
    if parts.height and not parts["2"].null_count() and parts["1"].n_unique() == parts["3"].n_unique() == 1:
        found.append(parts["2"].cast(pl.Int64).rank("ordinal").cast(pl.Int64).to_numpy())
    return found
