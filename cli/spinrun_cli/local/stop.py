"""Signals that ask a local run to stop: the first in good order, the second at once."""

import asyncio
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """What the signals have asked for so far."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        """Asks for nothing yet.

        Args:
            on_first: Called when the first signal comes.
        """
        self._on_first = on_first
        self.number = 0
        """The first signal; 0 before it has come."""
        self.stop = asyncio.Event()
        self.stop_at_once = asyncio.Event()

    @contextmanager
    def handled(self) -> Generator[None]:
        """Handles the signals for the length of the block."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            self.stop_at_once.set()
            return
        self.number = number
        self.stop.set()
        self._on_first()
