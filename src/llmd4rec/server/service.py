"""The service behind the routes: one recommender, its batches, and changes to it.

A batch reads the recommender once, so every answer comes from one export as a whole. When another export has been
loaded, the next batch uses it; the old one is released after its last batch. No request waits for that or is lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from llmd4rec.errors import LLMD4RecError, RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import AddedReport, Answer, Event, NewItem, RemovedReport, Request
from llmd4rec.server.batching import Batcher
from llmd4rec.server.description import describe
from llmd4rec.server.errors import ApiError
from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import Metrics, freeze_loaded_objects
from llmd4rec.server.schema import ModelName, ModelOut
from llmd4rec.server.settings import ServiceSettings
from llmd4rec.server.trial import Trial, ask_once, limited

T = TypeVar("T")

#: What the names of the service's threads begin with.
THREADS = ("answers", "reasons", "look-ups", "changes")


@dataclass(frozen=True, slots=True)
class Question:
    """A request and which model is to answer it."""

    model: ModelName
    request: Request


@dataclass(frozen=True, slots=True)
class Served:
    """A recommender, with what every answer needs from it.

    Attributes:
        fingerprint: of its export.
        default_fields: the fields of an item that are returned where a request does not name any: all but long texts.
        revision: `0`, or how many changes were made to it since it was loaded, and a hash of them.
    """

    recommender: Recommender
    fingerprint: str
    default_fields: tuple[str, ...]
    revision: str = "0"

    @classmethod
    def of(cls, recommender: Recommender) -> Served:
        """Prepares a recommender for serving."""
        info = recommender.info
        return cls(recommender, info.fingerprint, tuple(name for name, kind in info.fields.items() if kind != "text"))

    def changed(self, change: object) -> Served:
        """The same after a change, which only its text counts of: services that were sent the same agree."""
        count = int(self.revision.partition("-")[0]) + 1
        digest = hashlib.sha256(f"{self.revision} {change!r}".encode(errors="surrogatepass")).hexdigest()
        return replace(self, revision=f"{count}-{digest[:12]}")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and the recommender it came from."""

    answer: Answer
    served: Served


class Service:
    """One recommender behind a queue.

    Args:
        recommender: the recommender that is served first.
        settings: limits and permissions.
        metrics, log: where events are counted and logged.
        load: loads another recommender from a folder, with the same options as the first one.
    """

    def __init__(
        self,
        recommender: Recommender,
        settings: ServiceSettings,
        metrics: Metrics,
        log: Log,
        load: Callable[[Path], Recommender] = Recommender.load,
    ) -> None:
        self.served = Served.of(recommender)
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self._log = log
        self._load = load
        self._changing = asyncio.Lock()
        # Answers, look-ups and changes run in threads of their own: no part of a recommender is changed in place.
        self._compute, self._reasons, self._look, self._change = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in THREADS
        )
        batch = settings.micro_batch
        self._batcher: Batcher[Question, Reply] = Batcher(
            self._answer, max_batch=batch, max_queue=settings.queue, metrics=metrics, pool=self._compute
        )
        # Reasons cost up to as many answers as a history has items: nobody who does not ask for them waits for them.
        self._explainer: Batcher[Question, Reply] = Batcher(
            self._answer, max_batch=batch, max_queue=settings.reasons_queue, metrics=metrics, pool=self._reasons
        )
        metrics.waiting.set_function(lambda: self._batcher.waiting + self._explainer.waiting)
        self._trial = Trial(settings.change_timeout / 2, max(1.0, settings.timeout))
        self._described: tuple[Catalogue, ModelOut] | None = None
        self._report_served()

    @property
    def recommender(self) -> Recommender:
        """The recommender that is served now."""
        return self.served.recommender

    # ---- answers ------------------------------------------------------------------------------------------------
    def ask(self, model: ModelName, request: Request) -> asyncio.Future[Reply]:
        """The future answer to a request.

        Raises:
            ApiError: there is no such model (404), or the queue is full (503).
        """
        return self.ask_all([(model, request)])[0]

    def ask_all(self, asked: Sequence[tuple[ModelName, Request]]) -> list[asyncio.Future[Reply]]:
        """The future answers to some requests; all are taken or none.

        Raises:
            ApiError: there is no such model (404), or the queue is full (503).
        """
        if self.recommender.undistilled is None and any(model == "undistilled" for model, _ in asked):
            raise ApiError(
                404,
                "model_not_found",
                "this export does not have the undistilled model",
                field="model",
                remedy="Use the model `served`, or export the run with --both.",
            )
        # Reasons need one more encoding for each item of the history.
        max_length = self.recommender.info.max_length
        weights = [1 + (min(len(request.history), max_length) if request.explain else 0) for _, request in asked]
        questions = [Question(model, request) for model, request in asked]
        # A batch request in which anything asks for reasons is in their lane as a whole.
        lane = self._explainer if any(request.explain for _, request in asked) else self._batcher
        return lane.ask_all(questions, weights)

    def _answer(self, questions: list[Question]) -> list[Reply | Exception]:
        """Answers a batch. Runs in a thread."""
        served = self.served
        missing = ApiError(404, "model_not_found", "the export that is served now has one model only", field="model")
        replies: list[Reply | Exception] = [missing] * len(questions)
        for model, recommender in (("served", served.recommender), ("undistilled", served.recommender.undistilled)):
            places = [place for place, question in enumerate(questions) if question.model == model]
            if not places or recommender is None:
                continue
            answers = _each(recommender, [questions[place].request for place in places])
            for place, answer in zip(places, answers, strict=True):
                replies[place] = Reply(answer, served) if isinstance(answer, Answer) else answer
        return replies

    def count(self, answer: Answer, history: int) -> None:
        """Counts an answer to a history of `history` items."""
        metrics = self.metrics
        metrics.histories.inc()
        if history:
            metrics.items.inc(history)
        if answer.unknown:
            metrics.unknown.inc(len(answer.unknown))
        if answer.fallback:
            metrics.fallback.inc()
        if not answer.items:
            metrics.empty.inc()

    async def look(self, work: Callable[[Served], T]) -> T:
        """Runs a look-up in what is served, in a thread beside the batches."""
        return await asyncio.get_running_loop().run_in_executor(self._look, work, self.served)

    def description(self, recommender: Recommender) -> ModelOut:
        """What is served; computed once for each version of a catalogue. Do not call it in the event loop."""
        catalogue = recommender.catalogue
        if self._described is None or self._described[0] is not catalogue:
            self._described = catalogue, describe(recommender)
        return self._described[1]

    # ---- changes ------------------------------------------------------------------------------------------------
    def require_changes(self) -> None:
        """Refuses changes where they are not allowed.

        Raises:
            ApiError: changes are off (403).
        """
        if not self.settings.changes_allowed:
            raise ApiError(
                403,
                "changes_disabled",
                "changes are disabled: the service has no API key",
                remedy="Start it with LLMD4REC_API_KEY or --api-keys FILE; on your own machine, with --allow-changes.",
            )

    async def add(self, items: Sequence[NewItem]) -> AddedReport:
        """Adds items to the served recommender."""
        return await self._changed(lambda recommender: recommender.add_items(items), ("add", items))

    async def remove(self, ids: Sequence[str]) -> RemovedReport:
        """Removes items from the served recommender."""
        return await self._changed(lambda recommender: recommender.remove_items(ids), ("remove", ids))

    async def observe(self, events: Sequence[Event]) -> None:
        """Counts events into the memory of the served recommender."""
        await self._changed(lambda recommender: recommender.observe_many(events), ("observe", events))
        self.metrics.events.inc(len(events))

    async def _changed(self, work: Callable[[Recommender], T], change: tuple[str, object]) -> T:
        # Shielded: the change is completed and reported even if the client disconnects.
        return await asyncio.shield(asyncio.ensure_future(self._change_in_turn(work, change)))

    async def _change_in_turn(self, work: Callable[[Recommender], T], change: tuple[str, object]) -> T:
        async with self._changing:
            report, self.served = await self._in_change_thread(
                lambda: (work(self.recommender), self.served.changed(change))
            )
            self._report_served(log=change[0] != "observe")  # of which there may be many
        return report

    async def _in_change_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._change, work)

    def available(self) -> list[str]:
        """Names of the exports that can be loaded."""
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
        """Serves another export from now on; if it cannot be loaded, the present one stays.

        Raises:
            ApiError: loading is disabled (403), there is no such export (404), another change is in progress (409), or
                the export is damaged (422).
        """
        if self.settings.models is None:
            raise ApiError(
                403,
                "swap_disabled",
                "loading other exports is disabled",
                remedy="Start the service with --models FOLDER.",
            )
        # Only a name from the listing ever becomes a path.
        if name not in self.available():
            raise ApiError(
                404, "export_not_found", "there is no such export", field="name", remedy="GET /v1/models lists them."
            )
        if self._changing.locked():
            raise ApiError(
                409,
                "change_in_progress",
                "another change is in progress",
                remedy="Try again when it is done.",
                retry_after=5,
            )
        # Shielded: it is completed, and the lock freed, even if the client disconnects.
        await asyncio.shield(asyncio.ensure_future(self._swapped(self.settings.models / name)))

    async def _swapped(self, folder: Path) -> None:
        async with self._changing:
            try:
                recommender = await self._in_change_thread(lambda: self._tried_and_loaded(folder))
            except Exception as error:
                self.metrics.swaps.labels("failed").inc()
                self._log.write("swap failed", "error", export=folder.name, type=type(error).__name__)
                if not isinstance(error, LLMD4RecError):
                    raise
                what, remedy = (text.replace(str(folder), folder.name) for text in (error.what, error.remedy))
                raise ApiError(422, "invalid_export", what, field="name", remedy=remedy) from error
            self.served = Served.of(recommender)
            self.metrics.swaps.labels("done").inc()
            self._report_served()

    def _tried_and_loaded(self, folder: Path) -> Recommender:
        """Another export, which a process of its own has loaded and asked before. Runs in a thread."""
        fingerprint = self._trial.run(folder)
        recommender = self._load(folder)
        if recommender.info.fingerprint != fingerprint:
            raise RunError(f"{folder} was changed while it was loaded", "Load it again when it is written.")
        ask_once(recommender, texts=True)
        freeze_loaded_objects()
        return recommender

    def _report_served(self, log: bool = True) -> None:
        info, revision = self.recommender.info, self.served.revision
        self.metrics.serves(info.name, info.stage, info.fingerprint, info.items, int(revision.partition("-")[0]))
        if not log:
            return
        self._log.write(
            "serving",
            export=info.name,
            stage=info.stage,
            fingerprint=info.fingerprint,
            revision=revision,
            items=info.items,
            dim=info.dim,
        )

    def close(self) -> None:
        """Ends the threads."""
        self._trial.stop()
        for pool in (self._compute, self._reasons, self._look, self._change):
            pool.shutdown(wait=False, cancel_futures=True)


def _each(recommender: Recommender, requests: list[Request]) -> Sequence[Answer | Exception]:
    """All answers together; if a request is wrong, each by itself, so that only that one fails."""
    try:
        return recommender.recommend_many(requests)
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [answer for request in requests for answer in _each(recommender, [request])]


def load_warm(load: Callable[[Path], Recommender], folder: Path, settings: ServiceSettings) -> Recommender:
    """Loads the recommender that is served first, and asks it once; ends the process where that takes too long.

    Raises:
        LLMD4RecError: the folder is not a valid export, or cannot be served.
    """

    def refuse(error: LLMD4RecError) -> None:
        print(f"error: {error}", file=sys.stderr, flush=True)

    recommender = load(folder)
    with limited(recommender.info.name, max(1.0, settings.timeout), refuse) as at:
        ask_once(recommender, at, texts=settings.changes_allowed)
    freeze_loaded_objects()
    return recommender
