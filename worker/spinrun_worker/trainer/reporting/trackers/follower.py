"""Passes lines to a tracker in a thread of its own, so that the trainer never waits for it."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from spinrun_protocol.ledger import MetricsLine
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult, Tracker

logger = logging.getLogger(__name__)

MAX_LINES = 1000
"""Lines that wait for a slow or unreachable tracker; more are dropped. That is hours of steps, and a megabyte or two."""

CLOSE_SECONDS: Mapping[AttemptResult, float] = {"complete": 30.0, "preempted": 5.0, "failed": 3.0}
"""Time limit for sending the rest. A pod that is being evicted has other things to do, and peers of a failed rank wait for it."""

THREAD = "tracker-"
"""Prefix of the threads' names."""


class Follower:
    """One tracker: the lines that wait for it, and what became of the others. One thread offers lines, and then ends it."""

    def __init__(self, name: str, open_tracker: Callable[[MetricsLine], Tracker], *, max_lines: int = MAX_LINES) -> None:
        """Start the thread.

        Args:
            name: The tracker's name.
            open_tracker: Opens the tracker at the first line to show; while it fails, it is retried with each further line.
            max_lines: Lines that may wait.
        """
        self.name = name
        self.lines: dict[str, int] = {"written": 0, "failed": 0, "dropped": 0}
        """Number of lines by what became of them."""
        self._open_tracker = open_tracker
        self._max_lines = max_lines
        self._tracker: Tracker | None = None
        self._queue: queue.SimpleQueue[MetricsLine | AttemptResult] = queue.SimpleQueue()
        # A daemon: a tracker that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=THREAD + name, daemon=True)
        self._thread.start()

    def offer(self, line: MetricsLine) -> None:
        """Pass the tracker a line, or drop it if too many are waiting. Returns immediately."""
        if self._queue.qsize() < self._max_lines:
            self._queue.put(line)
        else:
            self._lost("dropped", "it is too slow")

    def end(self, result: AttemptResult) -> None:
        """Let the tracker process what is waiting, and close. Returns immediately."""
        self._queue.put(result)

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end, for at most this many seconds; returns whether it has."""
        self._thread.join(max(seconds, 0.0))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while isinstance(item := self._queue.get(), MetricsLine):
            try:
                self._write(item)
                self.lines["written"] += 1
            except Exception as error:  # noqa: BLE001  a third-party library, which may raise anything
                self._lost("failed", error)
        if self._tracker is not None:
            try:
                self._tracker.close(item)
            except Exception as error:  # noqa: BLE001
                self._lost("failed", error)

    def _write(self, line: MetricsLine) -> None:
        if self._tracker is None:
            self._tracker = self._open_tracker(line)
            logger.info("%s shows this run: %s", self.name, self._tracker.place)
        self._tracker.write(line)

    def _lost(self, how: str, why: object) -> None:
        """Count a line that the tracker lacks, and log the first one."""
        self.lines[how] += 1
        if self.lines["failed"] + self.lines["dropped"] == 1:
            logger.warning("%s does not get all figures: %s. The run continues, and metrics.jsonl has them", self.name, why)


def close_all(followers: Sequence[Follower], result: AttemptResult, *, seconds: float | None = None) -> None:
    """End all trackers within a time limit, and log what they lack.

    Args:
        followers: The trackers' followers.
        result: How the attempt ended.
        seconds: Time limit for all of them together; None means that of CLOSE_SECONDS.
    """
    limit = CLOSE_SECONDS[result] if seconds is None else seconds
    deadline = time.monotonic() + limit
    for follower in followers:
        follower.end(result)
    for follower in followers:
        if not follower.join(deadline - time.monotonic()):
            logger.warning(
                "%s has not finished within %g s and is abandoned; metrics.jsonl has all figures", follower.name, limit
            )
        elif lost := follower.lines["failed"] + follower.lines["dropped"]:
            total = sum(follower.lines.values())
            logger.warning("%s lacks %d of %d lines; metrics.jsonl has all of them", follower.name, lost, total)


def is_left_behind() -> bool:
    """Whether a tracker still hangs, whose library may then make the process wait for it at exit."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


class TrackerCollector(Collector):
    """A metric of what became of the lines for all trackers."""

    def __init__(self, followers: Sequence[Follower], labels: Mapping[str, str]) -> None:
        self._followers = followers
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """The current counts."""
        family = CounterMetricFamily(
            "spinrun_trainer_tracker_lines",
            "Lines of figures offered to a tracker, by result: written, failed or dropped.",
            labels=[*self._labels, "tracker", "result"],
        )
        for follower in self._followers:
            for result, count in follower.lines.items():
                family.add_metric([*self._labels.values(), follower.name, result], count)
        yield family
