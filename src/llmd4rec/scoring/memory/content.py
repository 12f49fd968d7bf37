"""What reads alike: factors made of text vectors.

The vectors are centred first: those of sentence encoders share one large direction, which hides what tells items apart.
Then they are whitened, by half: each principal direction is divided by the fourth root of its variance, so that the few
directions in which most texts differ do not drown the many that tell similar items apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import ModelError
from llmd4rec.scoring.memory.settings import Content
from llmd4rec.scoring.row_factors import FactorRowQuery, ItemVectors
from llmd4rec.scoring.rows import RowScorer, with_rows

Floats = NDArray[np.float32]
#: What its vectors are called among the tables of a scorer.
SPACE = "content"
#: A direction of less than so much of the largest one's variance has none.
_NO_VARIANCE = 1e-7


class ContentScorer(RowScorer):
    """Weighted mean of the vectors of a history's most recent items · the vectors of all items.

    Args:
        table_ID: a vector for each item, 0 where it has no text.
        mean_T: what is subtracted from a text vector first.
        axes_TD: the directions that are kept of it then, each as long as it counts; None: all, as they are.
        last: weights of the most recent items, newest first.
    """

    name = "content"

    def __init__(self, table_ID: Floats, mean_T: Floats, axes_TD: Floats | None, last: Sequence[float]) -> None:
        self._vectors, self.last = ItemVectors(table_ID, by_column=True), tuple(last)
        self.mean_T, self.axes_TD = mean_T, axes_TD

    @classmethod
    def of(cls, settings: Content, texts_IT: Floats) -> ContentScorer:
        """Of text vectors of any length; those of items without a text are 0.

        Raises:
            ModelError: they hold NaN or infinite values.
        """
        if not np.isfinite(texts_IT).all():
            raise ModelError("the text vectors hold NaN or infinite values", "Encode the texts anew.")
        mean_T = mean_text(texts_IT)
        unit_IT = centred(texts_IT, mean_T)
        if settings.dim >= texts_IT.shape[1] and not settings.whitening:
            return cls(unit_IT, mean_T, None, settings.last)
        axes_TD = principal_directions(unit_IT, settings.dim, settings.whitening)
        return cls(_unit(unit_IT @ axes_TD), mean_T, axes_TD, settings.last)

    @property
    def num_rows(self) -> int:
        """I."""
        return len(self._vectors.table_ID)

    @property
    def vectors_ID(self) -> Floats:
        """The reduced text vectors."""
        return self._vectors.table_ID

    @property
    def tables(self) -> Mapping[str, Floats]:
        """The reduced text vectors."""
        return {SPACE: self._vectors.table_ID}

    def embed(self, texts_NT: Floats) -> Floats:
        """The vectors of other texts, as this compares them; [N, D]."""
        unit_NT = centred(texts_NT, self.mean_T)
        return unit_NT if self.axes_TD is None else _unit(unit_NT @ self.axes_TD)

    def prepare(
        self,
        windows: Sequence[Sequence[int]],
        times: Sequence[Sequence[int] | None],
        now: Sequence[int | None],
    ) -> FactorRowQuery:
        """Means of the most recent items; 0 for a history without any."""
        table_ID, length = self._vectors.table_ID, len(self.last)
        items_BL = np.zeros((len(windows), length), dtype=np.int64)
        weight_BL = np.zeros((len(windows), length), dtype=np.float32)
        for place, window in enumerate(windows):
            recent = list(window)[-length:][::-1]
            items_BL[place, : len(recent)] = recent
            weight_BL[place, : len(recent)] = self.last[: len(recent)]
        weight_BL /= np.maximum(weight_BL.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        states_BD = (weight_BL[:, None, :] @ table_ID[items_BL])[:, 0]
        return FactorRowQuery(states_BD, self._vectors)

    def cut(self, dim: int) -> ContentScorer:
        """In its first directions only, which is what `of` gives with so many; all, if there are no more."""
        if self.axes_TD is None or dim >= self.axes_TD.shape[1]:
            return self
        axes_TD = np.ascontiguousarray(self.axes_TD[:, :dim])
        return ContentScorer(_unit(self.vectors_ID[:, :dim]), self.mean_T, axes_TD, self.last)

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> ContentScorer:
        """With other vectors of some rows, of which the last may be new; :meth:`embed` makes them.

        An item without a vector has no text: its vector is 0.
        """
        given = vectors.get(SPACE)
        vectors_ND = np.zeros((len(rows), self.vectors_ID.shape[1]), np.float32) if given is None else given
        return ContentScorer(with_rows(self.vectors_ID, rows, vectors_ND), self.mean_T, self.axes_TD, self.last)


def mean_text(texts_IT: Floats) -> Floats:
    """The mean of the vectors that are not 0, [T]: the large common direction that sentence vectors share."""
    present_I = np.any(texts_IT != 0, axis=1)
    if not present_I.any():
        return np.zeros(texts_IT.shape[1], np.float32)
    mean_T: Floats = texts_IT.mean(axis=0, dtype=np.float64, where=present_I[:, None]).astype(np.float32)
    return mean_T


def centred(texts_NT: Floats, mean_T: Floats) -> Floats:
    """Each vector less the mean, at length 1; 0 stays 0."""
    moved_NT: Floats = np.where(np.any(texts_NT != 0, axis=1, keepdims=True), texts_NT - mean_T, np.float32(0))
    return _unit(moved_NT)


def principal_directions(unit_IT: Floats, dim: int, whitening: float = 0.0) -> Floats:
    """The `dim` directions, [T, dim], onto which products of the vectors are kept best.

    Args:
        unit_IT: the vectors; those that are 0 do not count.
        dim: how many directions are kept; all, if there are fewer.
        whitening: each direction is divided by its variance to the power of half of that: at 1 all have the same
            variance afterwards, at 0 each is as it was.
    """
    total = np.zeros((unit_IT.shape[1], unit_IT.shape[1]))
    for start in range(0, len(unit_IT), 1 << 16):  # in double precision, a part at a time
        part = unit_IT[start : start + (1 << 16)].astype(np.float64)
        total += part.T @ part
    values, axes = np.linalg.eigh(total)
    values, axes = values[::-1][:dim], axes[:, ::-1][:, :dim]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    axes = axes * signs
    if whitening:
        # Directions in which nothing differs hold rounding errors alone, which must not be made large.
        real = values > _NO_VARIANCE * max(float(values[0]), np.finfo(np.float64).tiny)
        variance = np.where(real, values, 1.0) / max(int(np.any(unit_IT != 0, axis=1).sum()), 1)
        axes = np.where(real, axes * variance ** (-whitening / 2), 0.0)
    kept_TD: Floats = np.asarray(axes, dtype=np.float32)
    return np.ascontiguousarray(kept_TD)


def _unit(vectors_ND: Floats) -> Floats:
    """At length 1; 0 stays 0."""
    norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors_ND / np.where(norm_N1 > 0, norm_N1, 1), dtype=np.float32)
