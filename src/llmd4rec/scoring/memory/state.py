"""A memory: the counts of a log up to a moment, its parts, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from llmd4rec.data.arrays import NO_TIME, Int64Array
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError, ModelError
from llmd4rec.io.arrays import read_array
from llmd4rec.io.files import atomic_dir, read_json, write_array, write_json
from llmd4rec.scoring.memory.content import ContentScorer
from llmd4rec.scoring.memory.counting import Log
from llmd4rec.scoring.memory.item_knn import ItemKNNScorer
from llmd4rec.scoring.memory.recency import Events, RecencyScorer
from llmd4rec.scoring.memory.settings import DEFAULT_WEIGHTS, PARTS, Content, ItemKNN, Memory, Recency, Transitions
from llmd4rec.scoring.memory.sparse import SparseRows
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.row_sums import WeightedRowSum
from llmd4rec.scoring.rows import RowScorer

Floats = NDArray[np.float32]
FORMAT = 1
FILE = "memory.json"
_REMEDY = "Put it back from a copy, or make it anew."


class CountedMemory(WeightedRowSum):
    """Content, transitions, recency and item-kNN, as far as there are such, and their weighted sum.

    Args:
        settings: what it is made of.
        parts: its parts by name, in the order of :data:`~llmd4rec.scoring.memory.settings.PARTS`.
        weights: of each part; None: those of the settings, or the defaults where they are fitted.
        as_of: it has counted what was before this moment, and answers later ones as this; None: whatever was there.
        missing: parts that the settings ask for and the data cannot give, and why.
    """

    def __init__(
        self,
        settings: Memory,
        parts: Mapping[str, RowScorer],
        weights: Mapping[str, float] | None = None,
        as_of: int | None = None,
        missing: Mapping[str, str] | None = None,
    ) -> None:
        given = settings.weights if weights is None and settings.weights != "auto" else weights
        known = DEFAULT_WEIGHTS if given is None else given
        self.settings, self.parts, self.as_of = settings, dict(parts), as_of
        self.weights = {name: float(known.get(name, 0.0)) for name in parts}
        self.missing = dict(missing or {})
        used = [name for name in parts if self.weights[name]] or list(parts)
        super().__init__([self.parts[name] for name in used], [self.weights[name] for name in used])

    @property
    def content(self) -> ContentScorer | None:
        """What reads alike."""
        part = self.parts.get("content")
        return part if isinstance(part, ContentScorer) else None

    @property
    def transitions(self) -> TransitionScorer | None:
        """What follows what."""
        part = self.parts.get("transitions")
        return part if isinstance(part, TransitionScorer) else None

    @property
    def recency(self) -> RecencyScorer | None:
        """What is chosen now."""
        part = self.parts.get("recency")
        return part if isinstance(part, RecencyScorer) else None

    @property
    def item_knn(self) -> ItemKNNScorer | None:
        """What the same users choose."""
        part = self.parts.get("item_knn")
        return part if isinstance(part, ItemKNNScorer) else None

    @property
    def max_length(self) -> int:
        """How many of the most recent items it reads."""
        settings = self.settings
        lengths = [len(part.last) for part in (settings.content, settings.transitions) if part is not None]
        if self.item_knn is not None:
            lengths.append(self.item_knn.settings.last)
        return max(lengths, default=1)

    @property
    def reads(self) -> tuple[str, ...]:
        """What it reads beside the items; see :data:`~llmd4rec.data.arrays.INPUTS`."""
        return ("target_times",) if "recency" in self.parts else ()

    @property
    def last_event(self) -> int | None:
        """When the last interaction was that recency has counted."""
        return None if self.recency is None else self.recency.events.last

    def with_weights(self, weights: Mapping[str, float]) -> CountedMemory:
        """The same counts, weighed otherwise; a part without a weight has none."""
        return CountedMemory(self.settings, self.parts, weights, self.as_of, self.missing)

    def without_unused(self) -> CountedMemory:
        """Without item-kNN where it has no weight: it is the largest part, and nothing else reads it."""
        if self.item_knn is None or self.weights["item_knn"]:
            return self
        parts = {name: part for name, part in self.parts.items() if name != "item_knn"}
        settings = self.settings.model_copy(update={"item_knn": None})
        weights = {name: self.weights[name] for name in parts}
        return CountedMemory(settings, parts, weights, self.as_of, self.missing) if parts else self

    def beside_model(self) -> CountedMemory:
        """As it stands beside a model: content in fewer directions (`content.dim_beside`); counts are shared."""
        asked = self.settings.content
        return self if asked is None else self.with_content_dim(asked.dim_beside)

    def with_content_dim(self, dim: int) -> CountedMemory:
        """With content in so many of its directions, if it has more; counts are shared."""
        content, asked = self.content, self.settings.content
        if content is None or asked is None or (cut := content.cut(dim)) is content:
            return self
        settings = self.settings.model_copy(update={"content": asked.model_copy(update={"dim": dim})})
        return CountedMemory(settings, {**self.parts, "content": cut}, self.weights, self.as_of, self.missing)

    def with_items(self, rows: Sequence[int], vectors: Mapping[str, Floats]) -> CountedMemory:
        """For a catalogue with new items at its end, or other texts of some; counts are shared with this.

        Args:
            rows: which.
            vectors: those of `content`, as its :meth:`~llmd4rec.scoring.memory.content.ContentScorer.embed` makes
                them; without them these items have no text.
        """
        parts = {name: part.with_items(rows, vectors) for name, part in self.parts.items()}
        return CountedMemory(self.settings, parts, self.weights, self.as_of, self.missing)

    def observe(self, history: Sequence[int], item: int, time: int | None, times: Sequence[int] | None = None) -> None:
        """Counts one event; from then on all scores are what counting the longer log would give.

        Events are expected in the order of their times. Answers in other threads need no lock: what they read is
        replaced, never half changed. Several threads may observe; they wait for each other.

        Args:
            history: what the user chose before, oldest first.
            item: what was chosen now.
            time: when, in seconds since 1970; without it recency does not count.
            times: when each of the history was; needed where items of one moment count half each way.
        """
        if self.transitions is not None:
            self.transitions.observe(history, item, time, times)
        if self.item_knn is not None:
            self.item_knn.observe(history, item)
        if self.recency is not None and time is not None:
            self.recency.observe(item, time)
        if self.as_of is not None and time is not None:
            self.as_of = max(self.as_of, time + 1)

    def advance(self, moment: int) -> None:
        """Says that everything before a moment has been counted."""
        if self.as_of is not None:
            self.as_of = max(self.as_of, moment)
        if self.recency is not None and self.recency.as_of is not None:
            self.recency.as_of = max(self.recency.as_of, moment)
        if self.transitions is not None:
            self.transitions.age(moment)

    def save(self, folder: Path | str) -> None:
        """Writes a folder of its own: `memory.json`, and an array in a file of each name in it."""
        arrays = dict(self._arrays())
        with atomic_dir(Path(folder), replace=True) as temporary:
            for name, array in arrays.items():
                write_array(temporary / f"{name}.npy", array)
            about = {
                "format": FORMAT,
                "settings": self.settings.model_dump(mode="json"),
                "parts": list(self.parts),
                "weights": self.weights,
                "as_of": self.as_of,
                "moment": None if self.transitions is None else self.transitions.moment,
                "missing": self.missing,
                "items": self.num_rows,
                "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()},
            }
            write_json(temporary / FILE, about)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        if self.content is not None:
            arrays |= {"content": self.content.vectors_ID, "content_mean": self.content.mean_T}
            if self.content.axes_TD is not None:
                arrays["content_axes"] = self.content.axes_TD
        if self.transitions is not None:
            found = self.transitions.arrays()
            arrays |= zip(("transition_starts", "transition_items", "transition_counts"), found, strict=True)
        if self.recency is not None:
            arrays |= zip(("recency_times", "recency_items"), self.recency.events.arrays(), strict=True)
        if self.item_knn is not None:
            names = ("item_knn_starts", "item_knn_items", "item_knn_counts", "item_knn_chosen")
            arrays |= zip(names, self.item_knn.arrays(), strict=True)
        return arrays

    @classmethod
    def load(cls, folder: Path | str, *, items: int | None = None) -> CountedMemory:
        """Reads what :meth:`save` wrote. Nothing is believed: sizes are compared before anything is read.

        Args:
            folder: where it is.
            items: of how many items it must be; None: any number.

        Raises:
            DataError: a file is missing, damaged, or does not fit the others.
        """
        folder = Path(folder)
        about = read_json(folder / FILE, most_bytes=_MOST_JSON, finite=True)
        if isinstance(about, dict) and about.get("format") != FORMAT:
            raise DataError(
                f"{folder / FILE} has format {repr(about.get('format'))[:100]}; this version reads {FORMAT}",
                "Use the version of llmd4rec that wrote it, or make it anew.",
            )
        try:
            known = _About.model_validate(about)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(repr(str(part)[:50])[1:-1] for part in first["loc"])
            raise DataError(f"{folder / FILE} is damaged: {place!r}: {first['msg']}", _REMEDY) from error
        if items not in (None, known.items):
            raise DataError(f"{folder / FILE} is of {known.items:,} items, but {items:,} are needed", _REMEDY)
        try:
            return cls._of(folder, known)
        except (ArithmeticError, ValueError, TypeError, IndexError) as error:
            raise DataError(f"{folder / FILE} is damaged: {error!r}", _REMEDY) from error

    @classmethod
    def _of(cls, folder: Path, about: _About) -> CountedMemory:
        settings, items = about.settings, about.items

        def stored(name: str, *shape: int | None) -> NDArray[Any]:
            try:
                array = read_array(folder / f"{name}.npy", _ARRAYS[name], shape)
            except (OSError, ValueError) as error:
                raise DataError(f"{folder / name}.npy is missing or damaged: {error}", _REMEDY) from error
            _fits(folder, name, about.arrays.get(name) == (array.dtype.str, list(array.shape)))
            return array

        def fits(name: str, holds: Any) -> None:
            _fits(folder, name, holds)

        def sparse(name: str, numbers: tuple[int, ...], max_per_row: int) -> SparseRows:
            starts, columns = stored(f"{name}_starts", items + 1), stored(f"{name}_items", None)
            counts = stored(f"{name}_counts", len(columns), None)
            fits(f"{name}_starts", starts[0] == 0 and starts[-1] == len(columns))
            fits(f"{name}_starts", (np.diff(starts) >= 0).all())
            fits(f"{name}_items", not len(columns) or 0 <= columns.min() <= columns.max() < items)
            within = np.ones(len(columns), bool)
            within[starts[:-1][starts[:-1] < len(columns)]] = False
            fits(f"{name}_items", (np.diff(columns, prepend=-1)[within] > 0).all())
            fits(f"{name}_counts", counts.shape[1] in numbers and (not len(counts) or counts.min() >= 0))
            return SparseRows(starts, columns, counts, max_per_row)

        parts: dict[str, RowScorer] = {}
        for name in about.parts:
            part: Content | Transitions | Recency | ItemKNN | None = getattr(settings, name)
            if isinstance(part, Content):
                mean_T, axes_TD = stored("content_mean", None), None
                if "content_axes" in about.arrays:
                    axes_TD = stored("content_axes", len(mean_T), None)
                width = len(mean_T) if axes_TD is None else axes_TD.shape[1]
                parts[name] = ContentScorer(stored("content", items, width), mean_T, axes_TD, part.last)
            elif isinstance(part, Transitions):
                rows = sparse("transition", (1, 2), part.max_per_row)
                parts[name] = TransitionScorer(part, rows, items, about.moment)
            elif isinstance(part, Recency):
                times = stored("recency_times", None)
                chosen = stored("recency_items", len(times))
                fits("recency_items", not len(chosen) or 0 <= chosen.min() <= chosen.max() < items)
                fits("recency_times", not len(times) or -_LATEST <= times.min() <= times.max() <= _LATEST)
                parts[name] = RecencyScorer(Events(part, times, chosen, items), items, about.as_of)
            elif isinstance(part, ItemKNN):
                rows, chosen = sparse("item_knn", (1,), part.max_per_row), stored("item_knn_chosen", items)
                fits("item_knn_chosen", chosen.min() >= 0)
                parts[name] = ItemKNNScorer(part, rows, chosen)
            else:
                raise DataError(f"{folder / FILE} is damaged: it has no settings of {name}", _REMEDY)
        return cls(settings, parts, about.weights, about.as_of, about.missing)


#: Most bytes of memory.json; and the seconds around 1970 within which events are.
_MOST_JSON, _LATEST = 1 << 20, 1 << 40
_Moment = Annotated[int, Field(ge=-_LATEST, le=_LATEST)]
_Part = Literal["content", "transitions", "recency", "item_knn"]
_Weight = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]


class _About(BaseModel):
    """What memory.json must say."""

    format: int
    settings: Memory
    parts: Annotated[list[_Part], Field(min_length=1, max_length=4)]
    weights: dict[str, _Weight]
    as_of: _Moment | None
    moment: _Moment | None
    missing: dict[str, str]
    items: Annotated[int, Field(ge=1, le=1 << 31)]
    arrays: dict[str, tuple[str, list[int]]]


#: What numbers each array holds.
_ARRAYS: dict[str, type[np.generic]] = {
    "content": np.float32,
    "content_mean": np.float32,
    "content_axes": np.float32,
    "transition_starts": np.int64,
    "transition_items": np.int32,
    "transition_counts": np.float32,
    "item_knn_starts": np.int64,
    "item_knn_items": np.int32,
    "item_knn_counts": np.float32,
    "item_knn_chosen": np.int64,
    "recency_times": np.int64,
    "recency_items": np.int32,
}


def _fits(folder: Path, name: str, fits: Any) -> None:
    if not fits:
        raise DataError(f"{folder / name}.npy does not fit the rest of the memory, or is damaged", _REMEDY)


def count_memory(
    settings: Memory, data: Dataset, texts_IT: Floats | None, *, before: int | None = None
) -> CountedMemory | None:
    """Counts a data set's log; None where no part is possible.

    Args:
        settings: which parts.
        data: histories, and when each event was.
        texts_IT: a text vector for each item, 0 where it has no text; None: there are none.
        before: counts every event strictly before this moment, held out or not, and answers for this moment at the
            latest; None: counts the training part, in which transitions do not age if the split is leave-one-out.
            Recency knows for each target what was before it.

    Raises:
        DataError: `before` is given, and the data set has no times.
        ModelError: the text vectors do not fit the catalogue.
    """
    times = data.event_times
    if before is not None and times is None:
        raise DataError(
            "the data set has no times, so nothing can be counted up to a moment",
            "Prepare it from a log with timestamps, or count its training part.",
        )
    log = Log(np.asarray(data.items), np.asarray(data.offsets), _counted(data, before), times, data.num_items)
    parts: dict[str, RowScorer] = {}
    missing: dict[str, str] = {}
    for name in PARTS:
        part: Content | Transitions | Recency | ItemKNN | None = getattr(settings, name)
        if isinstance(part, Content):
            if texts_IT is None or not np.any(texts_IT):
                missing[name] = "the items have no texts"
                continue
            if len(texts_IT) != data.num_items:
                raise ModelError(
                    f"there are text vectors of {len(texts_IT)} items, and the catalogue has {data.num_items}",
                    "Encode the texts of this data set.",
                )
            parts[name] = ContentScorer.of(part, texts_IT)
        elif isinstance(part, Transitions):
            parts[name] = TransitionScorer.count(part, log, before if before is not None else _moment(data, log))
        elif isinstance(part, Recency):
            if times is None:
                missing[name] = "the data set has no times"
                continue
            known = log.counted & (np.asarray(data.times) != NO_TIME)
            parts[name] = RecencyScorer.count(part, Log(log.items, log.offsets, known, times, log.num_items), before)
        elif isinstance(part, ItemKNN):
            parts[name] = ItemKNNScorer.count(part, log)
    return CountedMemory(settings, parts, None, before, missing) if parts else None


def _counted(data: Dataset, before: int | None) -> NDArray[np.bool_]:
    if before is not None:
        assert data.event_times is not None
        earlier: NDArray[np.bool_] = np.asarray(data.event_times) < before
        return earlier
    ends = np.repeat(np.asarray(data.train_end), np.diff(data.offsets))
    trained: NDArray[np.bool_] = np.arange(data.num_interactions) < ends
    return trained


def _moment(data: Dataset, log: Log) -> int | None:
    """When counts of the training part are as old as they are: at its end, if everything held out comes later.

    Leave-one-out targets are of all times, for which nothing is old.
    """
    times: Int64Array | None = log.times
    return int(times[log.counted].max()) if times is not None and data.is_temporal and log.counted.any() else None
