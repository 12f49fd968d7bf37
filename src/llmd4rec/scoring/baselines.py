"""What a trained model must beat: scorers that need no training, by name.

| name          | scores an item by |
|---------------|-------------------|
| `popularity`  | how often it was chosen in the training part |
| `recency`     | how often it was chosen before the moment that is answered, of late |
| `content`     | how much its text reads like those of the most recent items |
| `transitions` | how often it came shortly after the most recent items |
| `item-knn`    | the cosines of its users with those of each item of the history |

Content, transitions and recency are the parts of the memory (:mod:`llmd4rec.scoring.memory`), each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.features.cooccurrence import top_k_per_row
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.settings import Content, Memory, Recency, Transitions
from llmd4rec.scoring.memory.sparse import SparseRowQuery, SparseRows
from llmd4rec.scoring.memory.state import CountedMemory, count_memory
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.rows import RowScorer

BASELINES = ("popularity", "recency", "content", "transitions", "item-knn")
#: What tables show as their model.
NO_TRAINING = "no training"
#: Neighbours of an item that count in item-kNN.
NEIGHBOURS = 100
#: Pairs of a user's items that are counted at once.
_PAIRS_AT_ONCE = 1 << 25


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


class ItemKNNScorer(RowScorer):
    """The sum over the different items of a history of their cosines with an item, by the users who chose both.

    B. Sarwar et al., Item-based collaborative filtering recommendation algorithms, WWW 2001; whether a user chose an
    item counts, not how often. Of each item the :data:`NEIGHBOURS` nearest count.

    Args:
        data: its training part is read.
        neighbours: of each item.
    """

    def __init__(self, data: Dataset, neighbours: int = NEIGHBOURS) -> None:
        self._num_rows = data.num_items
        nearest = _cosines(data, neighbours)
        nearest.sort_indices()
        self._rows = SparseRows(
            nearest.indptr.astype(np.int64), nearest.indices.astype(np.int32), nearest.data.astype(np.float32)[:, None]
        )

    @property
    def num_rows(self) -> int:
        """I."""
        return self._num_rows

    def prepare(self, windows: Sequence[Sequence[int]], times: Sequence[Any], now: Sequence[Any]) -> SparseRowQuery:
        """Sums of the rows of the items."""
        picks = [list(dict.fromkeys(window)) for window in windows]
        return SparseRowQuery.of_sums(self._rows, picks, [[1.0] * len(each) for each in picks], self._num_rows)


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
    )
    more = count_memory(missing, data, texts_IT)
    parts |= {} if more is None else more.parts
    found = {"popularity": _named(PopularityScorer(data.train_counts), "popularity", 1)}
    for name, part in parts.items():
        length = len(part.last) if isinstance(part, ContentScorer) else 1
        length = len(part.settings.last) if isinstance(part, TransitionScorer) else length
        found[name] = _named(part, name, length, ("target_times",) if name == "recency" else ())
    found["item-knn"] = _named(ItemKNNScorer(data), "item-knn", None)
    return {name: found[name] for name in BASELINES if name in found}


def memory_scorer(memory: CountedMemory, name: str = "memory", stage: str = "") -> Scorer:
    """A memory as an evaluator asks it."""
    return RowsScorer(memory, name, max_length=memory.max_length, reads=memory.reads, stage=stage)


def _named(scorer: RowScorer, name: str, max_length: int | None, reads: tuple[str, ...] = ()) -> Scorer:
    return RowsScorer(scorer, NO_TRAINING, max_length=max_length, reads=reads, stage=name)


def _cosines(data: Dataset, neighbours: int) -> sp.csr_matrix:
    """|U_i ∩ U_j| / √(|U_i| |U_j|) of different items, the largest of each row; a range of items at a time."""
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    trained = np.arange(data.num_interactions) < np.asarray(data.train_end)[users]
    pairs = np.unique(np.stack([users[trained], np.asarray(data.items)[trained]]), axis=1)
    size = (data.num_users, data.num_items)
    chosen = sp.csr_matrix((np.ones(pairs.shape[1], np.float32), (pairs[0], pairs[1])), size)
    by_item = sp.csr_matrix(chosen.T)
    counts = np.diff(by_item.indptr)
    scale = np.divide(1, np.sqrt(counts), out=np.zeros(len(counts)), where=counts > 0).astype(np.float32)
    cost = np.cumsum(by_item @ np.diff(chosen.indptr).astype(np.float64))
    parts, first = [], 0
    while first < data.num_items:
        before = cost[first - 1] if first else 0.0
        last = max(first + 1, int(np.searchsorted(cost, before + _PAIRS_AT_ONCE, side="right")))
        both = sp.csr_matrix(by_item[first:last] @ chosen)
        row = np.repeat(np.arange(first, last), np.diff(both.indptr))
        both.data[both.indices == row] = 0
        both.eliminate_zeros()
        cosines = sp.diags(scale[first:last]) @ both @ sp.diags(scale)
        parts.append(top_k_per_row(sp.csr_matrix(cosines), neighbours))
        first = last
    return sp.csr_matrix(sp.vstack(parts))
