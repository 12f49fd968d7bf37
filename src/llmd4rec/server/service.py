"""What is served at this moment: one export, its batches, and the change to another export.

A batch reads once which engine is served, so every answer comes from one export as a whole. When another one has been
loaded, the next batch takes it; the old one goes when its last batch is done. No request waits for that or is lost.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from llmd4rec.errors import LLMD4RecError
from llmd4rec.inference.catalogue import PATH, Catalogue, Field, Mask
from llmd4rec.inference.engine import Engine
from llmd4rec.inference.types import AddedReport, Answer, NewItem, RemovedReport, Request
from llmd4rec.server.batching import Batcher
from llmd4rec.server.errors import ApiError
from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import Metrics, settle
from llmd4rec.server.schema import Facet, ModelOut, Which
from llmd4rec.server.settings import ServiceSettings

T = TypeVar("T")
#: Most values of a category that are offered for filtering.
FACET_VALUES = 200


@dataclass(frozen=True, slots=True)
class Question:
    """A request and which model is to answer it."""

    which: Which
    request: Request


@dataclass(frozen=True, slots=True)
class Served:
    """An engine, and what every answer needs to know of it.

    Attributes:
        digest: of its export.
        short: fields whose values are short enough to come unasked.
    """

    engine: Engine
    digest: str
    short: tuple[str, ...]

    @classmethod
    def of(cls, engine: Engine) -> Served:
        """An engine to be served."""
        info = engine.info
        return cls(engine, info.fingerprint, tuple(name for name, kind in info.fields.items() if kind != "text"))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and what it came from."""

    answer: Answer
    served: Served


class Service:
    """One engine behind a queue.

    Args:
        engine: what is served first.
        settings: limits.
        metrics, log: where what happens is counted and written down.
        load: makes an engine of a folder, as the first one was made.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServiceSettings,
        metrics: Metrics,
        log: Log,
        load: Callable[[Path], Engine] = Engine.load,
    ) -> None:
        self.served = Served.of(engine)
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self._log = log
        self._load = load
        self._changing = asyncio.Lock()
        # Answers, look-ups and changes do not wait for each other; an engine's parts are never changed in place.
        self._compute, self._look, self._change = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("answers", "look-ups", "changes")
        )
        self._batcher: Batcher[Question, Reply] = Batcher(
            self._answer, most=settings.micro_batch, queue=settings.queue, metrics=metrics, pool=self._compute
        )
        self._described: tuple[Catalogue, ModelOut] | None = None
        self._say_what_is_served()

    @property
    def engine(self) -> Engine:
        """The engine that answers now."""
        return self.served.engine

    # ---- answers ------------------------------------------------------------------------------------------------
    def ask(self, which: Which, request: Request) -> asyncio.Future[Reply]:
        """The answer to come.

        Raises:
            ApiError: there is no such model (404), or too much waits already (503).
        """
        return self.ask_all([(which, request)])[0]

    def ask_all(self, asked: Sequence[tuple[Which, Request]]) -> list[asyncio.Future[Reply]]:
        """The answers to come, to all that is asked or to nothing of it.

        Raises:
            ApiError: there is no such model (404), or too much waits already (503).
        """
        if self.engine.before is None and any(which == "before" for which, _ in asked):
            raise ApiError(
                404,
                "no_model",
                "this export does not carry the network before distillation",
                field="model",
                remedy="Ask the model `served`, or export the run with --both.",
            )
        # Reasons take one more encoding for each item of the history.
        most = self.engine.info.max_length
        weights = [1 + (min(len(request.history), most) if request.explain else 0) for _, request in asked]
        return self._batcher.ask_all([Question(which, request) for which, request in asked], weights)

    def _answer(self, questions: list[Question]) -> list[Reply | Exception]:
        """Answers a batch. Runs in a thread."""
        served = self.served
        replies: list[Reply | Exception] = [ApiError(404, "no_model", "the export has changed", field="model")] * len(
            questions
        )
        for which, engine in (("served", served.engine), ("before", served.engine.before)):
            places = [place for place, question in enumerate(questions) if question.which == which]
            if not places or engine is None:
                continue
            answers = _each(engine, [questions[place].request for place in places])
            for place, answer in zip(places, answers, strict=True):
                replies[place] = Reply(answer, served) if isinstance(answer, Answer) else answer
        return replies

    def count(self, answer: Answer, history: int) -> None:
        """Counts an answer to a history of so many items."""
        metrics = self.metrics
        metrics.histories.inc()
        if history:
            metrics.items.inc(history)
        if answer.unknown:
            metrics.unknown.inc(len(answer.unknown))
        if answer.fallback:
            metrics.cold.inc()
        if not answer.items:
            metrics.empty.inc()

    async def look(self, work: Callable[[Served], T]) -> T:
        """Runs a look-up in what is served, beside the batches."""
        return await asyncio.get_running_loop().run_in_executor(self._look, work, self.served)

    def description(self, engine: Engine) -> ModelOut:
        """What an engine serves; made once for each state of its catalogue. Not for the event loop."""
        catalogue = engine.catalogue
        if self._described is None or self._described[0] is not catalogue:
            self._described = catalogue, describe(engine)
        return self._described[1]

    # ---- changes ------------------------------------------------------------------------------------------------
    def require_changes(self) -> None:
        """Refuses changes where they have not been allowed.

        Raises:
            ApiError: changes are off (403).
        """
        if not self.settings.may_change:
            raise ApiError(
                403,
                "read_only",
                "changes are off: the service has no API key",
                remedy="Start it with LLMD4REC_API_KEY set, or --api-keys FILE; for you alone, --allow-changes.",
            )

    async def add(self, items: Sequence[NewItem]) -> AddedReport:
        """Adds items to the served engine."""
        return await self._changed(lambda engine: engine.add_items(items))

    async def remove(self, ids: Sequence[str]) -> RemovedReport:
        """Removes items from the served engine."""
        return await self._changed(lambda engine: engine.remove_items(ids))

    async def _changed(self, work: Callable[[Engine], T]) -> T:
        async with self._changing:
            # Shielded: a client that gives up does not leave a change half counted.
            report = await asyncio.shield(self._in_change_thread(lambda: work(self.engine)))
            self._say_what_is_served()
        return report

    async def _in_change_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._change, work)

    def available(self) -> list[str]:
        """Names of the exports that may be loaded."""
        if self.settings.models is None:
            return []
        try:
            return sorted(
                folder.name
                for folder in self.settings.models.iterdir()
                if not folder.name.startswith(".") and (folder / "export.json").is_file()
            )
        except OSError:
            return []

    async def swap(self, name: str) -> None:
        """Serves another export from now on; the one served so far stays if that one cannot be loaded.

        Raises:
            ApiError: loading is off (403), no such export (404), another change runs (409), it is damaged (422).
        """
        if self.settings.models is None:
            raise ApiError(
                403, "no_models", "loading other exports is off", remedy="Start the service with --models FOLDER."
            )
        # Only a name out of the listing ever becomes a path.
        if name not in self.available():
            raise ApiError(
                404, "no_export", "there is no such export", field="name", remedy="GET /v1/models lists them."
            )
        if self._changing.locked():
            raise ApiError(
                409, "busy", "another change is under way", remedy="Try again when it is done.", retry_after=5
            )
        folder = self.settings.models / name
        async with self._changing:
            try:
                engine = await asyncio.shield(self._in_change_thread(lambda: load_ready(self._load, folder)))
            except LLMD4RecError as error:
                self.metrics.swaps.labels("failed").inc()
                self._log.write("swap failed", "error", export=name)
                what, remedy = (text.replace(str(folder), name) for text in (error.what, error.remedy))
                raise ApiError(422, "damaged_export", what, field="name", remedy=remedy) from error
            self.served = Served.of(engine)
            self.metrics.swaps.labels("done").inc()
            self._say_what_is_served()

    def _say_what_is_served(self) -> None:
        info = self.engine.info
        self.metrics.serves(info.name, info.stage, info.fingerprint, info.items)
        self._log.write(
            "serving", export=info.name, stage=info.stage, digest=info.fingerprint, items=info.items, dim=info.dim
        )

    def close(self) -> None:
        """Ends the threads."""
        for pool in (self._compute, self._look, self._change):
            pool.shutdown(wait=False, cancel_futures=True)


def _each(engine: Engine, requests: list[Request]) -> Sequence[Answer | Exception]:
    """All answers at once; where one request is wrong, each on its own, so that only that one fails."""
    try:
        return engine.recommend_many(requests)
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [answer for request in requests for answer in _each(engine, [request])]


def load_ready(load: Callable[[Path], Engine], folder: Path) -> Engine:
    """An engine whose first answer will not be slow: graphs and word lists have been used once.

    Raises:
        LLMD4RecError: the folder is no sound export.
    """
    engine = load(folder)
    first = engine.search("", 1)
    for one in (engine, engine.before):
        if one is not None:
            one.recommend_many([Request([item.item_id for item in first])])
    settle()
    return engine


def describe(engine: Engine) -> ModelOut:
    """What is served, for people and for filters. Walks over the catalogue."""
    info = engine.info
    return ModelOut(
        name=info.name,
        network=info.model,
        stage=info.stage,
        digest=info.fingerprint,
        items=info.items,
        dim=info.dim,
        max_length=info.max_length,
        seen=info.seen,
        validation_ndcg=info.validation,
        before=engine.before is not None,
        can_add=info.can_add,
        fields=[_facet(field, engine.catalogue.present) for field in engine.catalogue.fields.values()],
    )


def _facet(field: Field, present: Mask) -> Facet:
    known = [field.values[row] for row in np.flatnonzero(present) if field.values[row] is not None]
    if field.kind == "number":
        return Facet(name=field.name, kind="number", min=min(known, default=None), max=max(known, default=None))
    if field.kind == "text":
        return Facet(name=field.name, kind="text")
    counts: Counter[str] = Counter()
    for value, count in Counter(known).items():
        for part in field.parts(value) if field.written else [value]:
            steps = part.split(PATH)
            for end in range(1, len(steps) + 1):
                counts[PATH.join(steps[:end])] += count
    best = [value for value, count in counts.most_common(FACET_VALUES) if count < len(known) or len(counts) == 1]
    return Facet(name=field.name, kind="category", values=sorted(best, key=str.casefold))
