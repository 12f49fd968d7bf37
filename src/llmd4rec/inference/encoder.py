"""The user encoder: from a history, as rows of the item table, to a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.arrays import INPUTS
from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.graph import FLOATS, INTEGERS, Graph

Floats = NDArray[np.float32]
#: Histories encoded at once; more would leave the processor's cache.
AT_ONCE = 256


@dataclass(frozen=True)
class HistoryBatch:
    """Histories as an encoder reads them, padded on the right.

    Attributes:
        rows_BL: rows of the item table, oldest first; any row where there is padding.
        lengths_B: real length of each history, at least 1.
        inputs: what else the encoder reads, by name; each [B, L].
    """

    rows_BL: NDArray[np.int64]
    lengths_B: NDArray[np.int64]
    inputs: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


class Encoder(Protocol):
    """A model that reads histories: the network of a run or the graph of an export."""

    @property
    def reads(self) -> tuple[str, ...]:
        """What it reads beside items and lengths; see :data:`~llmd4rec.data.arrays.INPUTS`."""
        ...

    def __call__(self, batch: HistoryBatch, table_ID: Floats) -> Floats:
        """States [B, d] of histories."""
        ...


class OnnxEncoder:
    """The exported graph in ONNX Runtime; it can be called from several threads at once.

    Args:
        path: encoder.onnx.
        dim: d.
        threads: threads of one call; None: ONNX Runtime's choice.

    Raises:
        RunError: the file is not such a graph.
    """

    def __init__(self, path: Path, dim: int, threads: int | None = None) -> None:
        self._graph = Graph(path, {"vectors": (FLOATS, 3), "lengths": (INTEGERS, 1)}, "states", threads)
        others = {name: kind for name, kind in self._graph.inputs.items() if name not in ("vectors", "lengths")}
        if others != {name: (INTEGERS, 2) for name in others if name in INPUTS} or self._graph.width != dim:
            raise RunError(
                f"{path} is not a user encoder of width {dim}: its inputs are {', '.join(self._graph.inputs)}",
                "Export the run again with: llmd4rec export RUN --out FOLDER --overwrite",
            )
        #: The graph's own inputs beside vectors and lengths.
        self.reads = tuple(others)

    def __call__(self, batch: HistoryBatch, table_ID: Floats) -> Floats:
        """See :class:`Encoder`."""
        return self._graph.run({"vectors": table_ID[batch.rows_BL], "lengths": batch.lengths_B, **batch.inputs})


def encode(
    encoder: Encoder,
    windows: Sequence[Sequence[int]],
    table_ID: Floats,
    times: Sequence[Sequence[int] | None] | None = None,
    now: Sequence[int | None] | None = None,
) -> Floats:
    """States [n, d] of windows of table rows, none of them empty; windows of similar length share a call.

    Args:
        encoder: reads them.
        windows: rows of the table, oldest first.
        table_ID: the item table.
        times: when each item of each window was chosen, in seconds since 1970; needed where the encoder reads more than
            items.
        now: for which moment each window is answered; likewise.

    Raises:
        DataError: the encoder reads times, and a window has none, or not one for each item.
    """
    states = np.empty((len(windows), table_ID.shape[1]), dtype=np.float32)
    lengths = np.fromiter((len(window) for window in windows), dtype=np.int64, count=len(windows))
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), AT_ONCE):
        chosen = order[start : start + AT_ONCE]
        longest = int(lengths[chosen[-1]])
        rows_BL = np.zeros((len(chosen), longest), dtype=np.int64)
        for place, number in enumerate(chosen.tolist()):
            rows_BL[place, : lengths[number]] = windows[number]
        inputs = {}
        if encoder.reads:
            inputs = _time_inputs(encoder.reads, chosen, lengths, longest, times, now)
        states[chosen] = encoder(HistoryBatch(rows_BL, lengths[chosen], inputs), table_ID)
    return states


def _time_inputs(
    reads: Sequence[str],
    chosen: NDArray[np.int64],
    lengths: NDArray[np.int64],
    longest: int,
    times: Sequence[Sequence[int] | None] | None,
    now: Sequence[int | None] | None,
) -> dict[str, NDArray[np.int64]]:
    """The times of some windows and of their targets, of which the last is `now`; padding repeats `now`."""
    moments_BT = np.empty((len(chosen), longest + 1), dtype=np.int64)
    for place, number in enumerate(chosen.tolist()):
        each = None if times is None else times[number]
        moment = None if now is None else now[number]
        if each is None or moment is None or len(each) != lengths[number]:
            raise DataError(
                "this model reads when each item of a history was chosen, and that is not given for each item",
                "Give `times`, one for each item of the history, and `now` where it is not the current time.",
            )
        moments_BT[place] = moment
        moments_BT[place, : len(each)] = each
    at = {"times": moments_BT[:, :-1], "target_times": moments_BT[:, 1:]}
    return {name: np.ascontiguousarray(at[name]) for name in reads}
