"""What a recommender asks for scores: it reads histories once, and then scores any rows of the catalogue for them.

    query = scorer.prepare(windows, times, now)     histories in, whatever the scorer computes scores from out
    query.scores(rows)                              [B, n], of some rows, or of all
    query.candidates(100)                           of each at least the 100 best rows, and a bound on all others

This is :mod:`llmd4rec.scoring.base` without PyTorch. Filters, exclusions, ranking, reasons and batches are written
against it. A model is a scorer of factors (`factors.py`); counts or a sum of scorers are scorers too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import RunError
from llmd4rec.scoring.topk import BLOCK_ELEMENTS, top_columns

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Candidates(NamedTuple):
    """The best rows of one history, and perhaps more.

    Attributes:
        rows: different rows, in no order.
        scores: their scores.
        bound: no other row has a higher score; −inf where there is no other.
    """

    rows: Rows
    scores: Floats
    bound: float


class SearchLimits(NamedTuple):
    """When a search of a part of the catalogue does not pay, and all candidates are scored instead.

    Attributes:
        exact_up_to: up to so many candidates.
        largest_share: where more than this share of the rows would be asked for.
    """

    exact_up_to: int = 50_000
    largest_share: float = 0.1


class RowQuery(ABC):
    """Some histories, as one scorer has read them. Scores are 32-bit and finite; a larger one is better."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """I, the rows of the catalogue."""

    @property
    def search_limits(self) -> SearchLimits | None:
        """When to ask :meth:`candidates`, which scores a part of the catalogue only; None: it scores all of it."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """B, how many histories."""

    @abstractmethod
    def take(self, which: slice | Rows) -> Self:
        """Some of the histories: a range, or their numbers."""

    @abstractmethod
    def scores(self, rows: Rows | None = None) -> Floats:
        """The scores of some rows, or of all, [B, n]; the caller may overwrite them."""

    def add_to(self, total_BN: Floats, weight: float, rows: Rows | None = None) -> None:
        """Adds the scores of some rows, or of all, times a weight, to others in place."""
        scores_BN = self.scores(rows)
        scores_BN *= np.float32(weight)
        total_BN += scores_BN

    def candidates(self, m: int) -> list[Candidates]:
        """At least the m best rows of each history (all, if there are fewer), and a bound on all others.

        Every row is scored. A scorer that knows a shorter way overrides this, and says so in :attr:`search_limits`.
        """
        kept = min(m + 1, self.num_rows)
        found = []
        for place in range(len(self)):
            scores_1I = self.take(slice(place, place + 1)).scores()
            rows = top_columns(scores_1I, kept)[0]
            bound = float(scores_1I[0, rows[m]]) if kept > m else -np.inf
            found.append(Candidates(rows[:m], scores_1I[0, rows[:m]], bound))
        return found

    def centred_scores(self, rows: Rows, present: Mask) -> Floats:
        """The scores of some rows, less the mean score of all that are present, [B, n].

        Args:
            rows: which.
            present: [I].
        """
        means = [self.take(slice(place, place + 1)).scores()[0, present].mean() for place in range(len(self))]
        return self.scores(rows) - np.array(means, dtype=np.float32)[:, None]


class RowScorer(ABC):
    """What gives every row of one catalogue a score for a history. It can be asked from several threads at once."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """I."""

    @property
    def tables(self) -> Mapping[str, Floats]:
        """Item vectors by the name of their space, [I, d] each: what a new item is given to be scored.

        The factors of a model are called `model`, those of text vectors `content`.
        """
        return {}

    @property
    def vectors_ID(self) -> Floats | None:
        """The item vectors by which `similar` and diversity compare items: the first of the tables."""
        return next(iter(self.tables.values()), None)

    @abstractmethod
    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> RowQuery:
        """Reads histories.

        Args:
            windows: the most recent rows of each, oldest first, none empty; there may be no history at all.
            times: when each of these was chosen, in seconds since 1970; None where it is not known.
            now: for which moment each is answered, likewise.

        Raises:
            DataError: it reads times, and a history has none.
        """

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> RowScorer:
        """This scorer with other vectors of some rows, of which the last may be new.

        Args:
            rows: which.
            vectors: for each of :attr:`tables` that of each row, [N, d]; others are not read.

        Raises:
            RunError: it has no item vectors, and can score no new item.
        """
        if max(rows, default=-1) >= self.num_rows:
            raise RunError("what is served has no item vectors, and cannot score new items", "Train it with them.")
        return self


def with_rows(table_ID: Floats, rows: Sequence[int], vectors_ND: Floats) -> Floats:
    """A copy of a table in which some rows are written, of which the last may be new."""
    written_ID = np.zeros((max([len(table_ID), *(row + 1 for row in rows)]), table_ID.shape[1]), table_ID.dtype)
    written_ID[: len(table_ID)] = table_ID
    written_ID[list(rows)] = vectors_ND
    return written_ID


def exact_top(
    query: RowQuery, k: int, excluded: Sequence[Rows], block_elements: int = BLOCK_ELEMENTS
) -> tuple[list[Rows], list[Floats]]:
    """The k rows of the whole catalogue with the highest scores for each history, best first, and their scores.

    Args:
        query: the histories.
        k: how many; fewer are returned where the catalogue has no more.
        excluded: for each history, the rows that must not be returned.
        block_elements: how many scores are held at once.
    """
    at_once = max(1, block_elements // max(1, query.num_rows))
    rows: list[Rows] = []
    scores: list[Floats] = []
    for start in range(0, len(query), at_once):
        block = query if at_once >= len(query) else query.take(slice(start, start + at_once))
        block_BI = block.scores()
        for scores_I, rows_E in zip(block_BI, excluded[start : start + at_once], strict=True):
            scores_I[rows_E] = -np.inf
        best_BK = top_columns(block_BI, k)
        values_BK = np.take_along_axis(block_BI, best_BK, axis=1)
        for best_K, values_K in zip(best_BK, values_BK, strict=True):
            real = values_K > -np.inf
            rows.append(best_K[real])
            scores.append(values_K[real])
    return rows, scores


def exact_among(query: RowQuery, k: int, candidates: Rows) -> tuple[Rows, Floats]:
    """The k best of some rows for one history, best first, and their scores."""
    scores_1C = query.scores(candidates)
    best = top_columns(scores_1C, k)[0]
    return candidates[best], scores_1C[0, best]
