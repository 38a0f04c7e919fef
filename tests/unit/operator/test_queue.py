"""The keyed queue."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from spinrun_operator import queue
from spinrun_operator.queue import Key, KeyedQueue, Retry

A, B = ("team", "a"), ("team", "b")


class FakeWork:
    """Work that a test lets begin and end."""

    def __init__(self) -> None:
        self.begun: list[Key] = []
        self.running: set[Key] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer: Callable[[Key], float | None] = lambda _: None
        self._news = asyncio.Event()

    async def __call__(self, key: Key) -> float | None:
        assert key not in self.running, "two workers on one key"
        self.begun.append(key)
        self.running.add(key)
        self._news.set()
        try:
            await self.gate.wait()
            return self.answer(key)
        finally:
            self.running.discard(key)

    async def until(self, count: int) -> None:
        """Waits until work has begun so often."""
        async with asyncio.timeout(5):
            while len(self.begun) < count:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def running(work: FakeWork, workers: int = 4) -> AsyncGenerator[KeyedQueue, None]:
    """A queue at work."""
    keyed = KeyedQueue(work, workers=workers)
    task = asyncio.create_task(keyed.run())
    try:
        yield keyed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_key_that_is_added_while_it_is_worked_on_is_worked_on_once_more() -> None:
    work = FakeWork()
    work.gate.clear()
    async with running(work) as keyed:
        keyed.add(A)
        await work.until(1)
        for _ in range(5):
            keyed.add(A)
        assert keyed.depth() == 1
        work.gate.set()
        await work.until(2)
        await asyncio.sleep(0.05)
        assert work.begun == [A, A]
        assert keyed.depth() == 0


async def test_keys_are_worked_on_side_by_side_up_to_the_number_of_workers() -> None:
    work = FakeWork()
    work.gate.clear()
    async with running(work, workers=2) as keyed:
        for name in "abc":
            keyed.add(("team", name))
        await work.until(2)
        await asyncio.sleep(0.05)
        assert len(work.running) == 2
        assert keyed.depth() == 3
        work.gate.set()
        await work.until(3)


async def test_earlier_wish_wins() -> None:
    work = FakeWork()
    async with running(work) as keyed:
        keyed.add(A, 3600)
        keyed.add(A, 0)
        await work.until(1)
        keyed.add(B, 0.01)
        keyed.add(B, 3600)
        await work.until(2)


async def test_work_is_repeated_when_it_asks_for_it() -> None:
    work = FakeWork()
    work.answer = lambda _: 0.01 if len(work.begun) < 3 else None
    async with running(work) as keyed:
        keyed.add(A)
        await work.until(3)
        await asyncio.sleep(0.05)
        assert len(work.begun) == 3


@pytest.mark.parametrize("error", [Retry("conflict"), RuntimeError("bug")])
async def test_failed_work_is_repeated_more_and_more_slowly(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "FIRST_RETRY_SECONDS", 0.02)
    times: list[float] = []

    def fail(_: Key) -> float | None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 5:
            raise error
        return None

    work = FakeWork()
    work.answer = fail
    async with running(work) as keyed:
        keyed.add(A)
        await work.until(5)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(wait >= 0.02 * 2**number for number, wait in enumerate(waits))


async def test_failure_of_one_key_does_not_hold_up_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "FIRST_RETRY_SECONDS", 3600)

    def fail(key: Key) -> float | None:
        if key == A:
            raise RuntimeError("bug")
        return None

    work = FakeWork()
    work.answer = fail
    async with running(work) as keyed:
        keyed.add(A)
        keyed.add(B)
        await work.until(2)
        assert keyed.oldest_seconds() == 0


async def test_age_of_the_oldest_key_is_seen() -> None:
    work = FakeWork()
    work.gate.clear()
    async with running(work, workers=1) as keyed:
        keyed.add(A)
        await work.until(1)
        keyed.add(B)
        await asyncio.sleep(0.05)
        assert keyed.oldest_seconds() >= 0.05
        assert not keyed.is_idle()
