"""The memory as a teacher beside models: its scores of items, added to a model's.

    scores(s) = w_model · model(s) + w_content · content(s) + w_transitions · log(1 + 3 · (counts − own step))
                + w_item_knn · item_knn(s; pairs − own pairs)

Content is a product of factors, as a model is: its vectors stand beside the model's in the cached states and table.
Transitions and item-kNN give few items a score; of each position the largest are cached. The step that is to be
predicted is in their counts, and would be known to the teacher. So it is left out, and of pairs all that the user
added: what is chosen later was chosen together with what is known. Recency depends on the moment of a request, which a
student does not read, and does not teach.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.arrays import Int64Array
from llmd4rec.data.batching import Histories
from llmd4rec.distillation.rollouts import Rollouts
from llmd4rec.scoring.memory.content import principal_directions
from llmd4rec.scoring.memory.sparse import SparseRowQuery
from llmd4rec.scoring.memory.state import CountedMemory

Floats = NDArray[np.float32]
#: So many items of a position get a number by transitions and item-kNN: those of the highest.
KEPT = 128
#: Positions that are asked about together.
_POSITIONS_AT_ONCE = 512
#: So many directions of the content vectors teach, which hold nearly all that ranks items (docs/memory.md): the wider a
#: teacher, the more a step costs.
CONTENT_DIM = 96


class MemoryTeacher:
    """Scores of the memory at training positions.

    Args:
        memory: counted on the training part, with a weight for each part.
        model: the weight of the models beside it.
        histories: whose training positions.
    """

    def __init__(self, memory: CountedMemory, model: float, histories: Histories) -> None:
        self.memory, self.model = memory, model
        weights = memory.weights
        self._content = memory.content if weights.get("content") else None
        self._transitions = memory.transitions if weights.get("transitions") else None
        self._item_knn = memory.item_knn if weights.get("item_knn") else None
        self._axes_DC = None if self._content is None else principal_directions(self._content.vectors_ID, CONTENT_DIM)
        self._items, self._times = histories.items, histories.event_times
        starts = np.asarray(histories.offsets[:-1])
        inputs = np.maximum(np.asarray(histories.train_end) - starts - 1, 0)
        # What was drawn behind a history was counted nowhere.
        log = histories.source if isinstance(histories, Rollouts) else histories
        counted = np.asarray(log.train_end) - np.asarray(log.offsets[:-1])
        self._end_P: Int64Array = np.repeat(starts + counted, inputs)
        self._start_P: Int64Array = np.repeat(starts, inputs)
        within = np.arange(int(inputs.sum())) - np.repeat(np.cumsum(inputs) - inputs, inputs)
        self._last_P: Int64Array = self._start_P + within

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the models and of each part that teaches."""
        used = {"content": self._content, "transitions": self._transitions, "item_knn": self._item_knn}
        return {"model": self.model} | {name: self.memory.weights[name] for name, part in used.items() if part}

    @property
    def table_IC(self) -> Floats:
        """The vectors of all items in their first directions; C is 0 where content does not teach."""
        if self._content is None or self._axes_DC is None:
            return np.zeros((self.memory.num_rows, 0), np.float32)
        return self._content.vectors_ID @ self._axes_DC

    def states_NC(self, position_N: Int64Array) -> Floats:
        """What `table_IC` is multiplied with at some positions."""
        if self._content is None or self._axes_DC is None:
            return np.zeros((len(position_N), 0), np.float32)
        windows = self._windows(position_N, len(self._content.last))
        query = self._content.prepare(windows, [None] * len(windows), [None] * len(windows))
        return query.states_BD @ (self._axes_DC * np.float32(self.memory.weights["content"]))

    def most_NK(self, position_N: Int64Array) -> tuple[NDArray[np.int32], Floats]:
        """The items that transitions and item-kNN add most to at some positions, and what; 0 where there are fewer."""
        counts = self._transitions is not None or self._item_knn is not None
        shape = (len(position_N), min(KEPT, self.memory.num_rows) if counts else 1)
        items_NK, values_NK = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        if not counts:
            return items_NK, values_NK
        for first in range(0, len(position_N), _POSITIONS_AT_ONCE):
            some_N = position_N[first : first + _POSITIONS_AT_ONCE]
            asked = {"transitions": self._follow(some_N), "item_knn": self._together(some_N)}
            queries = {name: query for name, query in asked.items() if query is not None}
            weights = [self.memory.weights[name] for name in queries]
            summed = SparseRowQuery.weighted_sum(list(queries.values()), weights)
            for place in range(len(some_N)):
                columns, values = summed.entries(place)
                if len(columns) > shape[1]:
                    best = np.sort(np.argpartition(-values, shape[1] - 1)[: shape[1]])
                    columns, values = columns[best], values[best]
                items_NK[first + place, : len(columns)], values_NK[first + place, : len(columns)] = columns, values
        return items_NK, values_NK

    def _follow(self, position_N: Int64Array) -> SparseRowQuery | None:
        """What follows what, less the step to be predicted."""
        if self._transitions is None:
            return None
        settings = self._transitions.settings
        reach = max(len(settings.last), settings.gaps)
        target_N = self._last_P[position_N] + 1
        counted_N = target_N < self._end_P[position_N]
        items = self._items[target_N].tolist()
        targets = [item if counted else None for item, counted in zip(items, counted_N.tolist(), strict=True)]
        times, now = self._moments(position_N, reach)
        return self._transitions.prepare_leaving_out(self._windows(position_N, reach), times, now, targets)

    def _together(self, position_N: Int64Array) -> SparseRowQuery | None:
        """What the same users choose, less what the user of a position added."""
        if self._item_knn is None:
            return None
        start_H, first_H, history_N = np.unique(self._start_P[position_N], return_index=True, return_inverse=True)
        end_H = self._end_P[position_N][first_H]
        histories = [self._items[a:b] for a, b in zip(start_H.tolist(), end_H.tolist(), strict=True)]
        windows = self._windows(position_N, self._item_knn.settings.last)
        return self._item_knn.prepare_leaving_out(windows, histories, history_N)

    def _windows(self, position_N: Int64Array, length: int) -> list[list[int]]:
        last_N = self._last_P[position_N]
        first_N = np.maximum(self._start_P[position_N], last_N - length + 1)
        return [self._items[a : b + 1].tolist() for a, b in zip(first_N.tolist(), last_N.tolist(), strict=True)]

    def _moments(self, position_N: Int64Array, length: int) -> tuple[list[list[int] | None], list[int | None]]:
        """When the items of each window were, and its target."""
        if self._times is None:
            return [None] * len(position_N), [None] * len(position_N)
        last_N = self._last_P[position_N]
        first_N = np.maximum(self._start_P[position_N], last_N - length + 1)
        bounds = zip(first_N.tolist(), last_N.tolist(), strict=True)
        times: list[list[int] | None] = [np.asarray(self._times[a : b + 1]).tolist() for a, b in bounds]
        return times, np.asarray(self._times[last_N + 1]).tolist()
