"""From spec.telemetry to followers of its trackers, for the duration of an attempt."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_worker.errors import ConfigurationError, Preempted
from spinrun_worker.trainer.reporting.trackers.follower import Follower, close_all
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult, Tracker, run_of

Opener = Callable[[RunRecord, Path, MetricsLine], Tracker]
"""Opens a tracker from a run's record, the ledger's folder and the first line to show."""

OPENERS: Mapping[str, str] = {"wandb": "WandbTracker", "tensorboard": "TensorboardTracker", "mlflow": "MlflowTracker"}
"""The trackers by their names in spec.telemetry: the class, in the module of the same name here."""


@contextmanager
def following(record: RunRecord, ledger: Path) -> Generator[Sequence[Follower]]:
    """Followers of the trackers that the run names, closed at the end of the block. Raises nothing of its own."""
    telemetry = run_of(record).spec.telemetry
    wanted = [name for name in OPENERS if getattr(telemetry, name) is not None]
    followers = [Follower(name, _opener(name, record, ledger)) for name in wanted]
    result: AttemptResult = "failed"
    try:
        yield followers
        result = "complete"
    except Preempted:
        result = "preempted"
        raise
    finally:
        close_all(followers, result)


def _opener(name: str, record: RunRecord, ledger: Path) -> Callable[[MetricsLine], Tracker]:
    def open_tracker(line: MetricsLine) -> Tracker:
        # Here, in the follower's thread: such a library takes seconds to import, and may not be installed.
        try:
            module = import_module(f"spinrun_worker.trainer.reporting.trackers.{name}")
        except ImportError as error:
            raise ConfigurationError(f"{error}: install it with pip install 'spinrun[{name}]'") from error
        opener: Opener = getattr(module, OPENERS[name])
        return opener(record, ledger, line)

    return open_tracker
