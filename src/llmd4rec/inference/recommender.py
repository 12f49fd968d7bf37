"""The recommender: histories of identifiers in, items with titles, scores and reasons out. Needs no PyTorch.

    recommender = Recommender.load("exports/first")
    recommender.recommend(["item-1", "item-2"], k=10, filters=Filters(any_of={"brand": "Dove"}))

A request takes the same steps whether it comes alone or with others:

    parse     identifiers to rows; which rows are candidates (filters, exclusions, seen items)        query.py
    encode    the histories of all requests together                                                  encoder.py
    rank      the k best candidates: exactly, or through an index on a large catalogue                ranking.py
    answer    titles, fields, reasons                                                                 reasons.py

Everything that changes is in one immutable :class:`~llmd4rec.inference.snapshot.Snapshot`, which is replaced as a whole
when items are added or removed.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import ConfigError, DataError, RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.encoder import Encoder, OnnxEncoder, encode
from llmd4rec.inference.folder import Folder, Model, read_folder
from llmd4rec.inference.folder_writer import save_changed
from llmd4rec.inference.hub import locate_export, push
from llmd4rec.inference.index import ApproximateIndex
from llmd4rec.inference.new_items import ItemTexts, NewItemEmbedder, with_new_items
from llmd4rec.inference.query import Query, parse_request
from llmd4rec.inference.ranking import Ranked, rank
from llmd4rec.inference.reasons import find_reasons
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import (
    AddedReport,
    Answer,
    ExportInfo,
    Filters,
    Item,
    NewItem,
    Reason,
    RemovedReport,
    Request,
    ScoredItem,
    identifiers,
)

Floats = NDArray[np.float32]
IndexKind = Literal["auto", "exact", "approximate"]
#: With `index="auto"`, larger catalogues are searched through an index.
INDEX_ABOVE = 200_000


@dataclass(frozen=True)
class _LoadedFrom:
    """What is needed to load a recommender again in another process.

    Attributes:
        files: the checksums of the export's files.
        undistilled: it is the undistilled model of the export.
        threads, index, index_above: as given to `load`.
    """

    folder: str
    files: Mapping[str, str]
    undistilled: bool
    threads: int | None
    index: IndexKind
    index_above: int


class Recommender:
    """A loaded export; it can be asked from several threads at once.

    Use :meth:`load`. A recommender can be pickled and copied as long as no items were added or removed: it is
    then loaded again from its folder, in whichever process that is.

    Attributes:
        undistilled: the same network trained without distillation, where the export has it.
        examples: histories of real people and the item each chose next, where the export has any.
    """

    def __init__(
        self,
        info: ExportInfo,
        encoder: Encoder,
        table_ID: Floats,
        catalogue: Catalogue,
        *,
        undistilled: Recommender | None = None,
        examples: Sequence[tuple[tuple[str, ...], str | None]] = (),
        embedder: NewItemEmbedder | None = None,
        index: ApproximateIndex | None = None,
    ) -> None:
        self._info, self._encoder, self._embedder = info, encoder, embedder
        self._snapshot = Snapshot(catalogue, table_ID, index, len(catalogue))
        self._loaded_catalogue = catalogue
        self._lock = threading.Lock()  # one change at a time
        self.undistilled = undistilled
        self.examples = tuple(examples)
        self._folder: Folder | None = None
        self._loaded_from: _LoadedFrom | None = None

    # ---- loading and saving -----------------------------------------------------------------------------------------
    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        threads: int | None = None,
        index: IndexKind = "auto",
        index_above: int = INDEX_ABOVE,
    ) -> Recommender:
        """Opens an export folder and checks every file in it.

        Args:
            folder: made by `llmd4rec export`.
            threads: of the encoder; None: ONNX Runtime's choice.
            index: `exact` scores every item; `approximate` uses an index; `auto` does so on large catalogues.
            index_above: a catalogue with more items is large.

        Raises:
            RunError: it is not an export, or a file is missing, altered or does not fit the others.
        """
        if index not in ("auto", "exact", "approximate"):
            raise ConfigError(f"index is {index!r}", "Choose auto, exact or approximate.")
        read = read_folder(Path(folder))
        head = read.head
        catalogue = Catalogue.of(read.catalogue, read.counts, head["fields"], read.trained, head.get("multi_fields"))
        approximate = index == "approximate" or (index == "auto" and len(catalogue) > index_above)
        texts = ItemTexts(read.path, head, threads) if head.get("new_items") else None

        def open_model(model: Model, head: Mapping[str, Any], undistilled: Recommender | None) -> Recommender:
            recommender = cls(
                read.info(head),
                OnnxEncoder(model.encoder, head["dim"], threads),
                model.table_ID,
                catalogue,
                undistilled=undistilled,
                examples=read.examples,
                embedder=NewItemEmbedder(texts, model.text_map) if texts and model.text_map is not None else None,
                index=ApproximateIndex(model.table_ID) if approximate else None,
            )
            recommender._folder = read
            recommender._loaded_from = _LoadedFrom(
                str(read.path.resolve()), head["files"], model is read.undistilled, threads, index, index_above
            )
            return recommender

        undistilled = None
        if read.undistilled is not None:
            undistilled = open_model(read.undistilled, {**head, **head["undistilled"]}, None)
        return open_model(read.model, head, undistilled)

    @classmethod
    def from_pretrained(cls, name: Path | str, *, revision: str | None = None, **options: Any) -> Recommender:
        """Opens an export by its folder or its id on the Hugging Face hub.

        Args:
            name: an existing folder, or `owner/name`: searched in the local cache of the hub, then on the hub.
            revision: branch, tag or commit on the hub.
            options: those of :meth:`load`.

        Raises:
            RunError: there is no such export, or it cannot be opened; see :meth:`load`.
        """
        return cls.load(locate_export(name, revision), **options)

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Writes what is served now, with added and without removed items, as an export folder.

        Raises:
            DataError: `folder` exists.
            RunError: the folder this was loaded from is gone or changed, or `folder` is not an export.
        """
        if self._folder is None:
            raise RunError("this recommender was made from a run, not from an export", "Use llmd4rec export.")
        with self._lock:
            tables = {"": self._snapshot.table_ID}
            if self.undistilled is not None:
                tables["undistilled/"] = self.undistilled._snapshot.table_ID
            catalogue = self._snapshot.catalogue
        save_changed(self._folder, catalogue, tables, Path(folder), overwrite=overwrite)

    def push_to_hub(self, name: str, *, private: bool = True, token: str | None = None) -> str:
        """Uploads what is served now to the Hugging Face hub; returns its address.

        Raises:
            RunError: the hub does not answer or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "export")
            return push(Path(folder) / "export", name, private=private, token=token)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, copies and other processes: a recommender is loaded again from its folder where it is unpickled.

        Raises:
            RunError: it has no folder, the folder is gone, or items were added or removed since it was loaded.
        """
        if self._loaded_from is None:
            raise RunError(
                "a recommender made from a run cannot be sent to another process or copied",
                "Export the run, and call Recommender.load(FOLDER) in each process.",
            )
        if self._snapshot.catalogue is not self._loaded_catalogue:
            raise RunError(
                "this recommender has changed since it was loaded: items were added or removed, which another process "
                "or a copy would not have",
                "Write it with save_pretrained(FOLDER), and call Recommender.load(FOLDER) there.",
            )
        if not Path(self._loaded_from.folder).is_dir():
            raise RunError(
                f"{self._loaded_from.folder}, from which this was loaded, is gone: it cannot be loaded again",
                "Put the export back, or load it from where it is now: Recommender.load(FOLDER) in each process.",
            )
        return _load_again, (self._loaded_from,)

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
    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        filter_seen: bool | None = None,
        exclude: Collection[str] | None = (),
        filters: Filters | None = None,
        diversity: float = 0.0,
        explain: bool = False,
        popular_in: Mapping[str, str] | None = None,
    ) -> Answer:
        """The k best next items for a history; see :class:`~llmd4rec.inference.types.Request` for the arguments.

        A history without a known item is answered with the most frequent items.

        Raises:
            DataError: an argument is out of its range, or a filter names a field that the catalogue does not have.
        """
        request = Request(history, k, filter_seen, exclude, filters, diversity, explain, popular_in)
        return self.recommend_many([request])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[Answer]:
        """As :meth:`recommend`, for many requests: their histories are encoded together.

        Raises:
            DataError: as there, for the first request that is wrong; none is answered then.
        """
        snapshot = self._snapshot
        queries = self._parse(snapshot, requests)
        states = self._states(snapshot, queries)
        ranked = rank(snapshot, queries, states)
        return [
            self._answer(snapshot, query, state_D, found)
            for query, state_D, found in zip(queries, states, ranked, strict=True)
        ]

    def rank_many(self, requests: Sequence[Request]) -> tuple[Catalogue, list[Ranked]]:
        """As :meth:`recommend_many`, without titles, fields and reasons: the catalogue, and rows of it.

        Raises:
            DataError: as there.
        """
        snapshot = self._snapshot
        queries = self._parse(snapshot, requests)
        return snapshot.catalogue, rank(snapshot, queries, self._states(snapshot, queries))

    def similar(self, item_id: str, k: int = 10, *, filters: Filters | None = None) -> Answer:
        """The items with the highest cosine between their embedding and this item's; scores are cosines.

        Raises:
            DataError: the item is unknown, or as for :meth:`recommend`.
        """
        snapshot = self._snapshot
        rows, unknown = snapshot.catalogue.rows(identifiers("item", [item_id]))
        if unknown:
            raise DataError(f"the catalogue has no item {unknown[0]!r}", "Use an identifier of the catalogue.")
        request = Request([item_id], k, filter_seen=True, filters=filters)  # an item is not similar to itself
        candidates = self._parse(snapshot, [request])[0].candidates(snapshot.catalogue)
        unit_D = snapshot.table_ID[rows[0]] / snapshot.norms_I[rows[0]]
        cosines_I = (snapshot.table_ID @ unit_D) / snapshot.norms_I
        best = candidates[np.argsort(-cosines_I[candidates], kind="stable")[:k]]
        items = tuple(_scored(snapshot, int(row), float(cosines_I[row])) for row in best)
        return Answer(items, (), None, len(candidates))

    def _parse(self, snapshot: Snapshot, requests: Sequence[Request]) -> list[Query]:
        return [parse_request(request, snapshot.catalogue, self._info.filter_seen) for request in requests]

    def _states(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Floats | None]:
        """The state of each query's history; None where no item of it is known."""
        known = [place for place, query in enumerate(queries) if query.history]
        length = self._info.max_length
        windows = [queries[place].history[-length:] for place in known]
        times = [None if (each := queries[place].times) is None else each[-length:] for place in known]
        now = [queries[place].now for place in known]
        states: list[Floats | None] = [None] * len(queries)
        encoded = encode(self._encoder, windows, snapshot.table_ID, times, now)
        for place, state_D in zip(known, encoded, strict=True):
            states[place] = state_D
        return states

    def _answer(self, snapshot: Snapshot, query: Query, state_D: Floats | None, found: Ranked) -> Answer:
        reasons: Sequence[tuple[Reason, ...] | None] = [None] * len(found.rows)
        if query.request.explain:
            reasons = find_reasons(self._encoder, snapshot, query, state_D, found.rows, self._info.max_length)
        items = tuple(map(_scored, [snapshot] * len(reasons), found.rows.tolist(), found.scores.tolist(), reasons))
        return Answer(items, tuple(query.unknown), "popular" if found.popular else None, query.num_candidates)

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
        models = [model for model in (self, self.undistilled) if model is not None]
        with self._lock:
            replaced = [item.item_id for item in items if self.item(item.item_id) is not None]
            pairs = [(model._snapshot, model._embedder) for model in models]
            for model, snapshot in zip(models, with_new_items(pairs, items, self._info.name), strict=True):
                model._snapshot = snapshot
        known = set(replaced)
        return AddedReport(tuple(item.item_id for item in items if item.item_id not in known), tuple(replaced))

    def remove_items(self, item_ids: Collection[str]) -> RemovedReport:
        """Removes items: they are no longer recommended or found, but are still understood in histories."""
        distinct = dict.fromkeys(identifiers("list of items", item_ids))
        with self._lock:
            present = [item_id for item_id in distinct if self.item(item_id) is not None]
            for model in (self, self.undistilled):
                if model is not None:
                    model._snapshot = model._snapshot.without_items(present)
        removed = set(present)
        return RemovedReport(tuple(present), tuple(item_id for item_id in distinct if item_id not in removed))


def _scored(snapshot: Snapshot, row: int, score: float, reasons: tuple[Reason, ...] | None = None) -> ScoredItem:
    catalogue = snapshot.catalogue
    return ScoredItem(catalogue.ids[row], catalogue.title(row), score, catalogue.values(row), reasons)


def _load_again(source: _LoadedFrom) -> Recommender:
    """A recommender in the process that it was sent to.

    Raises:
        RunError: its folder is not there, or contains another export by now.
    """
    folder = Path(source.folder)
    if not folder.is_dir():
        raise RunError(
            f"a recommender came from another process, and its export {folder} is not there on this machine",
            "Copy the export there under the same path, or call Recommender.load(FOLDER) in each process.",
        )
    recommender = Recommender.load(folder, threads=source.threads, index=source.index, index_above=source.index_above)
    if recommender._folder is None or recommender._folder.head["files"] != source.files:
        raise RunError(
            f"{folder} contains another export than when the recommender was loaded that came from another process",
            "Load it again in both: Recommender.load(FOLDER).",
        )
    found = recommender.undistilled if source.undistilled else recommender
    assert found is not None  # an export of the same files has the same models
    return found
