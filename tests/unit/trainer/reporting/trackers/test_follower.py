"""A tracker that hangs, raises or is late costs the trainer nothing but a line in the log."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from spinrun_protocol.ledger import MetricsLine
from spinrun_worker.trainer.reporting.trackers.follower import Follower, TrackerCollector, close_all
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult

LABELS = {"namespace": "team", "run": "demo", "method": "onlineDPO"}


def line(step: int) -> MetricsLine:
    return MetricsLine(event="step", attempt=1, time=1.7e9 + step, window=0, step=step, version=0, values={"loss": 0.7})


class FakeTracker:
    """Remembers what it was told; `before` may sleep or raise instead."""

    place = "nowhere"

    def __init__(self, before: Callable[[MetricsLine], object] = lambda _: None) -> None:
        self.steps: list[int] = []
        self.ending: AttemptResult | None = None
        self._before = before

    def write(self, line: MetricsLine) -> None:
        self._before(line)
        self.steps.append(line.step)

    def close(self, ending: AttemptResult) -> None:
        self.ending = ending


def raises(line: MetricsLine) -> NoReturn:
    raise ConnectionError("no route to host")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_lines_come_in_order_and_then_the_ending(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tracker, opened_for = FakeTracker(), list[int]()

    def open_tracker(first: MetricsLine) -> FakeTracker:
        opened_for.append(first.step)
        return tracker

    follower = Follower("notebook", open_tracker)
    for step in range(1, 50):
        follower.offer(line(step))
    close_all([follower], "complete")
    assert tracker.steps == list(range(1, 50))
    assert opened_for == [1]
    assert tracker.ending == "complete"
    assert follower.lines == {"written": 49, "failed": 0, "dropped": 0}
    assert [record.getMessage() for record in caplog.records] == ["notebook shows this run: nowhere"]


def test_a_tracker_that_hangs_costs_no_time_and_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()
    tracker = FakeTracker(lambda _: bool(released.wait()) and None)
    follower = Follower("notebook", lambda _: tracker, max_lines=10)
    try:
        began = time.monotonic()
        for step in range(100):
            follower.offer(line(step))
        assert time.monotonic() - began < 0.5
        close_all([follower], "failed", seconds=0.2)
        assert time.monotonic() - began < 1
        # One is in its hands, ten wait.
        assert follower.lines["dropped"] >= 89
        assert warnings(caplog) == [
            "notebook does not get all figures: it is too slow. The run continues, and metrics.jsonl has them",
            "notebook has not finished within 0.2 s and is abandoned; metrics.jsonl has all figures",
        ]
    finally:
        released.set()
        assert follower.join(10)


def test_trackers_share_the_time_in_which_they_must_end() -> None:
    released = threading.Event()
    followers = [Follower("notebook", lambda _: FakeTracker(lambda _: bool(released.wait()) and None)) for _ in range(4)]
    try:
        for follower in followers:
            follower.offer(line(1))
        began = time.monotonic()
        close_all(followers, "failed", seconds=0.3)
        assert time.monotonic() - began < 0.8
    finally:
        released.set()
        assert all(follower.join(10) for follower in followers)


def test_a_failure_is_said_once_and_each_line_counted(caplog: pytest.LogCaptureFixture) -> None:
    tracker = FakeTracker(raises)
    follower = Follower("notebook", lambda _: tracker)
    for step in range(5):
        follower.offer(line(step))
    close_all([follower], "complete")
    assert follower.lines == {"written": 0, "failed": 5, "dropped": 0}
    assert tracker.ending == "complete"
    assert warnings(caplog) == [
        "notebook does not get all figures: no route to host. The run continues, and metrics.jsonl has them",
        "notebook lacks 5 of 5 lines; metrics.jsonl has all of them",
    ]


def test_a_tracker_that_cannot_be_opened_is_tried_with_each_line(caplog: pytest.LogCaptureFixture) -> None:
    tracker = FakeTracker()

    def open_tracker(first: MetricsLine) -> FakeTracker:
        if first.step < 3:
            raises(first)
        return tracker

    follower = Follower("notebook", open_tracker)
    for step in range(5):
        follower.offer(line(step))
    close_all([follower], "complete")
    assert tracker.steps == [3, 4]
    assert follower.lines == {"written": 2, "failed": 3, "dropped": 0}
    assert len(warnings(caplog)) == 2


def test_a_tracker_that_was_never_opened_needs_no_end() -> None:
    follower = Follower("notebook", raises)
    close_all([follower], "complete")
    assert follower.lines == {"written": 0, "failed": 0, "dropped": 0}


def test_what_became_of_lines_is_a_metric() -> None:
    follower = Follower("notebook", lambda _: FakeTracker(raises))
    follower.offer(line(1))
    close_all([follower], "complete")
    (family,) = TrackerCollector([follower], LABELS).collect()
    values = {sample.labels["result"]: sample.value for sample in family.samples}
    assert values == {"written": 0, "failed": 1, "dropped": 0}
    assert all(sample.name == "spinrun_trainer_tracker_lines_total" for sample in family.samples)
    assert all(sample.labels | LABELS | {"tracker": "notebook"} == sample.labels for sample in family.samples)


HANGS = """
import atexit, threading
from spinrun_worker.trainer.__main__ import leave
from spinrun_worker.trainer.reporting.trackers.follower import Follower

forever = threading.Event()
if {hangs}:
    Follower("notebook", lambda _: forever.wait())
atexit.register(print, "the library's farewell")
leave(3)
"""


@pytest.mark.parametrize("hangs", [True, False])
def test_a_tracker_that_hangs_does_not_keep_the_process_at_its_exit(hangs: bool) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS.format(hangs=hangs)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "" if hangs else "the library's farewell\n")
