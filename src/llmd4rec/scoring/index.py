"""An approximate index over a large item table: product quantisation of all rows, then exact scores of the best.

Every row is stored in 4-bit codes, which a processor scans many times faster than the rows themselves. The scan returns
some thousand rows, whose exact scores decide. No row is skipped, so recall hardly depends on how the items lie, and
the index is made in seconds when an export is loaded; docs/serving.md compares it with graphs and inverted lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.extras import explained
from llmd4rec.scoring.rows import SearchLimits

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: The number of rows that the codes are learned from. Below the minimum faiss warns for each code, and below 16 rows it
#: cannot learn them.
_TRAINED_ON, _MIN_TRAINED_ON = 65_536, 39 * 16
#: The index returns at least `MIN_RESCORED` rows, and `RESCORE_FACTOR` times those asked for; these are scored exactly.
MIN_RESCORED, RESCORE_FACTOR = 2000, 20
#: When no index is asked, unless it says otherwise.
LIMITS = SearchLimits()


class ApproximateIndex:
    """An index over the rows of a table; it can be searched from several threads at once.

    Args:
        tables: [I, d]; of several the index is over their rows side by side, for sums of products.
        min_rescored: at least so many rows are found.
        limits: when it is not to be asked.
    """

    def __init__(self, *tables: Floats, min_rescored: int = MIN_RESCORED, limits: SearchLimits = LIMITS) -> None:
        with explained():
            import faiss

        self.limits, self._min_rescored, self._num_rows = limits, min_rescored, len(tables[0])
        dim = sum(table_ID.shape[1] for table_ID in tables)
        # Two numbers share a code; an odd width gets a column of zeros.
        self._padding = dim % 2
        parts = (dim + self._padding) // 2
        self._index: Any = faiss.IndexPQFastScan(dim + self._padding, parts, 4, faiss.METRIC_INNER_PRODUCT)
        rng = np.random.default_rng(0)
        sample = np.sort(rng.choice(len(self), min(_TRAINED_ON, len(self)), replace=False))
        if len(sample) < _MIN_TRAINED_ON:  # a small table, whose rows are given again and again
            sample = np.resize(sample, _MIN_TRAINED_ON)
        self._index.train(self._padded(side_by_side([table_ID[sample] for table_ID in tables])))
        for start in range(0, len(self), _TRAINED_ON):
            block = slice(start, start + _TRAINED_ON)
            self._index.add(self._padded(side_by_side([table_ID[block] for table_ID in tables])))

    def __len__(self) -> int:
        return self._num_rows

    def candidates(self, states_BD: Floats, k: int) -> list[Rows]:
        """For each state a set of rows that nearly always includes its k best; in no order."""
        num_rows = min(len(self), max(self._min_rescored, RESCORE_FACTOR * k))
        _, rows_BM = self._index.search(self._padded(states_BD), num_rows)
        return [rows_M[rows_M >= 0].astype(np.int64) for rows_M in rows_BM]

    def _padded(self, vectors: Floats) -> Floats:
        padded = np.pad(vectors, ((0, 0), (0, self._padding))) if self._padding else vectors
        return np.ascontiguousarray(padded, dtype=np.float32)


def side_by_side(tables: Sequence[Floats]) -> Floats:
    """Several tables as one."""
    return tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)
