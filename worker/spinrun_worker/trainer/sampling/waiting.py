"""How those who need the rollouts wait for them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from spinrun_worker.errors import Preempted


async def wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, but no longer than so many seconds."""
    # Not wait_for, which in Python 3.11 loses a cancellation that comes together with the event.
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Waiting:
    """What activations and generations wait on: something happens, a background task fails, or the trainer is to stop."""

    def __init__(self, tick_seconds: float, on_wait: Callable[[str], None]) -> None:
        """Nobody waits yet.

        Args:
            tick_seconds: Longest time until a waiter looks at the clock again.
            on_wait: Told what is waited for, and "" when the wait is over.
        """
        self._tick_seconds = tick_seconds
        self._on_wait = on_wait
        self._happened = asyncio.Event()
        self._fatal: BaseException | None = None
        self.message = ""
        """What is waited for; empty: nothing."""

    async def tick(self, stop: Callable[[], bool]) -> None:
        """Wait until something has happened, or for a moment.

        Raises:
            Preempted: `stop` says so.
            BaseException: What `fail` was called with.
        """
        await wait_for_event(self._happened, self._tick_seconds)
        self._happened.clear()
        if self._fatal is not None:
            raise self._fatal
        if stop():
            raise Preempted("stopped while waiting for the rollouts")

    def notify(self) -> None:
        """Something has happened: wake those who wait."""
        self._happened.set()

    def fail(self, error: BaseException) -> None:
        """Nothing can continue: every tick from here on raises this error."""
        self._fatal = error
        self.notify()

    def report(self, message: str) -> None:
        """Tell what is waited for, when that has changed; empty: nothing."""
        if message != self.message:
            self.message = message
            self._on_wait(message)
