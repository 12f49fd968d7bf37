"""Micro-batching: the requests that arrive while a batch is computed are the next batch.

No request waits for a batch to fill. An idle encoder takes a request at once, alone; under load the requests that
arrived in the meantime are answered together, and the longer a batch takes the larger the next one is. So latency is
that of a single request under low load, and throughput that of large batches under high load.

One thread computes. Its arithmetic runs outside Python's lock, so that requests are read and answered in the meantime.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmd4rec.server.errors import overloaded
from llmd4rec.server.metrics import Metrics

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(slots=True)
class _Waiting(Generic[Q, A]):
    question: Q
    weight: int
    future: asyncio.Future[A]


class Batcher(Generic[Q, A]):
    """Answers questions in batches.

    Args:
        answer: answers a batch, in its order; an exception in place of an answer concerns that question only.
        max_batch: the total weight at which a batch is full.
        max_queue: the total weight that may wait; beyond it questions are refused.
        pool: one thread.
    """

    def __init__(
        self,
        answer: Callable[[list[Q]], Sequence[A | Exception]],
        *,
        max_batch: int,
        max_queue: int,
        metrics: Metrics,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._answer = answer
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._metrics = metrics
        self._pool = pool
        self._waiting: deque[_Waiting[Q, A]] = deque()
        self._weight = 0
        self._busy = False

    @property
    def waiting(self) -> int:
        """The total weight that waits."""
        return self._weight

    def ask(self, question: Q, weight: int = 1) -> asyncio.Future[A]:
        """The future answer to a question.

        Args:
            question: what is asked.
            weight: its cost, relative to an ordinary question.

        Raises:
            ApiError: the queue is full (503).
        """
        return self.ask_all([question], [weight])[0]

    def ask_all(self, questions: Sequence[Q], weights: Sequence[int]) -> list[asyncio.Future[A]]:
        """The future answers to some questions; all are taken or none.

        Only what waits already counts against the limit, so that an idle encoder takes any permitted batch.

        Raises:
            ApiError: the queue is full (503).
        """
        if self._weight >= self._max_queue:
            raise overloaded(f"{self._weight} histories are waiting already")
        loop = asyncio.get_running_loop()
        asked = [_Waiting(*one, loop.create_future()) for one in zip(questions, weights, strict=True)]
        self._waiting.extend(asked)
        self._weight += sum(weights)
        if asked and not self._busy:
            self._busy = True
            # Not at once, so that requests that arrive in the same moment are in the batch.
            loop.call_soon(self._start, loop)
        return [waiting.future for waiting in asked]

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        batch: list[_Waiting[Q, A]] = []
        weight = 0
        while self._waiting and (not batch or weight + self._waiting[0].weight <= self._max_batch):
            waiting = self._waiting.popleft()
            self._weight -= waiting.weight
            if not waiting.future.done():  # its client may have given up
                batch.append(waiting)
                weight += waiting.weight
        if not batch:
            self._busy = False
            return
        computed = self._pool.submit(self._compute, [waiting.question for waiting in batch])
        computed.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, loop, batch, done))

    def _compute(self, questions: list[Q]) -> tuple[Sequence[A | Exception], float]:
        started = time.perf_counter()
        answers = self._answer(questions)
        return answers, time.perf_counter() - started

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Waiting[Q, A]],
        done: Future[tuple[Sequence[A | Exception], float]],
    ) -> None:
        self._start(loop)  # first: the encoder goes on while answers are written
        error = done.exception()
        answers: Sequence[A | BaseException] = [error] * len(batch) if error else done.result()[0]
        if not error:
            self._metrics.batch.observe(len(batch))
            self._metrics.compute.observe(done.result()[1])
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.future.done():
                continue
            if isinstance(answer, BaseException):
                waiting.future.set_exception(answer)
            else:
                waiting.future.set_result(answer)
