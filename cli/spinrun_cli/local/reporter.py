"""How progress reaches the person: a live block on a terminal, lines elsewhere, warnings only when quiet."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.live import Live

from spinrun_cli.console import Console
from spinrun_cli.output import echo
from spinrun_cli.show import render
from spinrun_cli.show.snapshot import Snapshot

QUIET_SECONDS = 30.0
"""Longest silence of the line form."""


class Reporter(Protocol):
    """Where a supervisor tells what happens."""

    def show(self, snapshot: Snapshot) -> None:
        """The run has been looked at again."""

    def say(self, message: str) -> None:
        """Something happened that is worth a line."""

    def warn(self, message: str) -> None:
        """Something went wrong."""


class QuietReporter:
    """Warnings only, on stderr."""

    def show(self, snapshot: Snapshot) -> None:
        """Says nothing."""

    def say(self, message: str) -> None:
        """Says nothing."""

    def warn(self, message: str) -> None:
        """A line on stderr."""
        echo(message, err=True)


class LineReporter(QuietReporter):
    """A line when something changes, and one every QUIET_SECONDS."""

    def __init__(self, started: float) -> None:
        """Says nothing yet.

        Args:
            started: When the run began, by time.monotonic().
        """
        self._started = started
        self._key: tuple[object, ...] | None = None
        self._last = 0.0

    def show(self, snapshot: Snapshot) -> None:
        """A line, when it is time for one."""
        now = time.monotonic()
        if snapshot.key != self._key or now - self._last >= QUIET_SECONDS:
            self._key, self._last = snapshot.key, now
            self.say(render.line(snapshot, elapsed=now - self._started))

    def say(self, message: str) -> None:
        """A line on stdout."""
        echo(message)


class LiveReporter:
    """A block at the bottom of the terminal; messages scroll above it."""

    def __init__(self, live: Live, started: float) -> None:
        self._live = live
        self._started = started

    def show(self, snapshot: Snapshot) -> None:
        """Redraws the block."""
        self._live.update(render.panel(snapshot, elapsed=time.monotonic() - self._started))

    def say(self, message: str) -> None:
        """A line above the block."""
        self._live.console.print(message, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """A yellow line above the block."""
        self._live.console.print(message, style="yellow", markup=False, highlight=False)


@contextmanager
def reporter(*, quiet: bool) -> Generator[Reporter]:
    """The form that suits where the output goes."""
    console, started = Console(), time.monotonic()
    if quiet:
        yield QuietReporter()
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield LiveReporter(live, started)
    else:
        yield LineReporter(started)
