"""The memory of an export: beside which models it stands, which pairs are kept out of it, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.memory import beside, counted_up_to, weights_of
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.runs.memory import is_wanted, memory_of, memory_scorer
from llmd4rec.runs.run import Run
from llmd4rec.scoring.factors import FactorScorer
from llmd4rec.scoring.memory.counting import PAIRS_AT_ONCE
from llmd4rec.scoring.memory.item_knn import ItemKNNScorer
from llmd4rec.scoring.memory.sparse import SparseRows
from llmd4rec.scoring.memory.state import CountedMemory
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.sums import WeightedSum

Rows = NDArray[np.int64]
MemoryOption = Literal["auto", "on", "off"]
#: Requests that are timed, after some to warm up.
_TIMED, _WARM_UP = 60, 5
#: Validation users on whom the loss by pairs that are kept out is measured.
_MEASURED_ON = 5000


@dataclass(frozen=True)
class Beside:
    """A memory beside the model of a stage.

    Attributes:
        memory: with the weights of its parts.
        weight: of the model.
        validation: NDCG@10 of both together.
    """

    memory: CountedMemory
    weight: float
    validation: float

    @classmethod
    def of(cls, run: Run, stage_id: str, option: MemoryOption) -> Beside | None:
        """What a run has beside a stage; None: nothing, or nothing that is wanted.

        Raises:
            RunError: it is asked for, and the run has none.
        """
        if option == "off" or (option == "auto" and not is_wanted(run, stage_id)):
            return None
        memory, weight = memory_of(run, stage_id)
        record = run.record.memory
        assert record is not None  # memory_of has read it
        return cls(memory, weight, float(record["beside"][stage_id]["validation"]))


def without_rare_pairs(memory: CountedMemory, data: Dataset, least: int) -> tuple[CountedMemory, dict[str, Any]]:
    """A memory without what fewer than `least` users chose after one another, or together; and what is said of that.

    Raises:
        ConfigError: `least` is below 1.
    """
    if least < 1:
        raise ConfigError(f"--min-pair-users is {least}", "Give 1 (all pairs are kept) or more.")
    parts, kept, pairs = dict(memory.parts), 0, 0
    if least == 1:
        return memory, {}
    if (part := memory.transitions) is not None:
        starts, columns, counts = part.arrays()
        rows, enough = _of_enough(starts, columns, counts, data, part.settings.gaps, memory.as_of, least)
        fewer = SparseRows(*rows, part.settings.max_per_row)
        parts["transitions"] = TransitionScorer(part.settings, fewer, part.num_rows, part.moment)
        kept, pairs = kept + enough, pairs + len(columns)
    if (other := memory.item_knn) is not None:
        starts, columns, counts, chosen_I = other.arrays()
        rows, enough = _of_enough(starts, columns, counts, data, other.settings.last, memory.as_of, least)
        fewer = SparseRows(*rows, other.settings.max_per_row)
        parts["item_knn"] = ItemKNNScorer(other.settings, fewer, chosen_I)
        kept, pairs = kept + enough, pairs + len(columns)
    about = {"min_pair_users": least, "pairs_kept": kept / pairs if pairs else 1.0}
    return CountedMemory(memory.settings, parts, memory.weights, memory.as_of, memory.missing), about


def _of_enough(
    starts: Rows,
    columns: NDArray[np.int32],
    counts: NDArray[np.float32],
    data: Dataset,
    gaps: int,
    as_of: int | None,
    least: int,
) -> tuple[tuple[Rows, NDArray[np.int32], NDArray[np.float32]], int]:
    """The entries of sparse rows that enough users made, and how many these are."""
    kept = users_of_pairs(starts, columns, data, gaps, as_of) >= least
    behind = np.concatenate([[0], np.cumsum(kept)])
    return (behind[starts], columns[kept], counts[kept]), int(kept.sum())


def users_of_pairs(starts: Rows, columns: NDArray[np.int32], data: Dataset, gaps: int, as_of: int | None) -> Rows:
    """How many users have chosen the two items of each entry of some sparse rows shortly after one another, either way.

    Args:
        starts, columns: the rows.
        data: the log that was counted.
        gaps: up to how many places apart.
        as_of: everything before this moment was counted; None: the training part.
    """
    width, offsets = data.num_items, np.asarray(data.offsets)
    stored = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) * width + columns
    users = np.zeros(len(stored), dtype=np.int64)
    ends = np.asarray(data.train_end)
    first = 0
    while first < data.num_users:  # whole histories, so that each user is counted once for a pair
        at_once = max(1, PAIRS_AT_ONCE // gaps)  # events, each of which makes as many pairs as there are gaps
        last = max(first + 1, int(offsets.searchsorted(offsets[first] + at_once, side="right")) - 1)
        part = slice(int(offsets[first]), int(offsets[last]))
        items = np.asarray(data.items[part]).astype(np.int64)
        lengths = np.diff(offsets[first : last + 1])
        owner = np.repeat(np.arange(last - first), lengths)
        place = np.arange(len(items)) - np.repeat(offsets[first:last] - offsets[first], lengths)
        if as_of is None or data.event_times is None:
            counted = np.arange(part.start, part.stop) < np.repeat(ends[first:last], lengths)
        else:
            counted = np.asarray(data.event_times[part]) < as_of
        pairs, owners = [], []
        for gap in range(1, gaps + 1):
            later = np.flatnonzero(counted & (place >= gap))
            one, two = items[later - gap], items[later]
            pairs.append(np.minimum(one, two) * width + np.maximum(one, two))
            owners.append(owner[later])
        pair, who = np.concatenate(pairs), np.concatenate(owners)
        order = np.lexsort((who, pair))
        pair, who = pair[order], who[order]
        new = np.ones(len(pair), dtype=bool)  # the first time that a user has a pair
        new[1:] = (pair[1:] != pair[:-1]) | (who[1:] != who[:-1])
        pair, times = np.unique(pair[new], return_counts=True)
        low, high = np.divmod(pair, width)
        mirrored = low != high
        for key, several in ((pair, times), ((high * width + low)[mirrored], times[mirrored])):
            at = np.minimum(stored.searchsorted(key), max(0, len(stored) - 1))
            known = np.flatnonzero(stored[at] == key) if len(stored) else np.empty(0, dtype=np.int64)
            users[at[known]] += several[known]
        first = last
    return users


def described(found: Beside, scorer: FactorRowScorer, max_length: int, data: Dataset) -> dict[str, Any]:
    """What export.json says of a memory beside a model, whose graph and table are `scorer`."""
    about: dict[str, Any] = {
        "weights": dict(weights_of(found.memory, found.weight)),
        "validation": found.validation,
        **counted_up_to(found.memory),
    }
    without, both = _milliseconds(scorer, beside(scorer, found.memory, found.weight), max_length, data)
    return {**about, "milliseconds": both, "milliseconds_without": without}


def bytes_in(folder: Path) -> int:
    """How large the files of a folder are."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def loss_by_rare_pairs(
    model: SequenceEncoder, every: Beside, fewer: CountedMemory, data: Dataset, filter_seen: bool
) -> dict[str, float]:
    """Validation NDCG@10 of a model with all pairs, and with those that are kept."""
    if not len(data.valid):
        return {}
    names = {"ndcg@10_all_pairs": every.memory, "ndcg@10_kept_pairs": fewer}
    return {
        name: validation_value(
            WeightedSum([FactorScorer(model), memory_scorer(memory)], [every.weight, 1.0]),
            data,
            filter_seen=filter_seen,
            max_users=_MEASURED_ON,
        )
        for name, memory in names.items()
    }


def _milliseconds(first: FactorRowScorer, second: Any, max_length: int, data: Dataset) -> tuple[float, float]:
    """The median time of reading one history and finding its ten best, of two scorers that take turns."""
    positions = np.asarray(data.test if len(data.test) else data.valid)
    if not len(positions):  # nothing is held out: the last events of all histories of two or more
        positions = np.asarray(data.offsets[1:] - 1)[np.diff(data.offsets) > 1]
    if not len(positions):
        return 0.0, 0.0
    positions = np.random.default_rng(0).choice(positions, _TIMED + _WARM_UP)
    moments = data.event_times
    taken = np.empty((len(positions), 2))
    for turn, position in enumerate(positions.tolist()):
        window = np.asarray(data.history(position))[-max_length:].tolist()
        times: Sequence[Any] = [None if moments is None else moments[position - len(window) : position].tolist()]
        now = [None if moments is None else int(moments[position])]
        for place in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            (first, second)[place].prepare([window], times, now).candidates(10)
            taken[turn, place] = 1000 * (time.perf_counter() - started)
    without, both = np.median(taken[_WARM_UP:], axis=0).tolist()
    return float(without), float(both)


def lines_about(head: dict[str, Any]) -> list[str]:
    """For the line of the command: what stands beside the model."""
    found = head.get("memory")
    if not found:
        return []
    weights = ", ".join(f"{name} {weight:.2g}" for name, weight in found["weights"].items())
    lines = [
        f"memory beside the model ({weights}): {found['bytes'] / 2**20:.1f} MiB; a request takes "
        f"{found['milliseconds']:.2f} ms, without it {found['milliseconds_without']:.2f} ms"
    ]
    if "min_pair_users" in found:
        lines.append(
            f"pairs of fewer than {found['min_pair_users']} users are left out: {found['pairs_kept']:.1%} are kept"
            + _loss(found)
        )
    return lines


def _loss(found: dict[str, Any]) -> str:
    if "ndcg@10_kept_pairs" not in found:
        return ""
    kept, every = found["ndcg@10_kept_pairs"], found["ndcg@10_all_pairs"]
    return f"; validation NDCG@10 {kept:.4f}, with all pairs {every:.4f}"
