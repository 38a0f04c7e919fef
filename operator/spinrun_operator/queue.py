"""A queue of keys: one worker at a time for each, again later when asked for, and after failures more and more slowly."""

import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable

Key = tuple[str, str]
"""Namespace and name of a run."""

FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 60.0

logger = logging.getLogger(__name__)


class Retry(Exception):  # noqa: N818 - not an error: a request for another try
    """Raised by the work on a key: nothing is wrong, but it must be done again with what has changed meanwhile."""

    def __init__(self, why: str, delay: float | None = None) -> None:
        super().__init__(why)
        self.delay = delay
        """Seconds to wait; None: as after a failure."""


class KeyedQueue:
    """Calls `work` for every key that is added. `work` returns when to do it again even if nobody asks, or None."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], *, workers: int) -> None:
        self._work = work
        self._workers = workers
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._failures: dict[Key, int] = {}
        self._busy: set[Key] = set()
        self._changed = asyncio.Event()

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Asks for work on the key after a delay, or earlier when that was asked for before."""
        due = time.monotonic() + delay
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, next(self._order), key))
            self._changed.set()

    def forget(self, key: Key) -> None:
        """Forgets what is due for the key, and its failures."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    def depth(self) -> int:
        """Keys that are due or being worked on."""
        now = time.monotonic()
        return len(self._busy | {key for key, due in self._due.items() if due <= now})

    def oldest_seconds(self) -> float:
        """How long the key is due that is due for longest."""
        now = time.monotonic()
        return max((now - due for due in self._due.values() if due <= now), default=0.0)

    def is_idle(self) -> bool:
        """Whether nothing is due within the next second, and nobody works."""
        soon = time.monotonic() + 1.0
        return not self._busy and not any(due <= soon for due in self._due.values())

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                wait = self._start_due(tasks)
                # Not wait_for: before Python 3.12 it may swallow the cancellation that ends this loop.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()

    def _start_due(self, tasks: asyncio.TaskGroup) -> float | None:
        """Starts the work that is due, as far as there are workers; returns the seconds until more is due."""
        while self._heap and len(self._busy) < self._workers:
            due, _, key = self._heap[0]
            if self._due.get(key) != due or key in self._busy:
                # Outdated, or its turn comes when the work on it ends.
                heapq.heappop(self._heap)
                continue
            if (wait := due - time.monotonic()) > 0:
                return wait
            heapq.heappop(self._heap)
            del self._due[key]
            self._busy.add(key)
            tasks.create_task(self._run(key))
        return None

    async def _run(self, key: Key) -> None:
        try:
            again = await self._work(key)
            self._failures.pop(key, None)
        except Retry as retry:
            again = self._backoff(key) if retry.delay is None else min(retry.delay, LAST_RETRY_SECONDS)
            logger.debug("again in %.2f s: %s", again, retry, extra=_facts(key))
        except Exception:
            again = self._backoff(key)
            logger.exception("failed, again in %.2f s", again, extra=_facts(key))
        finally:
            self._busy.discard(key)
            self._changed.set()
        if again is not None:
            self.add(key, again)
        if key in self._due:
            heapq.heappush(self._heap, (self._due[key], next(self._order), key))

    def _backoff(self, key: Key) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return min(FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 20), LAST_RETRY_SECONDS)


def _facts(key: Key) -> dict[str, str]:
    namespace, run = key
    return {"namespace": namespace, "run": run}
