"""The engine: histories of identifiers in, items with titles, scores and reasons out. Needs no PyTorch.

    engine = Engine.load("exports/first")
    engine.recommend(["item-1", "item-2"], k=10, filters=Filters(any_of={"brand": "Dove"}))

A request goes the same way whether it comes alone or with others:

    plan      identifiers to rows; which rows may come (filters, exclusions, seen items)
    encode    all histories of all requests in one go
    rank      the k best of what may come: exactly, or through an index on a large catalogue
    answer    titles, fields, reasons

Everything that changes is in one frozen :class:`_State`. A request takes it once; adding and removing items makes
another and swaps it, so that requests in flight are not disturbed.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import ConfigError, DataError, RunError
from llmd4rec.inference import diversity as mmr
from llmd4rec.inference.catalogue import Catalogue, Mask
from llmd4rec.inference.encoder import Encoder, OnnxEncoder, encode
from llmd4rec.inference.folder import Folder, Model, read_folder
from llmd4rec.inference.index import ApproximateIndex
from llmd4rec.inference.item_changes import ItemTexts, NewItems, check_items
from llmd4rec.inference.new_items import with_one
from llmd4rec.inference.search import TitleSearch
from llmd4rec.inference.topk import exact_among, exact_top
from llmd4rec.inference.types import (
    AddedReport,
    Answer,
    Because,
    ExportInfo,
    Filters,
    Item,
    NewItem,
    RemovedReport,
    Request,
    Scored,
    Seen,
    identifiers,
)

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
IndexKind = Literal["auto", "exact", "approximate"]
#: How many items of the history are named as reasons for one recommended item.
REASONS = 3
#: Catalogues with more items are asked through an index, unless told otherwise.
INDEX_ABOVE = 200_000
#: With an index: candidates so few are all scored, and so many times more are fetched than should be needed.
FEW, MARGIN = 50_000, 2
#: Above this share of the table, all are scored instead.
MOST_FETCHED = 0.1


@dataclass(frozen=True)
class _State:
    """What a request reads.

    Attributes:
        catalogue, table_ID: [I] and [I, d], row by row the same items.
        index: over the first rows of the table; those added later are scored exactly. None on a small catalogue.
    """

    catalogue: Catalogue
    table_ID: Floats
    index: ApproximateIndex | None

    @cached_property
    def search(self) -> TitleSearch:
        return TitleSearch(self.catalogue)

    @cached_property
    def mean_D(self) -> Floats:
        """The mean row, which gives the mean score of a state."""
        mean_D: Floats = self.table_ID[self.catalogue.present].mean(axis=0)
        return mean_D

    @cached_property
    def norms(self) -> Floats:
        """The rows' lengths, [I]; 1 for rows of zeros."""
        norms = np.linalg.norm(self.table_ID, axis=1)
        return np.where(norms > 0, norms, np.float32(1))


@dataclass(frozen=True)
class _Plan:
    """A request in rows.

    Attributes:
        history: known items, oldest first.
        unknown: the others' identifiers.
        passing: which rows pass the filters, [I]; None where there is no filter.
        banned: rows that must not come though they pass: excluded and seen ones.
        considered: how many rows may come.
    """

    request: Request
    history: list[int]
    unknown: list[str]
    passing: Mask | None
    banned: Rows
    considered: int

    @property
    def wanted(self) -> int:
        """How many of the best rows are needed."""
        return self.request.k if self.request.diversity == 0 else mmr.pool_size(self.request.k)

    def candidates(self, catalogue: Catalogue) -> Rows:
        """The rows that may come."""
        mask = (catalogue.present if self.passing is None else self.passing).copy()
        mask[self.banned] = False
        return np.flatnonzero(mask)


@dataclass(frozen=True)
class Ranked:
    """The rows of an answer, best first, and their scores; `popular` where no item of the history was known."""

    rows: Rows
    scores: Floats
    popular: bool = False


@dataclass(frozen=True)
class _Reload:
    """What an engine was loaded from, and how.

    Attributes:
        files: the checksums of the export's files.
        before: it is the model before distillation.
        threads, index, index_above: as given to `load`.
    """

    folder: str
    files: Mapping[str, str]
    before: bool
    threads: int | None
    index: IndexKind
    index_above: int


class Engine:
    """A loaded export; requests may come from several threads at once.

    Use :meth:`load`. An engine can be pickled and copied as long as no items were added or removed: it is then loaded
    again from its folder, in whichever process that is.

    Attributes:
        before: the model before distillation, where the export holds it.
        examples: histories of real people and the item each chose next, where the export holds any.
    """

    def __init__(
        self,
        info: ExportInfo,
        encoder: Encoder,
        table_ID: Floats,
        catalogue: Catalogue,
        *,
        before: Engine | None = None,
        examples: Sequence[tuple[tuple[str, ...], str | None]] = (),
        new_items: NewItems | None = None,
        index: ApproximateIndex | None = None,
    ) -> None:
        self._info, self._encoder, self._new_items = info, encoder, new_items
        self._state = _State(catalogue, table_ID, index)
        self._loaded_catalogue = catalogue
        self._loaded = len(catalogue)  # rows that an index may know
        self._lock = threading.Lock()
        self.before = before
        self.examples = tuple(examples)
        self._source: Folder | None = None
        self._reload: _Reload | None = None

    # ---- loading ------------------------------------------------------------------------------------------------
    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        threads: int | None = None,
        index: IndexKind = "auto",
        index_above: int = INDEX_ABOVE,
    ) -> Engine:
        """Opens an export folder and checks every file in it.

        Args:
            folder: made by `llmd4rec export`.
            threads: of the encoder; None: ONNX Runtime's choice.
            index: `exact` scores every item; `approximate` asks an index; `auto` does so on large catalogues.
            index_above: a catalogue with more items is large.

        Raises:
            RunError: it is no export, or a file is missing, altered or does not fit the others.
        """
        if index not in ("auto", "exact", "approximate"):
            raise ConfigError(f"index is {index!r}", "Choose auto, exact or approximate.")
        read = read_folder(Path(folder))
        head = read.head
        catalogue = Catalogue.of(read.catalogue, read.counts, head["fields"], read.trained, head.get("multi_fields"))
        approximate = index == "approximate" or (index == "auto" and len(catalogue) > index_above)
        texts = ItemTexts(read.path, read.head, threads) if read.head.get("new_items") else None

        def opened(model: Model, before: Engine | None) -> Engine:
            head = read.head if model is read.model else {**read.head, **read.head["before"]}
            engine = cls(
                read.info(head),
                OnnxEncoder(model.encoder, head["dim"], threads),
                model.table_ID,
                catalogue,
                before=before,
                examples=read.examples,
                new_items=NewItems(texts, model.text_map) if texts and model.text_map is not None else None,
                index=ApproximateIndex(model.table_ID) if approximate else None,
            )
            engine._source = read
            engine._reload = _Reload(
                str(read.path.resolve()), head["files"], model is not read.model, threads, index, index_above
            )
            return engine

        return opened(read.model, None if read.before is None else opened(read.before, None))

    @classmethod
    def from_pretrained(cls, name: Path | str, *, revision: str | None = None, **options: Any) -> Engine:
        """Opens an export by its folder or its id on the Hugging Face hub.

        Args:
            name: an existing folder, or `owner/name`: looked for in the local cache of the hub, then on the hub.
            revision: branch, tag or commit on the hub.
            options: those of :meth:`load`.

        Raises:
            RunError: there is no such export, or it cannot be opened; see :meth:`load`.
        """
        from llmd4rec.inference.hub import locate_export

        return cls.load(locate_export(name, revision), **options)

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Writes what is served now, with added and without removed items, as an export folder.

        Raises:
            DataError: `folder` exists.
            RunError: the folder this was loaded from is gone or changed, or `folder` is something else than an export.
        """
        from llmd4rec.inference.store import save_engine

        if self._source is None:
            raise RunError("this engine was made from a run, not from an export", "Use llmd4rec export.")
        with self._lock:
            models = {"": self._state.table_ID, "before/": None if self.before is None else self.before._state.table_ID}
            catalogue = self._state.catalogue
        tables = {prefix: table_ID for prefix, table_ID in models.items() if table_ID is not None}
        save_engine(self._source, catalogue, tables, Path(folder), overwrite=overwrite)

    def push_to_hub(self, name: str, *, private: bool = True, token: str | None = None) -> str:
        """Uploads what is served now to the Hugging Face hub; gives its address.

        Raises:
            RunError: the hub does not answer or refuses.
        """
        from llmd4rec.inference.hub import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "export")
            return push(Path(folder) / "export", name, private=private, token=token)

    @property
    def info(self) -> ExportInfo:
        """What is served."""
        return replace(self._info, items=self._state.catalogue.size)

    @property
    def catalogue(self) -> Catalogue:
        """The items as they are now."""
        return self._state.catalogue

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, copies and other processes: an engine is loaded again from its folder where it is unpickled.

        Raises:
            RunError: it has no folder, it is gone, or items were added or removed since.
        """
        if self._reload is None:
            raise RunError(
                "an engine made from a run cannot be sent to another process or copied",
                "Export the run, and call Engine.load(FOLDER) in each process.",
            )
        if self._state.catalogue is not self._loaded_catalogue:
            raise RunError(
                "this engine has changed since it was loaded: items were added or removed, which another process or a "
                "copy would not have",
                "Write it with save_pretrained(FOLDER), and call Engine.load(FOLDER) there.",
            )
        if not Path(self._reload.folder).is_dir():
            raise RunError(
                f"{self._reload.folder}, from which this engine was loaded, is gone: it cannot be loaded elsewhere",
                "Put the export back, or load it from where it is now: Engine.load(FOLDER) in each process.",
            )
        return _reloaded, (self._reload,)

    # ---- answers ------------------------------------------------------------------------------------------------
    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        seen: Seen | None = None,
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
        request = Request(history, k, seen, exclude, filters, diversity, explain, popular_in)
        return self.recommend_many([request])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[Answer]:
        """As :meth:`recommend`, for many at once: their histories are encoded together.

        Raises:
            DataError: as there, for the first request that is wrong; none is answered then.
        """
        state = self._state
        plans = [self._plan(state, request) for request in requests]
        states = self._states(state, plans)
        ranked = self._rank(state, plans, states)
        return [
            self._answer(state, plan, state_D, found)
            for plan, state_D, found in zip(plans, states, ranked, strict=True)
        ]

    def rank_many(self, requests: Sequence[Request]) -> tuple[Catalogue, list[Ranked]]:
        """As :meth:`recommend_many`, without titles, fields and reasons: rows of the catalogue, which comes with them.

        Raises:
            DataError: as there.
        """
        state = self._state
        plans = [self._plan(state, request) for request in requests]
        return state.catalogue, self._rank(state, plans, self._states(state, plans))

    def similar(self, item_id: str, k: int = 10, *, filters: Filters | None = None) -> Answer:
        """The items whose rows of the table point most nearly where this item's does; scores are cosines.

        Raises:
            DataError: the item is unknown, or as for :meth:`recommend`.
        """
        state = self._state
        rows, unknown = state.catalogue.rows(identifiers("item", [item_id]))
        if unknown:
            raise DataError(f"the catalogue has no item {unknown[0]!r}", "Use an identifier of the catalogue.")
        row = rows[0]
        plan = self._plan(state, Request([item_id], k, "remove", filters=filters))
        candidates = plan.candidates(state.catalogue)
        unit_D = state.table_ID[row] / state.norms[row]
        cosines = (state.table_ID @ unit_D) / state.norms
        best = candidates[np.argsort(-cosines[candidates], kind="stable")[:k]]
        items = tuple(self._scored(state, int(found), float(cosines[found])) for found in best)
        return Answer(items, (), None, len(candidates))

    def search(self, text: str, limit: int = 20, *, filters: Filters | None = None) -> list[Item]:
        """Items whose titles have all the words of `text` in any order; the last may be the beginning of a word.

        Case and accents do not matter. Titles that begin with `text` come first, then the most frequent items; an
        empty text finds all.
        """
        state = self._state
        passing = None if filters is None else state.catalogue.mask(filters)
        return [state.catalogue.item(row) for row in state.search.find(text, limit, passing)]

    def item(self, item_id: str) -> Item | None:
        """An item, if the catalogue has it."""
        catalogue = self._state.catalogue
        row = catalogue.index.get(item_id)
        return catalogue.item(row) if row is not None and catalogue.present[row] else None

    # ---- changes ------------------------------------------------------------------------------------------------
    def add_items(self, items: Sequence[NewItem]) -> AddedReport:
        """Adds items: their rows are made from their texts. They can be recommended and stand in histories at once.

        Of an item that is there already, even if it had been removed, only what is given changes: a title of None and
        fields that are not named stay, a field of None and an empty title are cleared. A trained item keeps its trained
        row and needs no text. The row of any other is made anew where something is given that it is made from.

        Raises:
            DataError: an item is wrong, or has no text; names it. Nothing is added then.
            RunError: the export cannot place new items.
        """
        # One change at a time, of both models: their tables have the same rows, and what an item keeps is what it has.
        models = [model for model in (self, self.before) if model is not None]
        with self._lock:
            catalogue = self._state.catalogue
            check_items(items, catalogue)
            whole = [catalogue.completed(item) for item in items]
            placed = [place for place, item in enumerate(items) if self._must_place(catalogue, item)]
            vectors_NT = np.zeros((0, 0), dtype=np.float32)
            if placed:
                if self._new_items is None:
                    raise RunError(
                        f"item {items[placed[0]].item_id!r} is new, and {self._info.name} cannot place it: it was "
                        "exported without --new-items",
                        "Export the run again with --new-items; its catalogue needs texts.",
                    )
                vectors_NT = self._new_items.texts.vectors([whole[place] for place in placed])
            made = [model._made(whole, placed, vectors_NT) for model in models]
            reports = [model._add(whole, rows_ND) for model, rows_ND in zip(models, made, strict=True)]
        return reports[0]

    def _must_place(self, catalogue: Catalogue, item: NewItem) -> bool:
        """Whether an item's row is to be made: it has none, or one that was made of what is now given anew."""
        if item.item_id not in catalogue.index:
            return True
        if catalogue.is_trained(item.item_id):
            return False
        read = () if self._new_items is None else self._new_items.texts.fields
        given = {*item.fields, *(() if item.title is None else ("title",))}
        return item.vector is not None or item.text is not None or not given.isdisjoint(read)

    def _made(self, items: Sequence[NewItem], placed: list[int], vectors_NT: Floats) -> Floats:
        """The rows of items, [N, d]: made from text vectors, or those they have.

        Raises:
            DataError: a row is not finite, which would spoil every answer; names the item.
        """
        rows_ND = np.empty((len(items), self._info.dim), dtype=np.float32)
        if self._new_items is not None and placed:
            rows_ND[placed] = with_one(vectors_NT) @ self._new_items.text_map
        state = self._state
        for place in set(range(len(items))).difference(placed):
            rows_ND[place] = state.table_ID[state.catalogue.index[items[place].item_id]]
        wrong = np.flatnonzero(~np.isfinite(rows_ND).all(axis=1))
        if len(wrong):
            raise DataError(
                f"item {items[wrong[0]].item_id!r}: the row made from its vector is not finite",
                "Export the run again: its text_map.npy holds numbers that are too large.",
            )
        return rows_ND

    def _add(self, items: Sequence[NewItem], rows_ND: Floats) -> AddedReport:
        state = self._state
        catalogue = state.catalogue
        replaced = [item.item_id for item in items if self.item(item.item_id) is not None]
        rows = catalogue.rows_for(items, self._loaded)
        larger = catalogue.with_items(items, rows)
        table_ID = np.empty((len(larger), self._info.dim), dtype=np.float32)
        table_ID[: len(catalogue)] = state.table_ID
        table_ID[rows] = rows_ND
        self._state = replace(state, catalogue=larger, table_ID=table_ID)
        gone = set(replaced)
        return AddedReport(tuple(item.item_id for item in items if item.item_id not in gone), tuple(replaced))

    def remove_items(self, item_ids: Collection[str]) -> RemovedReport:
        """Removes items: they are not recommended or found any more, but are still understood in histories."""
        with self._lock:
            report = self._remove(item_ids)
            if self.before is not None:
                self.before._remove(item_ids)
        return report

    def _remove(self, item_ids: Collection[str]) -> RemovedReport:
        catalogue = self._state.catalogue
        distinct = dict.fromkeys(identifiers("list of items", item_ids))
        present = [item_id for item_id in distinct if self.item(item_id) is not None]
        smaller = catalogue.without([catalogue.index[item_id] for item_id in present])
        self._state = replace(self._state, catalogue=smaller)
        gone = set(present)
        return RemovedReport(tuple(present), tuple(item_id for item_id in distinct if item_id not in gone))

    # ---- plan ---------------------------------------------------------------------------------------------------
    def _plan(self, state: _State, request: Request) -> _Plan:
        _check(request)
        catalogue = state.catalogue
        history, unknown = catalogue.rows(identifiers("history", request.history, ordered=True))
        passing = None
        if request.filters is not None:
            passing = catalogue.mask(request.filters)
        if request.popular_in and not history:
            inside = catalogue.mask(Filters(any_of=request.popular_in))
            passing = inside if passing is None else passing & inside
        gone = set(catalogue.rows(identifiers("list exclude", () if request.exclude is None else request.exclude))[0])
        if (request.seen or self._info.seen) == "remove":
            gone.update(history)
        banned = np.fromiter(gone, dtype=np.int64, count=len(gone))
        if passing is None:
            # Rows that were removed are few and must not come either.
            considered = catalogue.size - int(catalogue.present[banned].sum())
            banned = np.concatenate([banned, catalogue.absent]) if len(catalogue.absent) else banned
        else:
            considered = int(passing.sum()) - int(passing[banned].sum())
        return _Plan(request, history, unknown, passing, banned, considered)

    # ---- encode -------------------------------------------------------------------------------------------------
    def _states(self, state: _State, plans: Sequence[_Plan]) -> list[Floats | None]:
        """The state of each request's history; None where no item of it is known."""
        known = [place for place, plan in enumerate(plans) if plan.history]
        windows = [plans[place].history[-self._info.max_length :] for place in known]
        states: list[Floats | None] = [None] * len(plans)
        for place, state_D in zip(known, encode(self._encoder, windows, state.table_ID), strict=True):
            states[place] = state_D
        return states

    # ---- rank ---------------------------------------------------------------------------------------------------
    def _rank(self, state: _State, plans: Sequence[_Plan], states: Sequence[Floats | None]) -> list[Ranked]:
        ranked: list[Ranked | None] = [None] * len(plans)
        together: list[int] = []
        for place, (plan, state_D) in enumerate(zip(plans, states, strict=True)):
            if state_D is None:
                ranked[place] = _popular(state.catalogue, plan)
            elif state.index is not None:
                ranked[place] = _indexed(state, state.index, plan, state_D)
            elif plan.passing is not None:
                ranked[place] = _exactly(state, plan, state_D)
            else:
                together.append(place)
        if together:
            states_BD = np.stack([vector for place in together if (vector := states[place]) is not None])
            most = max(plans[place].wanted for place in together)
            banned = [plans[place].banned for place in together]
            for place, rows, scores in zip(together, *exact_top(states_BD, state.table_ID, most, banned), strict=True):
                ranked[place] = Ranked(rows[: plans[place].wanted], scores[: plans[place].wanted])
        return [
            _diversified(state, plan.request, found)
            for plan, found in zip(plans, ranked, strict=True)
            if found is not None
        ]

    # ---- answer -------------------------------------------------------------------------------------------------
    def _answer(self, state: _State, plan: _Plan, state_D: Floats | None, found: Ranked) -> Answer:
        reasons: list[tuple[Because, ...]] | None = None
        if plan.request.explain:
            reasons = self._reasons(state, plan, state_D, found)
        items = tuple(
            self._scored(state, row, score, reasons[place] if reasons is not None else None)
            for place, (row, score) in enumerate(zip(found.rows.tolist(), found.scores.tolist(), strict=True))
        )
        return Answer(items, tuple(plan.unknown), "popular" if found.popular else None, plan.considered)

    def _scored(self, state: _State, row: int, score: float, because: tuple[Because, ...] | None = None) -> Scored:
        catalogue = state.catalogue
        return Scored(catalogue.ids[row], catalogue.title(row), score, catalogue.values(row), because)

    def _reasons(self, state: _State, plan: _Plan, state_D: Floats | None, found: Ranked) -> list[tuple[Because, ...]]:
        """For each recommended item the items of the history that moved its score most.

        An item's effect is what the score, beside the mean score of the catalogue, loses when the item is left out of
        the history; all such histories are encoded together. Without its only item a history has no state, and the
        whole score is the item's effect.
        """
        if state_D is None:
            return [()] * len(found.rows)
        read = plan.history[-self._info.max_length :]
        distinct = list(dict.fromkeys(read))
        without = [[row for row in plan.history if row != left_out] for left_out in distinct]
        states_ND = np.zeros((len(distinct), len(state_D)), dtype=np.float32)
        real = [place for place, history in enumerate(without) if history]
        windows = [without[place][-self._info.max_length :] for place in real]
        states_ND[real] = encode(self._encoder, windows, state.table_ID)
        effects_NK = (state_D - states_ND) @ (state.table_ID[found.rows] - state.mean_D).T
        strongest_KN = np.argsort(-np.abs(effects_NK.T), axis=1, kind="stable")[:, :REASONS]
        names = state.catalogue
        return [
            tuple(
                Because(names.ids[distinct[n]], names.title(distinct[n]), float(effects_NK[n, place]))
                for n in chosen.tolist()
            )
            for place, chosen in enumerate(strongest_KN)
        ]


def _reloaded(reload: _Reload) -> Engine:
    """An engine in the process that it was sent to.

    Raises:
        RunError: its folder is not there, or holds another export by now.
    """
    folder = Path(reload.folder)
    if not folder.is_dir():
        raise RunError(
            f"an engine came from another process, and its export {folder} is not there on this machine",
            "Copy the export there under the same path, or call Engine.load(FOLDER) in each process.",
        )
    engine = Engine.load(folder, threads=reload.threads, index=reload.index, index_above=reload.index_above)
    if engine._source is None or engine._source.head["files"] != reload.files:
        raise RunError(
            f"{folder} holds another export than when the engine was loaded that came from another process",
            "Load it anew in both: Engine.load(FOLDER).",
        )
    found = engine.before if reload.before else engine
    assert found is not None  # an export of the same files holds the same models
    return found


def _check(request: Request) -> None:
    if isinstance(request.k, bool) or not isinstance(request.k, int | np.integer):
        raise DataError(f"k is {request.k!r}, which is no whole number", "Ask for at least 1 item.")
    if request.k < 1:
        raise DataError(f"k is {request.k}", "Ask for at least 1 item.")
    if request.seen not in ("remove", "keep", None):
        raise DataError(f"seen is {request.seen!r}", "Choose 'remove' or 'keep'.")
    if not isinstance(request.diversity, int | float | np.number) or not 0 <= request.diversity <= 1:
        raise DataError(f"diversity is {request.diversity!r}", "Choose a number from 0 (none) to 1.")


def _exactly(state: _State, plan: _Plan, state_D: Floats) -> Ranked:
    """The best of what may come."""
    return Ranked(*exact_among(state_D, state.table_ID, plan.wanted, plan.candidates(state.catalogue)))


def _indexed(state: _State, index: ApproximateIndex, plan: _Plan, state_D: Floats) -> Ranked:
    """The best of what may come, by way of the index: so many candidates that enough should pass, then all if not."""
    share = max(1, plan.considered) / len(state.table_ID)
    # Rows that were removed are banned too, unless a filter leaves them out, but `share` has them already.
    removed = len(state.catalogue.absent) if plan.passing is None else 0
    fetched = int(MARGIN * (plan.wanted + len(plan.banned) - removed) / share)
    if plan.considered <= FEW or fetched > MOST_FETCHED * len(index):
        return _exactly(state, plan, state_D)
    found = index.candidates(state_D[None], fetched)[0]
    rows = np.concatenate([found, np.arange(len(index), len(state.table_ID))])
    mask = state.catalogue.present if plan.passing is None else plan.passing
    rows = np.setdiff1d(rows[mask[rows]], plan.banned)
    if len(rows) < min(plan.wanted, plan.considered):
        return _exactly(state, plan, state_D)
    return Ranked(*exact_among(state_D, state.table_ID, plan.wanted, rows))


def _popular(catalogue: Catalogue, plan: _Plan) -> Ranked:
    """The most frequent rows that may come, scored by their count."""
    mask = catalogue.present if plan.passing is None else plan.passing
    order = catalogue.by_count[mask[catalogue.by_count]]
    rows = order[~np.isin(order, plan.banned)][: plan.wanted]
    return Ranked(rows, catalogue.counts[rows].astype(np.float32), popular=True)


def _diversified(state: _State, request: Request, found: Ranked) -> Ranked:
    if request.diversity == 0 or len(found.rows) == 0:
        return found
    chosen = mmr.most_marginal(found.scores, state.table_ID[found.rows], request.k, request.diversity)
    return Ranked(found.rows[chosen], found.scores[chosen], found.popular)
