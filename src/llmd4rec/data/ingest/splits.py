"""Holding out targets: the last interactions of each user, or everything behind a moment in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.ingest.choices import TargetHistory
from llmd4rec.data.ingest.times import as_text
from llmd4rec.errors import DataError

Int64Array = NDArray[np.int64]
#: Histories may begin in the window itself where otherwise fewer than one target in so many would be left.
FEW_TARGETS = 10


@dataclass(frozen=True)
class Targets:
    """Flat positions as in a `Dataset`: `train_end` [U], `valid` [V], `test` [T]; what the report says of them."""

    train_end: Int64Array
    valid: Int64Array
    test: Int64Array
    facts: dict[str, Any]
    warning: str = ""


def seen_before(offsets: Int64Array, items: NDArray[np.int32], positions: Int64Array) -> int:
    """How many targets are items that their user had before; with `seen: remove` such targets are never found.

    Args:
        offsets: [U + 1].
        items: [N].
        positions: flat positions of the targets, one a user at most.
    """
    users = np.searchsorted(offsets, positions, side="right") - 1
    wanted = np.full(len(offsets) - 1, -1, dtype=items.dtype)
    target_at = np.zeros(len(offsets) - 1, dtype=np.int64)
    wanted[users], target_at[users] = items[positions], positions
    same = np.flatnonzero(items == np.repeat(wanted, np.diff(offsets)))
    having = np.searchsorted(offsets, same, side="right") - 1
    return len(np.unique(having[same < target_at[having]]))


def leave_one_out(offsets: Int64Array) -> Targets:
    """The last interaction is the test target, the one before the validation target, of users with at least 3.

    Shorter histories serve for training only.

    Raises:
        DataError: no user is that long.
    """
    ends, lengths = offsets[1:], np.diff(offsets)
    held = lengths >= 3
    if not held.any():
        raise DataError(
            f"no user has 3 interactions or more (the longest history has {lengths.max(initial=0)}), so none can be "
            "held out for validation and test",
            "Give longer histories; check that the user column is the right one (--user-col).",
        )
    facts = {
        "kind": "leave-one-out",
        "users_held_out": int(held.sum()),
        "users_training_only": int((~held).sum()),
    }
    return Targets(np.where(held, ends - 2, ends), ends[held] - 2, ends[held] - 1, facts)


def moment_before_last(times: Int64Array, fraction: float) -> np.int64:
    """The moment at which the last share of the interactions begins; those of the same moment belong to it.

    Args:
        times: [N], in any order.
        fraction: the share.
    """
    count = len(times)
    place = min(count - round(count * fraction), count - 1)
    moment: np.int64 = np.partition(times, place)[place]
    return moment


def temporal(
    offsets: Int64Array,
    times: Int64Array,
    valid_fraction: float,
    test_fraction: float,
    history: TargetHistory = "auto",
) -> Targets:
    """Cuts the log at two moments. A target is a user's first interaction in a window, with a history before it.

    Training is everything before the earlier cut; what follows a target in its window is not used.

    Args:
        offsets: [U + 1].
        times: [N], not falling within a user.
        valid_fraction, test_fraction: the share of interactions between the cuts and behind the later one;
            interactions of the same moment stay together, so the shares are met as nearly as the times allow.
        history: whether a target's history must begin before its window (`window`), or may begin in it (`event`);
            `auto` takes the latter where the former leaves fewer than one target in ten, as short sessions do.

    Raises:
        DataError: a part is left empty.
    """
    starts = offsets[:-1]
    valid_from = moment_before_last(times, valid_fraction + test_fraction)
    test_from = moment_before_last(times, test_fraction)
    users = np.repeat(np.arange(len(starts)), np.diff(offsets))

    def first_since(moment: np.int64) -> Int64Array:
        """Flat position of each user's first interaction at or after `moment`; their end if none; [U]."""
        before = np.bincount(users[times < moment], minlength=len(starts))
        return starts + before

    train_end, test_start = first_since(valid_from), first_since(test_from)
    windows = ((train_end, test_start), (test_start, offsets[1:]))
    found = {how: [targets_in(starts, *window, how) for window in windows] for how in ("window", "event")}
    few = any(
        len(old) * FEW_TARGETS < len(all_of_them)
        for old, all_of_them in zip(found["window"], found["event"], strict=True)
    )
    chosen = ("event" if few else "window") if history == "auto" else history
    valid, test = found[chosen]
    for name, amount in (
        ("training interaction", int((train_end - starts).sum())),
        ("validation target with a history", len(valid)),
        ("test target with a history", len(test)),
    ):
        if not amount:
            if name != "training interaction" and all(map(len, found["event"])):
                raise DataError(
                    f"the temporal split leaves no {name} that began before its part of the log",
                    "Let histories begin in it: --history event, or auto.",
                )
            raise DataError(
                f"the temporal split leaves no {name}: too few interactions, or too many at the same moment",
                "Change --valid-fraction and --test-fraction, or use --split leave-one-out.",
            )
    facts = {
        "kind": "temporal",
        "history": chosen,
        "validation_from": as_text(valid_from),
        "test_from": as_text(test_from),
        "interactions_before": int((train_end - starts).sum()),
        "interactions_between": int((test_start - train_end).sum()),
        "interactions_behind": int((offsets[1:] - test_start).sum()),
        "users_without_training_interactions": int((train_end == starts).sum()),
    }
    warning = ""
    if history == "auto" and chosen == "event":
        counts = " and ".join(f"{len(each):,}" for each in found["window"])
        warning = (
            f"histories are short: only {counts} targets for validation and test would have one that began before "
            "their part of the log. So it may begin in it (--history event)"
        )
    return Targets(train_end, valid, test, facts, warning)


def targets_in(starts: Int64Array, begins: Int64Array, ends: Int64Array, history: str) -> Int64Array:
    """Each user's first interaction in a window, with a history before it; flat positions.

    Args:
        starts: where each user's interactions begin, [U].
        begins, ends: flat positions of the user's first interaction in the window, and of the first behind it, [U].
        history: it begins before the window (`window`), or in it at the latest (`event`).
    """
    first = begins if history == "window" else np.maximum(begins, starts + 1)
    return first[(first < ends) & (first > starts)]
