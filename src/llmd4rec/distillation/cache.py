"""The cache of a teacher: its states at every training position and its item table, in a memory-mapped folder.

From N × D numbers any block of the teacher's full output distribution is rebuilt by one matrix product, so nothing of
size N × |I| is ever stored, and teacher and student need not share a process, a library or a width.

    teacher.json   format, ensemble weights, logit adjustment, data fingerprint, checksums of the teachers' weights and
                   of each file; the memory's weights, where it teaches beside the models
    states.npy     float16 [P, D]  (float32 if a state leaves half precision's range)
    table.npy      float32 [I, D]
    rank.npy       int32   [P]     rank of the true next item over the whole catalogue, ties against it; of
                   large catalogues estimated from drawn items, where ties do not count
    sparse_items.npy, sparse_values.npy     int32, float32 [P, K]     what the memory's transitions and item-kNN add to
                   which items

Where the memory teaches too (:mod:`llmd4rec.distillation.memory_teacher`), its content stands in states and table
beside the models.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.data.arrays import Int64Array
from llmd4rec.data.batching import Histories, TrainingWindows, to_device
from llmd4rec.distillation.memory_teacher import MemoryTeacher
from llmd4rec.errors import DataError, ModelError, RunError
from llmd4rec.io.files import atomic_dir, identity, read_json, write_array, write_json
from llmd4rec.log import bar
from llmd4rec.losses.base import TeacherBatch
from llmd4rec.losses.int8 import Int8Rows
from llmd4rec.losses.objective import seen_items
from llmd4rec.losses.scores import BLOCK_ELEMENTS, AddedScores, BlockScores, Factors, PlusSparse, SparseScores
from llmd4rec.matmul import product
from llmd4rec.models.base import SequenceEncoder

FORMAT_VERSION = 8

FILES = ("states.npy", "table.npy", "rank.npy")
SPARSE_FILES = ("sparse_items.npy", "sparse_values.npy")

Precision = Literal["float32", "int8"]


@dataclass(frozen=True)
class TeacherCache:
    """The opened cache of a teacher, or of the mean of several."""

    states: NDArray[np.floating]
    table: Tensor | Int8Rows
    rank: NDArray[np.int32]
    #: The student's ranks at the start of the round, where the weights are to use those.
    student_rank: NDArray[np.int32] | None = None
    #: The weight of each stage's model in the mean, by stage id.
    weights: Mapping[str, int] = field(default_factory=dict)
    #: τ of logit adjustment that validation allows a student; None: it was not asked for.
    tau: float | None = None
    #: The items that transitions and item-kNN add most to at each position, and what; None: the memory does not teach.
    sparse: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None
    #: The last columns of the table, which are the memory's content, as floats; None: the memory does not teach.
    content_IC: Tensor | None = None
    #: The weights of the memory's parts beside that of the models; none where it does not teach.
    memory: Mapping[str, float] = field(default_factory=dict)

    def batch(self, position_N: Tensor, candidate_C: Tensor | None = None) -> TeacherBatch:
        """The teacher at the given training positions, over the catalogue or the candidates drawn from it."""
        numbers = position_N.numpy()
        device = (self.table if isinstance(self.table, Tensor) else self.table.values_RK).device
        table = self.table if candidate_C is None else self.table[candidate_C]
        states_ND = to_device(torch.from_numpy(self.states[numbers]), device)
        scores: BlockScores = Factors(states_ND, table)
        memory = None
        if self.sparse is not None and self.content_IC is not None:
            items_NK, values_NK = (to_device(torch.from_numpy(each[numbers]), device) for each in self.sparse)
            sparse = SparseScores(items_NK.long(), values_NK)
            content_IC = self.content_IC
            if candidate_C is not None:
                sparse, content_IC = sparse.among(candidate_C), content_IC[candidate_C]
            scores = PlusSparse(scores, sparse)
            memory = AddedScores(states_ND[:, states_ND.shape[1] - content_IC.shape[1] :], content_IC, sparse)
        return TeacherBatch(
            scores=scores,
            rank_N=to_device(torch.from_numpy(self.rank[numbers]), device),
            student_rank_N=(
                None if self.student_rank is None else to_device(torch.from_numpy(self.student_rank[numbers]), device)
            ),
            memory=memory,
        )


@torch.inference_mode()
def write_cache(
    model: SequenceEncoder,
    histories: Histories,
    folder: Path,
    *,
    label: str,
    made_of: Mapping[str, str | None] | None = None,
    weights: Mapping[str, int] | None = None,
    batch_items: int = 4096,
    rank_items: int | None = None,
    precision: Precision = "float32",
    tau: float | None = None,
    block_elements: int = BLOCK_ELEMENTS,
    candidates: Int64Array | None = None,
    memory: MemoryTeacher | None = None,
    exclude_seen: bool = False,
) -> None:
    """Writes the teacher's folder with one forward pass over the training positions; all or nothing.

    Args:
        model: the model that will teach; its training flag is left as it was.
        histories: whose training positions: those of a data set, or of rollouts made from it.
        folder: replaced if it exists.
        label: of the teachers, written into teacher.json.
        made_of: checksums of the models' files, by stage; :func:`open_cache` can ask for the same ones.
        weights: of each of those stages' models in the mean.
        batch_items: items read per forward pass.
        rank_items: estimate ranks among so many items drawn at random, for catalogues where ranking every training
            position among all items would take longer than training; None: exact.
        precision: what the ranks are those of: the distribution that the student will see.
        tau: what :mod:`llmd4rec.distillation.logit_adjustment` allows a student, kept beside the states.
        block_elements: of scores at once.
        candidates: the items that ranks are counted among, ascending, with all true ones; None: all.
        memory: what teaches beside the model; None: nothing does.
        exclude_seen: items of the history are not counted in ranks.

    Raises:
        ModelError: a state is not a finite number.
    """
    windows = TrainingWindows(histories, model.max_length, model.reads)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    table = model.item_table().float()
    if memory is not None:
        table = torch.cat([table, torch.from_numpy(memory.table_IC).to(device)], 1)
    candidate_C = None if candidates is None else torch.from_numpy(candidates).to(device)
    ranked = table if candidate_C is None else table[candidate_C]
    rivals, stands_for, drawn_R = _rivals(ranked, rank_items)
    rival_R = candidate_C if drawn_R is None else drawn_R if candidate_C is None else candidate_C[drawn_R]
    if precision == "int8" and rivals is ranked:
        rivals = Int8Rows.of(ranked)
    try:
        with atomic_dir(folder, replace=True) as temporary:
            shape = (windows.num_positions, table.shape[1])
            sparse = None if memory is None else _Sparse(temporary, memory, windows.num_positions)
            states = _allocate(temporary / "states.npy", np.float16, shape)
            rank = np.empty(windows.num_positions, dtype=np.int32)
            with bar(f"caching {label}", windows.num_positions, "positions") as progress:
                for chosen in windows.in_order(batch_items):
                    batch = windows.batch(chosen).to(device)
                    numbers = batch.position_N.numpy()
                    states_ND = batch.trained(model.states(batch)).float()
                    if memory is not None:
                        content_NC = torch.from_numpy(memory.states_NC(numbers)).to(device)
                        states_ND = torch.cat([states_ND * memory.model, content_NC], 1)
                    if not bool(torch.isfinite(states_ND).all()):
                        raise ModelError(
                            f"cannot cache {label}: a state is not a finite number",
                            "Training diverged; lower its learning rate.",
                        )
                    if float(states_ND.abs().max()) > 6e4 and states.dtype == np.float16:
                        states = _widen(temporary / "states.npy", states)
                    # Ranks are those of the distribution that the student will see: of the rounded states.
                    states_ND = states_ND.to(torch.float16 if states.dtype == np.float16 else torch.float32)
                    states[numbers] = states_ND.cpu().numpy()
                    counted = None if sparse is None else sparse.write(numbers, device)
                    added = [] if counted is None else [counted]
                    added += [seen_items(batch)] if exclude_seen else []
                    target_N = batch.target_N
                    if candidate_C is not None:
                        target_N = torch.searchsorted(candidate_C, target_N)
                    whole = slice(0, len(target_N))
                    rank[numbers] = _true_ranks(
                        states_ND.float(),
                        ranked,
                        rivals,
                        stands_for,
                        target_N,
                        block_elements,
                        added if rival_R is None else [each.among(rival_R) for each in added],
                        None if counted is None else counted.of_item(whole, batch.target_N[:, None]),
                    )
                    progress.advance(len(numbers))
            states.flush()
            files = FILES if sparse is None else (*FILES, *SPARSE_FILES)
            if sparse is not None:
                sparse.close()
            write_array(temporary / "table.npy", table.cpu().numpy())
            write_array(temporary / "rank.npy", rank)
            write_json(
                temporary / "teacher.json",
                {
                    "format": FORMAT_VERSION,
                    "label": label,
                    "made_of": dict(made_of or {}),
                    "weights": dict(weights or {}),
                    "tau": tau,
                    "data": histories.fingerprint,
                    "positions": windows.num_positions,
                    "dim": table.shape[1],
                    "items": model.num_items,
                    "ranks": "exact" if rank_items is None else f"estimated among {rank_items} items",
                    "memory": {} if memory is None else dict(memory.weights),
                    "content_dim": 0 if memory is None else memory.table_IC.shape[1],
                    "exclude_seen": exclude_seen,
                    "files": {name: identity(temporary / name) for name in files},
                },
            )
    finally:
        model.train(was_training)


def _allocate(path: Path, dtype: type[np.floating] | type[np.int32], shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped array whose space is taken now: writing to a mapping on a full disk would kill the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a disk that cannot promise space
                    raise
    return array


def _widen(path: Path, states: np.memmap) -> np.memmap:
    wide = _allocate(path.with_suffix(".wide.npy"), np.float32, states.shape)
    wide[:] = states
    path.with_suffix(".wide.npy").replace(path)
    return wide


class _Sparse:
    """The files of what transitions and item-kNN add."""

    def __init__(self, folder: Path, memory: MemoryTeacher, positions: int) -> None:
        self.memory = memory
        width = memory.most_NK(np.empty(0, np.int64))[0].shape[1]
        items, values = (folder / name for name in SPARSE_FILES)
        shape = (positions, width)
        self.files = _allocate(items, np.int32, shape), _allocate(values, np.float32, shape)

    def write(self, position_N: Int64Array, device: torch.device) -> SparseScores:
        """Writes some positions; what was written."""
        found = self.memory.most_NK(position_N)
        for file, each in zip(self.files, found, strict=True):
            file[position_N] = each
        items_NK, values_NK = (torch.from_numpy(each).to(device) for each in found)
        return SparseScores(items_NK.long(), values_NK)

    def close(self) -> None:
        """All of it is on disk."""
        for file in self.files:
            file.flush()


def _rivals(table_ID: Tensor, count: int | None) -> tuple[Tensor | Int8Rows, float, Tensor | None]:
    """The items that ranks are counted among, how many of the catalogue each stands for, and which were drawn."""
    if count is None or count >= len(table_ID):
        return table_ID, 1.0, None
    drawn = torch.randperm(len(table_ID), generator=torch.Generator().manual_seed(0))[:count]
    drawn = drawn.sort().values.to(table_ID.device)
    return table_ID[drawn], len(table_ID) / count, drawn


def _true_ranks(
    states_ND: Tensor,
    table_ID: Tensor,
    rivals: Tensor | Int8Rows,
    stands_for: float,
    target_N: Tensor,
    block_elements: int = BLOCK_ELEMENTS,
    added: Sequence[SparseScores] = (),
    true_N1: Tensor | None = None,
) -> NDArray[np.int64]:
    """The rank of each true item, ties against it.

    Args:
        states_ND, table_ID: whose products are the scores.
        rivals: the rows of the table that it is ranked among, perhaps rounded.
        stands_for: how many items each of them stands for; 1: they are all of the table, in its order.
        target_N: the rows of the true items in the table.
        block_elements: of scores at once.
        added: to the scores of the rivals.
        true_N1: what is added to that of the true item, where it need not be among them.
    """
    rows = max(32, block_elements // len(rivals))
    ranks = np.empty(len(target_N), dtype=np.int64)
    buffers = states_ND.new_empty(2, min(rows, len(states_ND)), len(rivals))
    for start in range(0, len(target_N), rows):
        block = slice(start, min(start + rows, len(target_N)))
        states_nD, target_n1 = states_ND[block], target_N[block, None]
        scores_nR = buffers[0, : len(states_nD)]
        if isinstance(rivals, Int8Rows):
            scores_nR = Int8Rows.of(states_nD).matmul(rivals, scores_nR)
        else:
            scores_nR = product(states_nD, rivals, out=scores_nR)
        for each in added:
            each.add_(block, scores_nR)
        above_nR = buffers[1, : len(states_nD)]  # written as numbers, which is several times faster than as booleans
        if stands_for == 1:  # the true item is among the rivals, and counts itself
            above_n = torch.ge(scores_nR, scores_nR.gather(1, target_n1), out=above_nR).sum(1)
        else:
            true_n1 = (states_nD * table_ID[target_n1[:, 0]]).sum(1, keepdim=True)
            if true_N1 is not None:
                true_n1 = true_n1 + true_N1[block]
            above_n = 1 + (torch.gt(scores_nR, true_n1, out=above_nR).sum(1) * stands_for).round()
        ranks[block] = above_n.long().cpu().numpy()
    return ranks


def open_cache(
    folder: Path,
    histories: Histories,
    device: torch.device,
    precision: Precision = "float32",
    made_of: Mapping[str, str | None] | None = None,
) -> TeacherCache:
    """Opens what :func:`write_cache` wrote, states memory-mapped, table on `device`.

    Args:
        folder: of the cache.
        histories: it must have been made for.
        device: of the table and of the batches.
        precision: of the numbers that its scores are computed from; see :mod:`llmd4rec.losses.int8`.
        made_of: checksums of the weights it must have been made of; None: of whichever.

    Raises:
        RunError: it is missing, damaged, of another format, or was made for other data or of other models.
    """
    remedy = f"Delete {folder} and run `train` again: it is made anew."
    try:
        head = read_json(folder / "teacher.json")
        if head.get("format") != FORMAT_VERSION or not histories.is_known_as(head.get("data", "")):
            raise RunError(f"{folder} was made for other data or by another version", remedy)
        if made_of is not None and head["made_of"] != dict(made_of):
            raise RunError(f"{folder} was made of other models than the run has now", remedy)
        files = (*FILES, *SPARSE_FILES) if head["memory"] else FILES
        for name in files:
            if head["files"][name] != identity(folder / name):
                raise RunError(f"{folder / name} is damaged: its checksum is not the one in teacher.json", remedy)
        sparse = None
        if head["memory"]:
            items, values = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in SPARSE_FILES)
            sparse = (items, values)
        table = torch.from_numpy(np.load(folder / "table.npy", allow_pickle=False)).to(device)
        return TeacherCache(
            states=np.load(folder / "states.npy", mmap_mode="r", allow_pickle=False),
            table=Int8Rows.of(table) if precision == "int8" else table,
            rank=np.load(folder / "rank.npy", allow_pickle=False),
            weights={str(stage): int(weight) for stage, weight in head["weights"].items()},
            tau=None if head["tau"] is None else float(head["tau"]),
            sparse=sparse,
            content_IC=table[:, table.shape[1] - int(head["content_dim"]) :] if head["memory"] else None,
            memory={str(name): float(weight) for name, weight in head["memory"].items()},
        )
    except (DataError, OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        what = error.what if isinstance(error, DataError) else f"{folder} is damaged: {error}"
        raise RunError(what, remedy) from error
