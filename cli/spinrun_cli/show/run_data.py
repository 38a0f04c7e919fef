"""What a report and a comparison are made of."""

from dataclasses import dataclass, field
from typing import Any

from spinrun_api.status import Best
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import TerminationMessage
from spinrun_worker.records import ScoredGroup


@dataclass(frozen=True)
class RunData:
    """A run as its files tell it."""

    name: str
    document: dict[str, Any] = field(default_factory=dict)
    """The resolved SpinRun."""
    record: RunRecord | None = None
    """How the run was made; None before the trainer has written it."""
    termination: TerminationMessage | None = None
    """How the newest attempt ended; None while it is running, or when the ledger is all there is."""
    steps: list[MetricsLine] = field(default_factory=list)
    windows: list[MetricsLine] = field(default_factory=list)
    evaluations: list[MetricsLine] = field(default_factory=list)
    before: list[ScoredGroup] = field(default_factory=list)
    """Answers of version 0 to the held-out prompts."""
    after: list[ScoredGroup] = field(default_factory=list)
    """Answers of the last version that was evaluated; empty while that is version 0."""
    notes: list[str] = field(default_factory=list)
    """What is missing, and why."""

    @property
    def accuracy(self) -> list[float] | None:
        """Accuracy of every evaluated version, in order; None when there is no evaluation yet."""
        return [line.values["accuracy"] for line in self.evaluations if "accuracy" in line.values] or None

    @property
    def best(self) -> Best | None:
        """The best version; the earlier of two that are equal."""
        lines = [line for line in self.evaluations if "accuracy" in line.values]
        if not lines:
            return None
        line = max(lines, key=lambda line: line.values["accuracy"])
        return Best(window=line.window, version=line.version, accuracy=line.values["accuracy"])

    @property
    def learning(self) -> str | None:
        """What became of the held-out accuracy, in words; None when there is no evaluation yet."""
        if self.accuracy is None or self.best is None:
            return None
        first, last = self.accuracy[0], self.accuracy[-1]
        return f"held-out accuracy {first:.3f} → {last:.3f} (best {self.best.accuracy:.3f}, version {self.best.version})"

    @property
    def num_steps(self) -> int:
        """Optimizer steps done."""
        return max((line.step for line in (*self.steps, *self.windows)), default=0)

    @property
    def seconds(self) -> float | None:
        """Seconds from the first figure to the last, pauses included."""
        times = [line.time for line in (*self.steps, *self.windows, *self.evaluations)]
        return max(times) - min(times) if len(times) > 1 else None
