"""What a trained model must beat: scorers that need no training, by name.

| name          | scores an item by |
|---------------|-------------------|
| `popularity`  | how often it was chosen in the training part |
| `recency`     | how often it was chosen before the moment that is answered, of late |
| `content`     | how much its text reads like those of the most recent items |
| `transitions` | how often it came shortly after the most recent items |
| `item-knn`    | how often the same users chose it and the items of the history |

All but popularity are the parts of the memory (:mod:`llmd4rec.scoring.memory`), each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.item_knn import ItemKNNScorer
from llmd4rec.scoring.memory.settings import Content, ItemKNN, Memory, Recency, Transitions
from llmd4rec.scoring.memory.state import CountedMemory, count_memory
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.rows import RowScorer

BASELINES = ("popularity", "recency", "content", "transitions", "item-knn")
#: What tables show as their model.
NO_TRAINING = "no training"


class PopularityScorer(RowScorer):
    """log(1 + how often an item was chosen), whatever the history.

    Args:
        counts_I: of each item.
    """

    def __init__(self, counts_I: NDArray[np.int64]) -> None:
        self._scores_1I = np.log1p(counts_I.astype(np.float32))[None]

    @property
    def num_rows(self) -> int:
        """I."""
        return int(self._scores_1I.shape[1])

    def prepare(self, windows: Sequence[Sequence[int]], times: Sequence[Any], now: Sequence[Any]) -> FactorRowQuery:
        """The same for every history."""
        return FactorRowQuery.of(np.ones((len(windows), 1), np.float32), self._scores_1I.T)


def baseline_scorers(
    data: Dataset,
    texts_IT: NDArray[np.float32] | None,
    memory: Memory | None = None,
    *,
    counted: CountedMemory | None = None,
) -> dict[str, Scorer]:
    """The baselines that a data set allows, by name, in the order of :data:`BASELINES`.

    Args:
        data: its training part is counted.
        texts_IT: a text vector for each item; without them there is no `content`, as without times no `recency`.
        memory: how the parts of the memory are counted; a part that it leaves out is counted as by default.
        counted: a memory of these settings and this training part, whose parts are then not counted again.
    """
    given, parts = memory or Memory(), dict({} if counted is None else counted.parts)
    missing = Memory(
        content=None if "content" in parts else given.content or Content(),
        transitions=None if "transitions" in parts else given.transitions or Transitions(),
        recency=None if "recency" in parts else given.recency or Recency(),
        item_knn=None if "item_knn" in parts else given.item_knn or ItemKNN(),
    )
    more = count_memory(missing, data, texts_IT)
    parts |= {} if more is None else more.parts
    found = {"popularity": _named(PopularityScorer(data.train_counts), "popularity", 1)}
    for name, part in parts.items():
        length = len(part.last) if isinstance(part, ContentScorer) else 1
        length = len(part.settings.last) if isinstance(part, TransitionScorer) else length
        length = part.settings.last if isinstance(part, ItemKNNScorer) else length
        found[shown(name)] = _named(part, shown(name), length, ("target_times",) if name == "recency" else ())
    return {name: found[name] for name in BASELINES if name in found}


def memory_scorer(memory: CountedMemory, name: str = "memory", stage: str = "") -> Scorer:
    """A memory as an evaluator asks it."""
    return RowsScorer(memory, name, max_length=memory.max_length, reads=memory.reads, stage=stage)


def shown(part: str) -> str:
    """What tables call a part of the memory: `item-knn` for `item_knn`."""
    return part.replace("_", "-")


def _named(scorer: RowScorer, name: str, max_length: int | None, reads: tuple[str, ...] = ()) -> Scorer:
    return RowsScorer(scorer, NO_TRAINING, max_length=max_length, reads=reads, stage=name)
