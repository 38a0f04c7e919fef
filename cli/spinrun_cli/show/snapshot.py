"""A run at a moment, from whatever source: its supervisor, the folder of a local run, or its status in a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spinrun_protocol.wire import Progress

Json = dict[str, Any]


@dataclass(frozen=True)
class WindowFigures:
    """What is known of a window; None where it is not."""

    window: int
    accuracy: float | None = None
    """Held-out accuracy of the version that the window begins with."""
    reward: float | None = None
    pairs: float | None = None
    ties: float | None = None
    samples_per_second: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    result: str
    """Complete, Failed, or Stopped for a local run that nobody works on and that can be resumed."""
    message: str
    reason: str = ""
    """Kubernetes' reason, a word in PascalCase; empty for a local run."""


@dataclass(frozen=True)
class Snapshot:
    """A run at a moment."""

    name: str
    phase: str = ""
    """Empty where the command that shows the run also runs it."""
    attempt: int = 0
    progress: Progress | None = None
    """What the trainer reported last; None before it has."""
    windows: Sequence[WindowFigures] = ()
    """In their order, the last perhaps that of the final evaluation alone."""
    children: Mapping[str, str] = field(default_factory=dict[str, str])
    """Processes of the command that runs it, by name, and their states: starting, ready, restarting, died."""
    trouble: str = ""
    """What stands in the way."""
    news: Sequence[str] = ()
    """The newest events, or lines of the trainer's log, the last at the end."""
    outcome: Outcome | None = None
    """None while the run continues."""

    @property
    def initial_accuracy(self) -> float | None:
        """Accuracy of version 0."""
        return self.windows[0].accuracy if self.windows and self.windows[0].window == 0 else None

    @property
    def milestone(self) -> tuple[object, ...]:
        """Changes with each window, attempt and trouble, and not with what the trainer does in between."""
        progress = self.progress
        figures = (progress.window, progress.metrics.accuracy) if progress else None
        return self.phase, self.attempt, self.trouble, self.outcome, figures

    @property
    def key(self) -> tuple[object, ...]:
        """Changes when there is something to tell in a line: not with each step, of which there may be thousands."""
        progress = self.progress
        now = (progress.attempt, progress.activity) if progress else tuple(self.children.items())
        return *self.milestone, now


def document(snapshot: Snapshot) -> Json:
    """The run for programs; what is not known is left out."""
    progress = snapshot.progress
    found: Json = {"name": snapshot.name, "phase": snapshot.phase, "attempt": snapshot.attempt or None}
    if progress is not None:
        fields = {"activity", "window", "windows", "step", "total_steps", "version", "rollouts", "metrics", "best", "eta_seconds"}
        found |= progress.model_dump(mode="json", by_alias=True, exclude_none=True, include=fields)
    found["byWindow"] = [_without_none(_figures(each)) for each in snapshot.windows]
    found |= {"trouble": snapshot.trouble or None, "news": list(snapshot.news) or None}
    if snapshot.outcome is not None:
        found["outcome"] = {"result": snapshot.outcome.result, "message": snapshot.outcome.message}
    return _without_none(found)


def _figures(figures: WindowFigures) -> Json:
    """The figures by their names in documents."""
    return {
        "window": figures.window,
        "accuracy": figures.accuracy,
        "reward": figures.reward,
        "pairs": figures.pairs,
        "ties": figures.ties,
        "samplesPerSecond": figures.samples_per_second,
    }


def _without_none(document: Json) -> Json:
    return {key: value for key, value in document.items() if value is not None}
