"""What rank 0 knows of the run at this moment, and where the time of this attempt went."""

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from spinrun_api.status import Best, Metrics, RolloutStatus
from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import Activity, Progress


@dataclass(frozen=True)
class Spent:
    """Where the time of this attempt went."""

    activity: Activity
    """What goes on."""

    since: float
    """When it began, in seconds of `time.monotonic`."""

    before: Mapping[str, float]
    """Seconds of each activity up to then."""

    def seconds(self, now: float) -> dict[str, float]:
        """Seconds of each activity up to now, with that of the one that goes on; each second belongs to one of them."""
        return {**self.before, self.activity: self.before.get(self.activity, 0.0) + now - self.since}


class ProgressBoard:
    """The newest Progress. The trainer's thread and the collector's write, others read: what they read is immutable and replaced
    as a whole."""

    def __init__(self, progress: Progress) -> None:
        self._writing = threading.RLock()
        self._progress = progress
        self._spent = Spent(progress.activity, time.monotonic(), {})
        self.end: float | None = None
        """When the run will end at its present pace, in Unix seconds; None while that is not known."""
        self.written_bytes: Mapping[str, int] = {}
        """Bytes written to the ledger by this attempt: weights and checkpoints."""
        self._rollouts: Callable[[], RolloutStatus] = RolloutStatus
        self._observer: Callable[[Progress], AbstractContextManager[None]] = lambda _: nullcontext()
        self.activity_seconds: dict[str, float] = {}
        """Seconds spent in each activity since `take_seconds` was last called."""
        self.accuracies: dict[int, float] = {}
        """Accuracy of each version that was evaluated."""

    @property
    def now(self) -> Progress:
        """The newest state."""
        return self._progress

    def follow(self, rollouts: Callable[[], RolloutStatus]) -> None:
        """Where to ask how the rollouts stand, whenever somebody asks here. It may be called from any thread."""
        self._rollouts = rollouts

    def observe(self, observer: Callable[[Progress], AbstractContextManager[None]]) -> None:
        """What to enter around each activity, given the state in which it begins."""
        self._observer = observer

    def snapshot(self) -> Progress:
        """The newest state with that of the rollouts."""
        return self._progress.model_copy(update={"rollouts": self._rollouts()})

    def seconds(self) -> dict[str, float]:
        """Seconds of this attempt by activity."""
        return self._spent.seconds(time.monotonic())

    def wrote(self, written: Manifest) -> None:
        """Count the bytes of what was written to the ledger."""
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
            self._progress = self._progress.model_copy(update=changes)

    def update_metrics(self, **changes: float) -> None:
        """Replace some of the newest figures."""
        with self._writing:
            self.update(metrics=Metrics.model_validate(self._progress.metrics.model_dump() | changes))

    def evaluated(self, *, window: int, version: int, accuracy: float) -> None:
        """Note an evaluation; the first of equally good versions stays the best."""
        self.accuracies[version] = accuracy
        self.update_metrics(accuracy=accuracy)
        best = self._progress.best
        if best is None or accuracy > best.accuracy:
            self.update(best=Best(window=window, version=version, accuracy=accuracy))

    @contextmanager
    def during(self, activity: Activity) -> Generator[None]:
        """Show an activity while the block runs, and add its seconds. It stays shown until the next one begins."""
        started = time.monotonic()
        self.update(activity=activity, message="")
        try:
            with self._observer(self._progress):
                yield
        finally:
            seconds = time.monotonic() - started
            self.activity_seconds[activity] = self.activity_seconds.get(activity, 0.0) + seconds
            self.update(message="")

    def take_seconds(self) -> dict[str, float]:
        """Seconds by activity since the last call, by their metric names."""
        seconds = {f"timing/{activity}_seconds": spent for activity, spent in self.activity_seconds.items()}
        self.activity_seconds.clear()
        return seconds
