"""Which targets are ranked, behind which histories, and how both are read from a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.batching import SequenceBatch, read_histories
from llmd4rec.data.dataset import Dataset, SplitName
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.evaluation.ranking import ItemLists


@dataclass(frozen=True)
class HeldOut:
    """The targets of some users.

    Attributes:
        positions: flat position of each user's first target, ascending; the history is everything before it, [U].
        starts: where each history begins, [U].
        targets: the items to be found: the first target, and the later ones where several are asked for, none twice.
    """

    positions: NDArray[np.int64]
    starts: NDArray[np.int64]
    targets: ItemLists

    def seen(self, dataset: Dataset, rows: NDArray[np.int64]) -> ItemLists:
        """The items of some histories."""
        return _ranges(dataset, self.starts[rows], self.positions[rows])

    def take(self, rows: NDArray[np.int64]) -> HeldOut:
        """Some of the users."""
        return HeldOut(self.positions[rows], self.starts[rows], self.targets_of(rows)[0])

    def targets_of(self, rows: NDArray[np.int64]) -> tuple[ItemLists, NDArray[np.int64]]:
        """The targets of some users, and where each stands among all targets."""
        offsets, places = _flat(self.targets.offsets[rows], self.targets.offsets[rows + 1])
        return ItemLists(offsets, self.targets.items[places]), places


def number_of_targets(targets: str) -> int | None:
    """How many targets `next`, `next:5` or `all` asks for; None: all.

    Raises:
        ConfigError: it is none of them.
    """
    kind, colon, count = targets.partition(":") if isinstance(targets, str) else ("", "", "")
    if targets == "all":
        return None
    if kind == "next" and (not colon or (count.isdecimal() and int(count) > 0)):
        return int(count) if colon else 1
    raise ConfigError(
        f"targets is {targets!r}",
        "Choose next (the next item), next:5 (the next five) or all (everything held out of the split).",
    )


def held_out(
    dataset: Dataset, split: SplitName, targets: str = "next", max_users: int | None = None, seed: int = 0
) -> HeldOut:
    """The targets of every user who has a history before them, or of a seeded sample of `max_users` users.

    Args:
        dataset: the data set.
        split: `test`: up to the user's last interaction; `valid`: up to their test target.
        targets: `next`, `next:5` or `all`. An item that comes again counts once.
        max_users: a random sample of this many users; None: all.
        seed: of that sample.

    Raises:
        DataError: the split has no target with a history.
        ConfigError: `split`, `targets` or `max_users` is none of these.
    """
    number_of_targets(targets)
    if split not in ("valid", "test"):
        raise ConfigError(f"split is {split!r}", "Choose 'test' or 'valid'.")
    positions = np.asarray(dataset.targets(split))
    positions = positions[positions > dataset.offsets[dataset.users_of(positions)]]
    if len(positions) == 0:
        raise DataError(
            f"the data set has no {split} targets with a history",
            "Prepare it with a split that holds items out, or evaluate the other split.",
        )
    if max_users is not None and max_users < len(positions):
        if max_users < 1:
            raise ConfigError(f"max_users is {max_users}", "Give a whole number from 1, or leave it out.")
        positions = np.sort(np.random.default_rng(seed).choice(positions, max_users, replace=False))
    ends = np.array(dataset.offsets[1:])
    if split == "valid":
        test = np.asarray(dataset.test)
        ends[dataset.users_of(test)] = test
    return held_out_at(dataset, positions, ends[dataset.users_of(positions)], targets)


def held_out_at(dataset: Dataset, positions: NDArray[np.int64], ends: NDArray[np.int64], targets: str) -> HeldOut:
    """The targets from some flat positions on, one position per user.

    Args:
        dataset: the data set.
        positions: of each user's first target, ascending.
        ends: behind the last that may be asked for.
        targets: `next`, `next:5` or `all`. An item that comes again counts once.
    """
    count = number_of_targets(targets)
    starts = dataset.offsets[dataset.users_of(positions)]
    if count == 1:
        items = dataset.items[positions].astype(np.int64)
        return HeldOut(positions, starts, ItemLists(np.arange(len(positions) + 1), items))
    last = ends if count is None else np.minimum(ends, positions + count)
    return HeldOut(positions, starts, _once(_ranges(dataset, positions, last)))


def read(
    dataset: Dataset,
    held: HeldOut,
    rows: NDArray[np.int64],
    max_length: int | None,
    batch_size: int,
    advance: Callable[[int], None],
    reads: Sequence[str] = (),
) -> Iterator[SequenceBatch]:
    """The histories of some users, a batch at a time.

    Args:
        dataset: the data set.
        held: the targets.
        rows: which users, in this order.
        max_length: how many of the most recent items are read; None: all.
        batch_size: histories in a batch.
        advance: told how many histories each batch holds, for a progress bar.
        reads: what is read of events beside their items.

    Raises:
        DataError: the data set does not have it.
    """
    for batch in split_up(rows, batch_size):
        yield read_histories(dataset, held.starts[batch], held.positions[batch], max_length, reads)
        advance(len(batch))


def by_length(held: HeldOut, max_length: int | None) -> NDArray[np.int64]:
    """Users in an order in which histories of similar length share a batch, which leaves less padding to compute."""
    lengths = held.positions - held.starts
    return np.argsort(lengths if max_length is None else np.minimum(lengths, max_length), kind="stable")


def split_up(values: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Parts of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _flat(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranges starts..ends one behind the other: their offsets, and all their numbers."""
    counts = ends - starts
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return offsets, np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)


def _ranges(dataset: Dataset, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> ItemLists:
    """All items of flat ranges starts..ends, in their order."""
    offsets, flat = _flat(starts, ends)
    return ItemLists(offsets, dataset.items[flat])


def _once(lists: ItemLists) -> ItemLists:
    """Without the repetitions of an item within a list; the first stays."""
    rows = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    _, first = np.unique(np.stack([rows, lists.items]), axis=1, return_index=True)
    kept = np.sort(first)
    counts = np.bincount(rows[kept], minlength=len(lists.offsets) - 1)
    return ItemLists(np.concatenate([[0], np.cumsum(counts)]), np.asarray(lists.items[kept], dtype=np.int64))
