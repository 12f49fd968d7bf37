"""The recommender: histories of identifiers in, items with titles, scores and reasons out. Needs no PyTorch.

    recommender = Recommender.load("exports/first")
    recommender.recommend(["item-1", "item-2"], k=10, filters=Filters(any_of={"brand": "Dove"}))

It is the same for a run, an export and an export on the hub; what they hold is opened elsewhere (`opening.py`).

A request takes the same steps whether it comes alone or with others:

    parse     identifiers to rows; which rows are candidates (filters, exclusions, seen items)        query.py
    read      the histories of all requests together, by the scorer                 factors.py, scoring/memory
    rank      the k best candidates: exactly, or through an index on a large catalogue                ranking.py
    answer    titles, fields, reasons                                                     answers.py, reasons.py

Everything that changes is in one immutable :class:`~llmd4rec.inference.snapshot.Snapshot`, which is replaced as a whole
when items are added or removed.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from llmd4rec.distillation.stage_ids import SERVED
from llmd4rec.errors import ConfigError, DataError, RunError
from llmd4rec.extras import explained
from llmd4rec.inference.answers import answer_of, scored_item
from llmd4rec.inference.batch import is_several, recommend_frame
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.events import count_events
from llmd4rec.inference.folder import Folder
from llmd4rec.inference.folder_writer import save_changed
from llmd4rec.inference.hub import push
from llmd4rec.inference.moments import Moment
from llmd4rec.inference.new_items import NewItemEmbedder, with_new_items
from llmd4rec.inference.opening import INDEX_ABOVE, IndexKind, LoadOptions, Renamed, of_stage, open_source, reloading
from llmd4rec.inference.query import Query, parse_request
from llmd4rec.inference.ranking import Ranked, history_places, most_similar, rank, read_histories
from llmd4rec.inference.snapshot import Snapshot, without_removed
from llmd4rec.inference.types import (
    AddedReport,
    Answer,
    Event,
    ExportInfo,
    Filters,
    Item,
    NewItem,
    Options,
    RemovedReport,
    Request,
    identifiers,
)
from llmd4rec.scoring.rows import RowScorer

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from llmd4rec.inference.from_export import LoadedFrom
    from llmd4rec.scoring.base import Scorer


class Recommender:
    """What answers: a trained model with its catalogue. It can be asked from several threads at once.

    >>> recommender = Recommender.load("runs/first")
    >>> answer = recommender.recommend(["i3", "i4", "unheard of"], k=5)
    >>> len(answer.items), answer.unknown
    (5, ('unheard of',))
    >>> len(recommender.recommend([["i3"], ["i7", "i8"]], k=5))
    2
    >>> recommender.recommend(pl.DataFrame({"user_id": [1, 1], "item_id": ["i3", "i4"]}), k=5).columns
    ['user_id', 'rank', 'item_id', 'title', 'score']

    Use :meth:`load`. What was loaded from an export can be pickled and copied as long as no items were added or
    removed: it is then loaded again from its folder, in whichever process that is.

    Attributes:
        undistilled: the same network trained without distillation, where an export has it.
        examples: histories of real people and the item each chose next, where an export has any.
    """

    from_pretrained = Renamed("from_pretrained", "Recommender.load(NAME)")
    save_pretrained = Renamed("save_pretrained", "recommender.save(FOLDER)")

    def __init__(
        self,
        info: ExportInfo,
        scorer: RowScorer,
        catalogue: Catalogue,
        *,
        undistilled: Recommender | None = None,
        examples: Sequence[tuple[tuple[str, ...], str | None]] = (),
        embedder: NewItemEmbedder | None = None,
        alone: ExportInfo | None = None,
        folder: Folder | None = None,
        loaded_from: LoadedFrom | None = None,
    ) -> None:
        self._info, self._embedder, self._alone = info, embedder, alone
        self._snapshot = Snapshot(catalogue, scorer, len(catalogue))
        self._loaded_catalogue = catalogue
        self._lock = threading.Lock()  # one change at a time
        self._observed = False
        self.undistilled = undistilled
        self.examples = tuple(examples)
        self._folder, self._loaded_from = folder, loaded_from

    def __repr__(self) -> str:
        info = self.info
        origin = "run" if info.format == 0 else "export"
        return f"<Recommender: {info.stage} of the {origin} {info.name}, {info.model}, {info.items:,} items>"

    # ---- loading and saving -----------------------------------------------------------------------------------------
    @classmethod
    def load(
        cls,
        source: Path | str,
        stage: str = "served",
        *,
        revision: str | None = None,
        threads: int | None = None,
        index: IndexKind = "auto",
        index_above: int = INDEX_ABOVE,
        trust_code: bool = False,
    ) -> Recommender:
        """Opens a run folder, an export folder, or an export on the Hugging Face hub. An export is checked as a whole.

        Args:
            source: an existing folder, or `owner/name`: searched in the local cache of the hub, then on the hub.
            stage: `served`, `distilled`, or the id of a stage that is there, such as `undistilled`.
            revision: branch, tag or commit on the hub.
            threads: of the encoder of an export; None: ONNX Runtime's choice. Those of a run are PyTorch's.
            index: `exact` scores every item; `approximate` uses an index; `auto` does so on large catalogues.
            index_above: a catalogue with more items is large.
            trust_code: a run may import the code that its settings name.

        Raises:
            RunError: it is neither, or a file is missing, altered or does not fit the others, or it lacks the stage.
        """
        if index not in ("auto", "exact", "approximate"):
            raise ConfigError(f"index is {index!r}", "Choose auto, exact or approximate.")
        return open_source(source, LoadOptions(stage, revision, threads, index, index_above, trust_code))

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Writes what is served now, with added and without removed items, as an export folder.

        Raises:
            DataError: `folder` exists.
            RunError: this is a run, or a part of an export; the folder this was loaded from is gone or changed; or
                `folder` is not an export.
        """
        with self._lock:
            snapshots = {"": self._snapshot}
            if self.undistilled is not None:
                snapshots["undistilled/"] = self.undistilled._snapshot
        save_changed(self._folder, self._info, snapshots, Path(folder), overwrite=overwrite)

    def push_to_hub(self, name: str, *, private: bool = True, token: str | None = None) -> str:
        """Uploads what is served now to the Hugging Face hub; returns its address.

        Raises:
            RunError: the hub does not answer or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "export")
            return push(Path(folder) / "export", name, private=private, token=token)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, copies and other processes: it is loaded again from its folder where it is unpickled.

        Raises:
            RunError: it has no folder, the folder is gone, or it has changed since it was loaded.
        """
        return reloading(self._loaded_from, changed=self._changed), ()

    @property
    def _changed(self) -> bool:
        return self._observed or self._snapshot.catalogue is not self._loaded_catalogue

    # ---- what is served ---------------------------------------------------------------------------------------------
    @property
    def info(self) -> ExportInfo:
        """What is served."""
        return replace(self._info, items=self._snapshot.catalogue.size)

    @property
    def catalogue(self) -> Catalogue:
        """The items as they are now."""
        return self._snapshot.catalogue

    def item(self, item_id: str) -> Item | None:
        """An item, if the catalogue has it."""
        return self._snapshot.item(item_id)

    def search(self, text: str, limit: int = 20, *, filters: Filters | None = None) -> list[Item]:
        """Items whose titles have all the words of `text` in any order; the last may be the beginning of a word.

        Case and accents do not matter. Titles that begin with `text` come first, then the most frequent items; an
        empty text finds all.
        """
        snapshot = self._snapshot
        allowed = None if filters is None else snapshot.catalogue.mask(filters)
        return [snapshot.catalogue.item(row) for row in snapshot.search.find(text, limit, allowed)]

    # ---- recommendations --------------------------------------------------------------------------------------------
    @overload
    def recommend(  # type: ignore[overload-overlap]  # a text is a sequence of texts, and is refused
        self,
        history: Sequence[str | int] | pl.Series,
        k: int = 10,
        *,
        times: Sequence[Moment] | None = None,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def recommend(
        self,
        history: Sequence[Sequence[str | int]],
        k: int = 10,
        *,
        times: Sequence[Sequence[Moment]] | None = None,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def recommend(self, history: pl.DataFrame, k: int = 10, **options: Unpack[Options]) -> pl.DataFrame: ...
    def recommend(self, history: Any, k: int = 10, *, times: Any = None, **options: Unpack[Options]) -> Any:
        """The k best next items for one history, several, or each user of a frame.

        Args:
            history: identifiers, oldest first; a list of such histories; or a frame of polars or pandas with the
                columns `user_id` and `item_id`, a row for each interaction: by `timestamp` where it has that column,
                else each user's rows oldest first. Users need not have been seen in training.
            k: how many; fewer come where there are fewer candidates.
            times: when each item of the history was chosen, for models that read it; a list for each of several
                histories. Of a frame they are the column `timestamp`.
            options: `filter_seen`, `exclude`, `filters`, `diversity`, `explain`, `popular_in`, `skip_unknown` and
                `now`; see :class:`~llmd4rec.inference.types.Request`. They hold for every history.

        Returns:
            An answer; a list of answers; or a frame of the same kind with `user_id`, `rank` (from 1), `item_id`,
            `title` and `score`. What an answer says besides, of unknown items and popular ones, is a warning then.

        Raises:
            DataError: an argument is out of its range, a filter names a field that the catalogue does not have, or a
                frame lacks a column.
        """
        if hasattr(history, "columns"):
            if times is not None:
                raise DataError("times is given beside a frame", "Give them as its column `timestamp`.")
            return recommend_frame(self, history, Request(k=k, **options))
        if not is_several(history):
            return self.recommend_many([Request(history, k, times=times, **options)])[0]
        each_times = [None] * len(history) if times is None else list(times)
        if len(each_times) != len(history):
            raise DataError(
                f"times has {len(each_times):,} lists for {len(history):,} histories", "Give one for each history."
            )
        both = zip(history, each_times, strict=True)
        return self.recommend_many([Request(one, k, times=its, **options) for one, its in both])

    def recommend_many(self, requests: Sequence[Request]) -> list[Answer]:
        """As :meth:`recommend`, for requests with options of their own: their histories are encoded together.

        Raises:
            DataError: as there, for the first request that is wrong; none is answered then.
        """
        snapshot = self._snapshot
        queries = self._parse(snapshot, requests)
        scored = read_histories(snapshot, queries, length := self._info.max_length)
        ranked = rank(snapshot, queries, scored)
        return [
            answer_of(snapshot, query, scored, place, found, length)
            for query, place, found in zip(queries, history_places(queries), ranked, strict=True)
        ]

    def rank_many(self, requests: Sequence[Request]) -> tuple[Catalogue, list[Ranked]]:
        """As :meth:`recommend_many`, without titles, fields and reasons: the catalogue, and rows of it.

        Raises:
            DataError: as there.
        """
        snapshot = self._snapshot
        queries = self._parse(snapshot, requests)
        return snapshot.catalogue, rank(snapshot, queries, read_histories(snapshot, queries, self._info.max_length))

    def similar(self, item_id: str | int, k: int = 10, *, filters: Filters | None = None) -> Answer:
        """The items with the highest cosine between their vector and this item's; scores are cosines.

        The vectors are those that the scorer compares histories with: the item embeddings of a model.

        Raises:
            DataError: the item is unknown, or as for :meth:`recommend`.
            RunError: the scorer has no item vectors.
        """
        snapshot = self._snapshot
        rows, unknown = snapshot.catalogue.rows(identifiers("item", [item_id]))
        if unknown:
            raise DataError(f"the catalogue has no item {unknown[0]!r}", "Use an identifier of the catalogue.")
        request = Request([item_id], k, filter_seen=True, filters=filters)  # an item is not similar to itself
        (query,) = self._parse(snapshot, [request])
        found = zip(*most_similar(snapshot, rows[0], query), strict=True)
        items = tuple(scored_item(snapshot, int(row), float(cosine)) for row, cosine in found)
        return Answer(items, (), None, query.num_candidates)

    def _parse(self, snapshot: Snapshot, requests: Sequence[Request]) -> list[Query]:
        moment, filter_seen = snapshot.moment(), self._info.filter_seen
        return [parse_request(request, snapshot.catalogue, filter_seen, moment) for request in requests]

    def model_alone(self) -> Recommender:
        """What answers without the memory beside its model; itself where there is none."""
        if self._alone is None:
            return self
        (model, *_), name = self._snapshot.scorer.members, self._alone.stage  # type: ignore[attr-defined]
        loaded_from = None if self._loaded_from is None else replace(self._loaded_from, stage=name)
        return Recommender(
            self._alone, model, self.catalogue, examples=self.examples, embedder=self._embedder, loaded_from=loaded_from
        )

    def scorer(self, stage: str = SERVED) -> Scorer:
        """What scores the catalogue, for an :class:`~llmd4rec.Evaluator`. Needs PyTorch.

        Raises:
            RunError: it has no such stage; or it has changed since it was loaded, so that it fits no data set.
        """
        asked = of_stage(self, stage)
        if self._changed:
            what = "items were added, changed or removed, or events counted, since this was loaded"
            raise RunError(what, "Evaluate it as it is loaded.")
        with explained():
            from llmd4rec.inference.torch_scorer import RecommenderScorer
        return RecommenderScorer(asked._snapshot.scorer, asked._info)

    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """Vectors of texts, [n, T], as new items get them from the export's text encoder; None: it has none."""
        items = [NewItem(str(place), text=text) for place, text in enumerate(texts)]
        return None if self._embedder is None else self._embedder.texts.vectors(items)

    # ---- changes ----------------------------------------------------------------------------------------------------
    def add_items(self, items: Sequence[NewItem]) -> AddedReport:
        """Adds items, whose embeddings are made from their texts. They can be recommended and read at once.

        Of an item that the catalogue has already, even if it had been removed, only what is given changes: a title of
        None and fields that are not named stay, a field of None and an empty title are cleared. A trained item keeps
        its trained embedding and needs no text. The embedding of any other is made again where something is given that
        it is made from.

        Raises:
            DataError: an item is wrong, or has no text; names it. Nothing is added then.
            RunError: the export cannot embed new items.
        """
        with self._lock:
            replaced = [item.item_id for item in items if self.item(item.item_id) is not None]
            pairs = [(model._snapshot, model._embedder) for model in self._models()]
            self._publish(with_new_items(pairs, items, self._info.name))
        known = set(replaced)
        return AddedReport(tuple(item.item_id for item in items if item.item_id not in known), tuple(replaced))

    def remove_items(self, item_ids: Collection[str]) -> RemovedReport:
        """Removes items: no longer recommended or found, but still understood in histories, added ones for a while."""
        distinct = dict.fromkeys(identifiers("list of items", item_ids))
        with self._lock:
            present = [item_id for item_id in distinct if self.item(item_id) is not None]
            self._publish([model._snapshot.without_items(present) for model in self._models()])
        removed = set(present)
        return RemovedReport(tuple(present), tuple(item_id for item_id in distinct if item_id not in removed))

    def observe(
        self,
        history: Sequence[str | int],
        item: str | int,
        time: Moment | None = None,
        *,
        times: Sequence[Moment] | None = None,
    ) -> None:
        """Counts an event into the memory; see :class:`~llmd4rec.inference.types.Event` and :meth:`observe_many`."""
        self.observe_many([Event(history, item, time, times)])

    def observe_many(self, events: Sequence[Event]) -> None:
        """Counts events into the memory, in the order of their times. Answers know them at once; nothing is stored.

        Raises:
            DataError: an item is unknown, or a time lies in the future; names the event. None is counted then.
            RunError: there is no memory beside the model.
        """
        with self._lock:
            count_events(self._info.name, [model._snapshot for model in self._models()], events)
            self._observed = True

    def _models(self) -> list[Recommender]:
        return [self] if self.undistilled is None else [self, self.undistilled]

    def _publish(self, snapshots: Sequence[Snapshot]) -> None:
        for model, snapshot in zip(self._models(), without_removed(snapshots), strict=True):
            model._snapshot = snapshot
