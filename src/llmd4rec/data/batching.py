"""Batches of training windows: every training position once per epoch, all positions of a window in one pass.

A *training position* is a pair (history, next item) inside the training part of a user's sequence. They are numbered
0..P-1 in (user, time) order; a cached teacher has one state per number, whatever windows the student reads.

A user's inputs longer than the model's window are cut into windows that overlap by half, and each position is trained
in the window that shows it the most history. So nothing of a long sequence is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.data.arrays import INPUTS, Int32Array, Int64Array
from llmd4rec.errors import ConfigError, DataError


class Histories(Protocol):
    """Sequences to train on: a data set's, or others made of it."""

    @property
    def items(self) -> Int32Array:
        """All of them, one after the other."""
        ...

    @property
    def offsets(self) -> Int64Array:
        """Sequence h is items[offsets[h]:offsets[h + 1]]; [H + 1]."""
        ...

    @property
    def train_end(self) -> Int64Array:
        """Where in `items` the training part of each ends; [H]."""
        ...

    @property
    def event_times(self) -> Int64Array | None:
        """When each of `items` was, in seconds since 1970; None where that is not known. Asked for only if read."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of their content."""
        ...

    def is_known_as(self, fingerprint: str) -> bool:
        """Whether a fingerprint that was written down is theirs."""
        ...


@dataclass(frozen=True)
class SequenceBatch:
    """Histories as a model reads them: named tensors, padded on the right.

    Attributes:
        items_BL: item indices, int64, oldest first; any valid index where there is padding.
        lengths_B: real length of each history, at least 1.
        inputs: what else the model declares to read (:attr:`~llmd4rec.models.base.SequenceEncoder.reads`), by name,
            and nothing that it does not declare. Each is [B, L]; see :data:`~llmd4rec.data.arrays.INPUTS`.
    """

    items_BL: Tensor
    lengths_B: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def times_BL(self) -> Tensor:
        """When each event was, int64 seconds since 1970; of a model that reads `times`."""
        return self.inputs["times"]

    @property
    def target_times_BL(self) -> Tensor:
        """When the item after each event is chosen, int64 seconds; of a model that reads `target_times`.

        Behind the last event of a history that is to be answered, this is the time of the request.
        """
        return self.inputs["target_times"]

    def to(self, device: torch.device) -> Self:
        """The batch on `device`."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            items_BL=to_device(self.items_BL, device),
            lengths_B=to_device(self.lengths_B, device),
            inputs={name: to_device(tensor, device) for name, tensor in self.inputs.items()},
        )


@dataclass(frozen=True, kw_only=True)
class TrainingBatch(SequenceBatch):
    """A batch of training windows, padded with item 0.

    Attributes:
        trained_N: where a next item is to be predicted: indices into the B · L positions, row after row.
        target_N: the true next items.
        position_N: the numbers of those training positions, 0..P-1.
        candidate_C: the items that could have been chosen, ascending, on the CPU: others are no negatives; None: all.
        host_target_N: the true next items on the CPU, of a batch that is on another device.
    """

    trained_N: Tensor
    target_N: Tensor
    position_N: Tensor
    candidate_C: Tensor | None = None
    host_target_N: Tensor | None = None

    @property
    def target_on_cpu_N(self) -> Tensor:
        """The true next items, without waiting for a device."""
        return self.target_N if self.host_target_N is None else self.host_target_N

    def to(self, device: torch.device) -> Self:
        """The batch on `device`; position numbers stay on the CPU, where the memory-mapped teacher is."""
        if device.type == "cpu":
            return self
        moved = super().to(device)
        return replace(
            moved,
            trained_N=to_device(self.trained_N, device),
            target_N=to_device(self.target_N, device),
            host_target_N=self.target_N,
        )

    def trained(self, states_BLD: Tensor) -> Tensor:
        """The states of the N trained positions, [N, D]."""
        return states_BLD.flatten(0, 1).index_select(0, self.trained_N)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor on `device`; a GPU is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def check_inputs(histories: Histories, reads: Sequence[str], who: str = "the model") -> None:
    """Refuses what cannot be read.

    Args:
        histories: to be read.
        reads: what is read of them beside items; see :data:`~llmd4rec.data.arrays.INPUTS`.
        who: reads it, for the message.

    Raises:
        DataError: they do not have it.
        ConfigError: a name is none that histories could have.
    """
    for name in reads:
        if name not in INPUTS:
            raise ConfigError(
                f"{who} reads {name!r}, which no data set has", f"Known are {', '.join(INPUTS)}, beside the items."
            )
    if reads and histories.event_times is None:
        raise DataError(
            f"{who} reads {reads[0]}, and the data set has no times",
            "Prepare it from a log with timestamps (the setting `time` of `llmd4rec prepare`), or use a model and "
            "event features that read none.",
        )


def event_inputs(histories: Histories, reads: Sequence[str], index_BL: Int64Array) -> dict[str, Tensor]:
    """What a model reads of the events at flat positions of histories, by name.

    The target time of an event is the time of the one behind it, and so that of the held-out item for the last event
    before it.
    """
    if not reads:
        return {}
    times = histories.event_times
    assert times is not None, "check_inputs comes first"
    at = {"times": index_BL, "target_times": np.minimum(index_BL + 1, len(times) - 1)}
    return {name: torch.from_numpy(np.asarray(times[at[name]])) for name in reads}


def read_histories(
    histories: Histories, starts: Int64Array, ends: Int64Array, max_length: int | None, reads: Sequence[str] = ()
) -> SequenceBatch:
    """The most recent items of flat ranges starts..ends, none of them empty, padded with 0.

    Args:
        histories: whose flat positions.
        starts, ends: of each history, [B]; what stands at `ends` is what is to be predicted.
        max_length: older items are left out; None: none is.
        reads: what the model reads beside items.

    Raises:
        DataError, ConfigError: as :func:`check_inputs`.
    """
    check_inputs(histories, reads)
    if max_length is not None:
        starts = np.maximum(starts, ends - max_length)
    lengths = ends - starts
    columns = np.arange(lengths.max())
    flat_BL = np.minimum(starts[:, None] + columns, ends[:, None] - 1)
    items_BL = np.where(columns < lengths[:, None], histories.items[flat_BL], 0)
    return SequenceBatch(
        torch.from_numpy(items_BL.astype(np.int64)),
        torch.from_numpy(lengths),
        event_inputs(histories, reads, flat_BL),
    )


class TrainingWindows:
    """All training positions of a data set or of other histories, as windows of at most `max_length` items.

    Args:
        histories: to train on.
        max_length: the longest window.
        reads: what the model reads beside items; see :data:`~llmd4rec.data.arrays.INPUTS`.
        candidates: the items that could have been chosen, ascending; None: all.
        preference: how much rather than others each of `items` is a target where an epoch takes only some of the
            positions, [N]: the probability of being taken is in proportion to it, and at most 1. None: whole windows
            are taken, all alike.

    Raises:
        DataError, ConfigError: the histories do not have what is read.
    """

    def __init__(
        self,
        histories: Histories,
        max_length: int,
        reads: Sequence[str] = (),
        candidates: Int64Array | None = None,
        preference: NDArray[np.float64] | None = None,
    ) -> None:
        check_inputs(histories, reads)
        self._histories, self._reads = histories, tuple(reads)
        self._candidates = None if candidates is None else torch.from_numpy(candidates)
        self._items = histories.items
        self.max_length = max_length
        starts = np.asarray(histories.offsets[:-1])
        inputs = np.maximum(np.asarray(histories.train_end) - starts - 1, 0)  # the last training item is only a target
        first_number = np.concatenate([[0], np.cumsum(inputs)])
        #: P, the number of training positions.
        self.num_positions = int(first_number[-1])
        # Window j of a user reads max_length inputs and trains those that the windows before it have not.
        stride = max(1, max_length // 2)
        extra = np.maximum(inputs - max_length, 0)
        windows = np.where(inputs > 0, 1 + -(-extra // stride), 0)
        user = np.repeat(np.arange(len(inputs)), windows)
        nth = np.arange(len(user)) - np.repeat(np.cumsum(windows) - windows, windows)
        end = np.minimum(max_length + nth * stride, inputs[user])
        begin = np.maximum(end - max_length, 0)
        fresh = np.where(nth == 0, 0, max_length + (nth - 1) * stride)
        self._begin: Int64Array = starts[user] + begin
        self._length: Int64Array = end - begin
        self._fresh: Int64Array = fresh - begin  # first row of the window whose target is its own to train
        self._number: Int64Array = first_number[user] + begin
        #: How much rather each training position is taken, [P], and which ones the epoch takes.
        self._preference: NDArray[np.float64] | None = None
        self._taken: NDArray[np.bool_] | None = None
        if preference is not None:
            place = np.arange(len(self._items))
            inside = place < np.repeat(histories.train_end, np.diff(histories.offsets))
            inside[starts[starts < len(place)]] = False  # the first item of a history is no target
            self._preference = preference[inside]

    def __len__(self) -> int:
        return len(self._begin)

    def targets(self) -> Int64Array:
        """The true next item of every training position, in the order of their numbers; [P]."""
        targets = np.empty(self.num_positions, dtype=np.int64)
        for start in range(0, len(self), 4096):
            batch = self.batch(np.arange(start, min(start + 4096, len(self))))
            targets[batch.position_N.numpy()] = batch.target_N.numpy()
        return targets

    def batch(self, windows: Int64Array) -> TrainingBatch:
        """The given windows as one batch."""
        length = self._length[windows]
        column = np.arange(int(length.max()))
        real = column < length[:, None]
        index = np.where(real, self._begin[windows, None] + column, self._begin[windows, None])
        mask = real & (column >= self._fresh[windows, None])
        if self._taken is not None:
            mask[mask] = self._taken[(self._number[windows, None] + column)[mask]]
        return TrainingBatch(
            items_BL=torch.from_numpy(np.where(real, self._items[index], 0).astype(np.int64)),
            lengths_B=torch.from_numpy(length),
            inputs=event_inputs(self._histories, self._reads, index),
            trained_N=torch.from_numpy(np.flatnonzero(mask)),
            target_N=torch.from_numpy(self._items[(index + 1)[mask]].astype(np.int64)),
            position_N=torch.from_numpy((self._number[windows, None] + column)[mask]),
            candidate_C=self._candidates,
        )

    def shuffled(self, tokens: int, rng: np.random.Generator, limit: int | None = None) -> list[Int64Array]:
        """One epoch's windows in random order, grouped into batches of about `tokens` trained positions.

        Windows of similar length share a batch, so little is computed on padding: the order is drawn over all
        windows, sorted by length only within chunks of 32 batches, and the batches are shuffled again.

        Args:
            tokens: trained positions per batch, about.
            rng: source of randomness.
            limit: train only about so many positions, of windows drawn at random (for epochs that would take hours), or
                drawn by preference.
        """
        order = rng.permutation(len(self))
        own, self._taken = self._length - self._fresh, None
        if self._preference is not None and limit is not None and limit < self.num_positions:
            self._taken = rng.random(self.num_positions) < _probabilities(self._preference, limit)
            before = np.concatenate([[0], np.cumsum(self._taken)])
            own = before[self._number + self._length] - before[self._number + self._fresh]
            order = order[own[order] > 0]
        elif limit is not None and limit < self.num_positions:
            order = order[: int(np.searchsorted(np.cumsum(own[order]), limit)) + 1]
        batches: list[Int64Array] = []
        for chunk in _split_by_sum(order, own, 32 * tokens):
            by_length = chunk[np.argsort(self._length[chunk], kind="stable")]
            batches += _split_by_sum(by_length, own, tokens)
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self, tokens: int) -> Iterator[Int64Array]:
        """All windows, longest first, grouped into batches that read at most about `tokens` items with padding."""
        order = np.argsort(-self._length, kind="stable")
        start = 0
        while start < len(order):
            count = max(1, tokens // int(self._length[order[start]]))
            yield order[start : start + count]
            start += count


def _probabilities(preference: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """Probabilities in proportion to a preference, at most 1, that add up to `limit`."""
    largest = np.sort(preference)[::-1]
    others = np.cumsum(largest[::-1])[::-1]  # of an item and all behind it
    # The first so many are certain; the others share what is left.
    scale = (limit - np.arange(len(largest))) / np.maximum(others, np.finfo(np.float64).tiny)
    certain = int(np.argmax(scale * largest <= 1))
    found: NDArray[np.float64] = np.minimum(scale[certain] * preference, 1)
    return found


def _split_by_sum(order: Int64Array, size: Int64Array, max_sum: int) -> list[Int64Array]:
    """Cuts `order` into runs whose sizes add up to about `max_sum` each."""
    if not len(order):
        return []
    total = np.cumsum(size[order])
    parts = max(1, round(float(total[-1]) / max_sum))
    cuts = np.searchsorted(total, np.arange(1, parts) * total[-1] / parts)
    return [part for part in np.split(order, np.unique(cuts)) if len(part)]
