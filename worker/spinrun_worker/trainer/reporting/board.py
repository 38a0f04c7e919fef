"""What rank 0 currently knows about the run, and where the time of this attempt went."""

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from spinrun_api.status import Best, Metrics, RolloutStatus
from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import Activity, Progress

WORK = frozenset({"activity", "window", "step", "version", "metrics", "prompts_done"})
"""Fields of Progress that change because something was done."""


@dataclass(frozen=True)
class Spent:
    """Where the time of this attempt went."""

    activity: Activity
    """The current activity."""

    since: float
    """When it began, by `time.monotonic`."""

    before: Mapping[str, float]
    """Seconds spent in each activity before that."""

    def seconds(self, now: float) -> dict[str, float]:
        """Seconds spent in each activity up to now, the current one included; every second belongs to exactly one."""
        return {**self.before, self.activity: self.before.get(self.activity, 0.0) + now - self.since}


class ProgressBoard:
    """The newest Progress.

    The trainer's thread and the collector's thread write, others read: what they read is immutable and replaced as a whole.
    """

    def __init__(self, progress: Progress) -> None:
        self._writing = threading.RLock()
        self._progress = progress
        self._spent = Spent(progress.activity, time.monotonic(), {})
        self.end: float | None = None
        """Estimated end of the run at its current pace, Unix time in seconds; None while unknown."""
        self.written_bytes: Mapping[str, int] = {}
        """Bytes that this attempt has written to the ledger, by kind: weights and checkpoints."""
        self._rollouts: Callable[[], RolloutStatus] = RolloutStatus
        self._observer: Callable[[Progress], AbstractContextManager[None]] = lambda _: nullcontext()
        self.activity_seconds: dict[str, float] = {}
        """Seconds spent in each activity since `take_seconds` was last called."""
        self._within: Activity | None = None
        """The innermost activity whose block is running."""
        self.accuracies: dict[int, float] = {}
        """Accuracy of each version that was evaluated."""

    @property
    def now(self) -> Progress:
        """The newest state."""
        return self._progress

    def follow(self, rollouts: Callable[[], RolloutStatus]) -> None:
        """Set where `snapshot` gets the state of the rollouts from.

        Args:
            rollouts: Returns it; may be called from any thread.
        """
        self._rollouts = rollouts

    def observe(self, observer: Callable[[Progress], AbstractContextManager[None]]) -> None:
        """Set what to enter around each activity.

        Args:
            observer: Makes a context from the state in which an activity begins.
        """
        self._observer = observer

    def snapshot(self) -> Progress:
        """The newest state, with that of the rollouts."""
        return self._progress.model_copy(update={"rollouts": self._rollouts()})

    def seconds(self) -> dict[str, float]:
        """Seconds of this attempt spent in each activity."""
        return self._spent.seconds(time.monotonic())

    def wrote(self, written: Manifest) -> None:
        """Count the bytes of a directory written to the ledger."""
        num_bytes = self.written_bytes.get(written.kind, 0) + sum(file.size for file in written.files)
        self.written_bytes = {**self.written_bytes, written.kind: num_bytes}

    def update(self, **changes: Any) -> None:
        """Replace fields of the state."""
        with self._writing:
            if "activity" in changes:
                now = time.monotonic()
                self._spent = Spent(changes["activity"], now, self._spent.seconds(now))
            if "eta_seconds" in changes:
                left = changes["eta_seconds"]
                self.end = None if left is None else time.time() + left
            beats = self._progress.beats + (not WORK.isdisjoint(changes))
            self._progress = self._progress.model_copy(update={"beats": beats, **changes})

    def beat(self) -> None:
        """Count a piece of work that nothing else shows."""
        with self._writing:
            self.update(beats=self._progress.beats + 1)

    def update_metrics(self, **changes: float) -> None:
        """Replace some of the figures."""
        with self._writing:
            self.update(metrics=Metrics.model_validate(self._progress.metrics.model_dump() | changes))

    def evaluated(self, *, window: int, version: int, accuracy: float) -> None:
        """Record an evaluation. Of equally good versions the first stays the best."""
        self.accuracies[version] = accuracy
        self.update_metrics(accuracy=accuracy)
        best = self._progress.best
        if best is None or accuracy > best.accuracy:
            self.update(best=Best(window=window, version=version, accuracy=accuracy))

    @contextmanager
    def during(self, activity: Activity) -> Generator[None]:
        """Show an activity while the block runs, and count its seconds. It stays shown until the next one begins.

        Within another's block it takes its seconds from that one, which is shown again when it ends.
        """
        started, counted, outer = time.monotonic(), sum(self.activity_seconds.values()), self._within
        self._within = activity
        self.update(activity=activity, message="")
        try:
            with self._observer(self._progress):
                yield
        finally:
            within = sum(self.activity_seconds.values()) - counted
            seconds = time.monotonic() - started - within
            self.activity_seconds[activity] = self.activity_seconds.get(activity, 0.0) + seconds
            self._within = outer
            self.update(message="", **({} if outer is None else {"activity": outer}))

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent in each activity since the last call, by metric name; the counts then start at zero again."""
        seconds = {f"timing/{activity}_seconds": spent for activity, spent in self.activity_seconds.items()}
        self.activity_seconds.clear()
        return seconds
