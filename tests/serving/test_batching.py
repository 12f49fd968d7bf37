"""Batches form from what waits while one is computed, and from nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmd4rec.server.batching import Batcher
from llmd4rec.server.errors import ApiError
from llmd4rec.server.metrics import Metrics


class Kitchen:
    """Doubles numbers; computes a batch only when it is let. `bad` ones fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Semaphore(0)

    def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.batches.append(numbers)
        assert self.free.acquire(timeout=10)
        if 13 in numbers:
            raise RuntimeError("the kitchen burns")
        return [ValueError("bad") if number < 0 else 2 * number for number in numbers]


def run(
    work: Callable[[Kitchen, Batcher[int, int]], Awaitable[None]], *, max_batch: int = 4, max_queue: int = 100
) -> Kitchen:
    kitchen = Kitchen()

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            await work(
                kitchen, Batcher(kitchen, max_batch=max_batch, max_queue=max_queue, metrics=Metrics(), pool=pool)
            )

    asyncio.run(asyncio.wait_for(main(), 20))
    return kitchen


async def begun(kitchen: Kitchen, batches: int) -> None:
    """Until so many batches have begun."""
    while len(kitchen.batches) < batches:
        await asyncio.sleep(0.001)


def test_one_alone_does_not_wait_and_the_rest_go_together() -> None:
    async def work(kitchen: Kitchen, batcher: Batcher[int, int]) -> None:
        first = batcher.ask(1)
        await begun(kitchen, 1)  # nobody else has come: it is computed all the same
        others = [batcher.ask(number) for number in (2, 3, 4)]
        await asyncio.sleep(0.05)
        assert kitchen.batches == [[1]]
        kitchen.free.release(2)
        assert await first == 2
        assert await asyncio.gather(*others) == [4, 6, 8]

    assert run(work).batches == [[1], [2, 3, 4]]


def test_what_comes_in_the_same_moment_goes_together() -> None:
    async def work(kitchen: Kitchen, batcher: Batcher[int, int]) -> None:
        kitchen.free.release(9)
        assert await asyncio.gather(*(batcher.ask(number) for number in range(6))) == [0, 2, 4, 6, 8, 10]

    assert run(work).batches == [[0, 1, 2, 3], [4, 5]]


def test_a_heavy_question_fills_a_batch_but_always_fits_one() -> None:
    async def work(kitchen: Kitchen, batcher: Batcher[int, int]) -> None:
        kitchen.free.release(9)
        futures = [batcher.ask(1), batcher.ask(2, weight=50), batcher.ask(3), batcher.ask(4, weight=3), batcher.ask(5)]
        assert await asyncio.gather(*futures) == [2, 4, 6, 8, 10]

    assert run(work).batches == [[1], [2], [3, 4], [5]]


def test_errors_reach_those_they_concern() -> None:
    async def work(kitchen: Kitchen, batcher: Batcher[int, int]) -> None:
        kitchen.free.release(9)
        good, bad = batcher.ask(1), batcher.ask(-1)
        assert await good == 2
        with pytest.raises(ValueError, match="bad"):
            await bad
        both = [batcher.ask(13), batcher.ask(2)]  # the whole batch fails
        for future in both:
            with pytest.raises(RuntimeError, match="burns"):
                await future
        assert await batcher.ask(5) == 10  # and the next one does not

    run(work)


def test_who_has_gone_is_not_cooked_for() -> None:
    async def work(kitchen: Kitchen, batcher: Batcher[int, int]) -> None:
        first = batcher.ask(1)
        await begun(kitchen, 1)
        gone, stays = batcher.ask(2), batcher.ask(3)
        gone.cancel()
        first.cancel()  # its batch is being computed: its answer goes nowhere, and harms nothing
        kitchen.free.release(9)
        assert await stays == 6

    assert run(work).batches == [[1], [3]]


def test_a_batch_heavier_than_the_queue_is_taken_whole_while_there_is_room() -> None:
    """A batch of the documented size, with reasons for long histories, weighs more than all that may wait."""

    async def work(kitchen: Kitchen, batcher: Batcher[int, int]) -> None:
        kitchen.free.release(20)
        assert await asyncio.gather(*batcher.ask_all([1, 2, 3], [6, 6, 6])) == [2, 4, 6]
        first = batcher.ask(4)
        heavy = batcher.ask_all([5, 6, 7], [6, 6, 6])
        with pytest.raises(ApiError) as refused:
            batcher.ask_all([8, 9], [1, 1])
        assert refused.value.status == 503
        assert await asyncio.gather(first, *heavy) == [8, 10, 12, 14]
        assert await batcher.ask(10) == 20

    assert not any({8, 9} & set(batch) for batch in run(work, max_queue=10).batches)


def test_a_full_queue_sends_away() -> None:
    async def work(kitchen: Kitchen, batcher: Batcher[int, int]) -> None:
        first = batcher.ask(1, weight=20)  # always room for one
        await begun(kitchen, 1)
        waiting = [batcher.ask(2, weight=6), batcher.ask(3, weight=4)]
        with pytest.raises(ApiError) as refused:
            batcher.ask(4)
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        kitchen.free.release(9)
        assert await first == 2
        assert await asyncio.gather(*waiting) == [4, 6]
        assert await batcher.ask(5) == 10

    run(work, max_queue=10)
