"""Rollouts: more histories on which a teacher can be imitated (on-policy distillation).

A log holds few histories, and the whole history of a user is not among the training positions: its last item is only a
target. So each history is continued by a few items that a model draws one after the other by its own scores, and the
student learns the teachers' distribution there too. What is drawn is no fact, and need not be: the next item drawn is
one sample of the whole distribution that is learned. Labels and sample weights treat what is drawn like the rest;
without weights, or with the drawn positions alone, the student was the same (docs/research/findings.md).

    rollouts.json    format, settings, data fingerprint, the model that drew them, each file's checksum
    offsets.npy      int64  [U + 1]
    items.npy        int32  [N + U · length]

Nothing that is held out is read: a rollout begins with the training part of its user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch, check_inputs
from llmd4rec.data.dataset import Dataset, Int32Array, Int64Array
from llmd4rec.errors import DataError, ModelError, RunError
from llmd4rec.io.files import atomic_dir, identity, read_json, write_array, write_json
from llmd4rec.log import bar
from llmd4rec.matmul import product
from llmd4rec.models.base import SequenceEncoder, last_states

FORMAT_VERSION = 1

FILES = ("offsets.npy", "items.npy")

#: At most so many histories are continued, drawn at random: a larger log needs fewer of them.
MAX_HISTORIES = 100_000
#: For large catalogues: at most so many scores are computed to draw from.
MAX_SCORES = 10_000_000_000
#: Elements of one block of scores, 16 MB.
BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Rollouts:
    """Training histories with items drawn behind them, to be read like the training part of a data set.

    Attributes:
        items: int32 [N'], all histories one after the other.
        offsets: int64 [U + 1], user u's is items[offsets[u]:offsets[u + 1]].
        source: whose histories they continue.
    """

    items: Int32Array
    offsets: Int64Array
    source: Dataset

    @property
    def train_end(self) -> Int64Array:
        """All of a history is there to train on; [U]."""
        return self.offsets[1:]

    @cached_property
    def event_times(self) -> Int64Array | None:
        """Those of the source; an item drawn has the time of the last real event."""
        times, lengths = self.source.event_times, np.diff(self.offsets)
        if times is None:
            return None
        nth = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        starts, ends = np.asarray(self.source.offsets[:-1]), np.asarray(self.source.train_end)
        return np.asarray(times[np.minimum(np.repeat(starts, lengths) + nth, np.repeat(ends - 1, lengths))])

    @cached_property
    def fingerprint(self) -> str:
        """Of the content: a teacher cache made for these histories is for no others."""
        digest = hashlib.sha256()
        for array in (self.offsets, self.items):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def is_known_as(self, fingerprint: str) -> bool:
        """Whether a fingerprint that was written down is that of these histories."""
        return fingerprint == self.fingerprint

    def save(self, folder: Path, settings: Mapping[str, Any], dataset: Dataset) -> None:
        """Writes the folder, all or nothing; :func:`open_rollouts` has to be given the same settings."""
        with atomic_dir(folder, replace=True) as temporary:
            write_array(temporary / "offsets.npy", self.offsets)
            write_array(temporary / "items.npy", self.items)
            head = {"format": FORMAT_VERSION, "settings": dict(settings), "data": dataset.fingerprint}
            files = {name: identity(temporary / name) for name in FILES}
            write_json(temporary / "rollouts.json", head | {"files": files})


def open_rollouts(folder: Path, settings: Mapping[str, Any], dataset: Dataset) -> Rollouts:
    """Opens what :meth:`Rollouts.save` wrote.

    Args:
        folder: to open.
        settings: what the histories follow from (by whose weights they were drawn, how long they are), as saved.
        dataset: whose histories they must continue.

    Raises:
        RunError: it is missing, damaged, of another format, or other histories than those asked for.
    """
    remedy = f"Delete {folder} and run `train` again: they are drawn anew."
    try:
        head = read_json(folder / "rollouts.json")
        if head.get("format") != FORMAT_VERSION or not dataset.is_known_as(head.get("data", "")):
            raise RunError(f"{folder} holds histories of other data or of another version", remedy)
        if head["settings"] != dict(settings):
            raise RunError(f"{folder} holds rollouts of other settings than the run's", remedy)
        for name in FILES:
            if head["files"][name] != identity(folder / name):
                raise RunError(f"{folder / name} is damaged: its checksum is not the one in rollouts.json", remedy)
        offsets, items = (np.load(folder / name, allow_pickle=False) for name in FILES)
        return Rollouts(items, offsets, dataset)
    except (DataError, OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        what = error.what if isinstance(error, DataError) else f"{folder} is damaged: {error}"
        raise RunError(what, remedy) from error


@torch.inference_mode()
def draw_rollouts(
    model: SequenceEncoder,
    dataset: Dataset,
    length: int,
    seed: int,
    *,
    repeat: bool = False,
    max_histories: int = MAX_HISTORIES,
    max_scores: int = MAX_SCORES,
    block_elements: int = BLOCK_ELEMENTS,
) -> Rollouts:
    """The training part of each user's history, and `length` items behind it drawn by a model's softmax.

    Users with nothing to train on stay as they are, and on large data those beyond `max_histories` and `max_scores`.

    Args:
        model: the model that draws; its training flag is left as it was.
        dataset: whose histories.
        length: how many items each is continued by, at least 1.
        seed: of what is drawn; the same seed draws the same.
        repeat: whether an item of the history may be drawn; if not, it is only where there is no other.
        max_histories: so many are continued at most, drawn at random.
        max_scores: so many scores are computed at most to draw from.
        block_elements: of scores at once.

    Raises:
        ModelError: a score is not a finite number.
        DataError: the model reads times that the data set does not have.
    """
    check_inputs(dataset, model.reads)
    starts, ends = np.asarray(dataset.offsets[:-1]), np.asarray(dataset.train_end)
    users = np.flatnonzero(ends > starts)
    limit = max(1, min(max_histories, max_scores // (dataset.num_items * length)))
    if len(users) > limit:
        users = np.sort(np.random.default_rng(seed).choice(users, limit, replace=False))
    drawn_UM = np.empty((len(users), length), dtype=np.int32)
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        table_ID = model.item_table().float()
        # Histories of similar length share a batch, which leaves less padding to compute.
        order = np.argsort(ends[users] - starts[users], kind="stable")
        rows = min(512, max(16, block_elements // dataset.num_items))
        with bar("drawing rollouts", len(users), "users") as progress:
            for chosen in (order[start : start + rows] for start in range(0, len(order), rows)):
                known = [dataset.items[starts[user] : ends[user]] for user in users[chosen]]
                times = None
                if model.reads and dataset.event_times is not None:
                    times = [dataset.event_times[starts[user] : ends[user]] for user in users[chosen]]
                drawn_UM[chosen] = _drawn(model, table_ID, known, times, length, generator, repeat)
                progress.advance(len(chosen))
    finally:
        model.train(was_training)
    return _joined(dataset, starts, ends, users, drawn_UM)


def _joined(
    dataset: Dataset, starts: Int64Array, ends: Int64Array, users: Int64Array, drawn_UM: NDArray[np.int32]
) -> Rollouts:
    """Each training part with what was drawn for its user behind it."""
    more = np.zeros(len(starts), dtype=np.int64)
    more[users] = drawn_UM.shape[1]
    offsets = np.concatenate([[0], np.cumsum(ends - starts + more)]).astype(np.int64)
    joined = np.empty(offsets[-1], dtype=np.int32)
    known = ends - starts
    within = np.arange(int(known.sum())) - np.repeat(np.cumsum(known) - known, known)
    joined[np.repeat(offsets[:-1], known) + within] = dataset.items[np.repeat(starts, known) + within]
    behind = (offsets[:-1] + known)[users, None] + np.arange(drawn_UM.shape[1])
    joined[behind] = drawn_UM
    return Rollouts(joined, offsets, dataset)


def _drawn(
    model: SequenceEncoder,
    table_ID: Tensor,
    known: list[Int32Array],
    times: list[Int64Array] | None,
    length: int,
    generator: torch.Generator,
    repeat: bool,
) -> NDArray[np.int32]:
    """Items drawn one after the other behind each of a batch of histories, [B, length]."""
    device = table_ID.device
    reach = model.max_length
    had = torch.tensor([min(len(history), reach) for history in known])
    read_BT = torch.zeros(len(known), int(had.max()) + length, dtype=torch.int64)
    for row, history in enumerate(known):
        read_BT[row, : had[row]] = torch.from_numpy(history[-reach:].astype(np.int64))
    times_BT = None
    if times is not None:  # what is drawn has the time of the last real event
        times_BT = torch.empty_like(read_BT)
        for row, each in enumerate(times):
            times_BT[row] = int(each[-1])
            times_BT[row, : had[row]] = torch.from_numpy(np.asarray(each[-reach:]))
        times_BT = times_BT.to(device)
    read_BT, had = read_BT.to(device), had.to(device)
    seen_BI = torch.zeros(len(known), len(table_ID), dtype=torch.bool, device=device)
    if not repeat:
        for row, history in enumerate(known):
            seen_BI[row, torch.from_numpy(history.astype(np.int64)).to(device)] = True
    batch = torch.arange(len(known), device=device)
    for step in range(length):
        end = had + step
        first = (end - reach).clamp(min=0)
        column = torch.arange(int((end - first).max()), device=device)
        last = read_BT.shape[1] - 1
        index_BL = first[:, None] + column
        window_BL = read_BT.gather(1, index_BL.clamp(max=last))
        inputs = {}
        if times_BT is not None:
            shift = {"times": 0, "target_times": 1}
            inputs = {name: times_BT.gather(1, (index_BL + shift[name]).clamp(max=last)) for name in model.reads}
        scores_BI = product(last_states(model, SequenceBatch(window_BL, end - first, inputs)).float(), table_ID)
        if not bool(torch.isfinite(scores_BI).all()):
            raise ModelError(
                "rollouts cannot be drawn: a score is not a finite number",
                "Training diverged; lower its learning rate.",
            )
        free_BI = ~seen_BI | seen_BI.all(1, keepdim=True)  # where every item has been, any may come again
        item_B = torch.multinomial(scores_BI.masked_fill(~free_BI, -torch.inf).softmax(1), 1, generator=generator)[:, 0]
        read_BT[batch, end] = item_B
        if not repeat:
            seen_BI[batch, item_B] = True
    return read_BT.gather(1, had[:, None] + torch.arange(length, device=device)).cpu().numpy().astype(np.int32)
