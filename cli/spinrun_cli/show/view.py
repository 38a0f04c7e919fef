"""What a person sees of a run while it goes on: pure functions from the state to text."""

import time
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spinrun_protocol.wire import Progress

BUSY = ("generate", "evaluate")
"""Activities whose progress is counted in prompts."""
WAITING = ("activate", "prefer", *BUSY)
"""Activities in which the trainer may wait for rollouts, or for the model that prefers."""
LONGEST_REASON = 80


@dataclass
class View:
    """The state of a run as the supervisor knows it."""

    name: str
    folder: str
    started: float = field(default_factory=time.monotonic)
    attempt: int = 0
    progress: Progress | None = None
    """What rank 0 said last; None before it has."""
    initial_accuracy: float | None = None
    """Accuracy of version 0."""
    children: dict[str, str] = field(default_factory=dict)
    """Processes by name, and what they do: starting, ready, restarting, stopping."""

    @property
    def key(self) -> tuple[object, ...]:
        """Changes when there is something to tell."""
        progress = self.progress
        if progress is None:
            return tuple(self.children.items())
        return (progress.attempt, progress.window, progress.activity, progress.metrics.accuracy)


def line(view: View, now: float) -> str:
    """The state in one line."""
    parts = [f"[{clock(now - view.started)}]", doing(view)]
    if view.progress is not None:
        progress = view.progress
        if progress.total_steps:
            parts.append(f"step {progress.step}/{progress.total_steps}")
        parts += [f"{name} {value}" for name, value in figures(view)]
        if progress.eta_seconds:
            parts.append(f"{duration(progress.eta_seconds)} left")
    return "  ".join(parts)


def doing(view: View) -> str:
    """Window and activity, or who is still starting."""
    progress = view.progress
    waiting = ", ".join(f"{name} {state}" for name, state in view.children.items() if state != "ready")
    if progress is None or progress.activity == "starting":
        return f"starting ({waiting})" if waiting else "starting"
    if progress.activity == "finished":
        return "finished"
    text = f"window {min(progress.window + 1, progress.windows)}/{progress.windows} {progress.activity}"
    if progress.activity in BUSY and progress.prompts_total:
        text += f" {progress.prompts_done}/{progress.prompts_total} prompts"
    # What our own children do says more than what the trainer cannot reach.
    reason = waiting or shortened(progress.message)
    return f"{text} ({reason})" if reason and progress.activity in WAITING else text


def shortened(text: str) -> str:
    """The text, cut where it would not fit into a line."""
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


def figures(view: View) -> list[tuple[str, str]]:
    """The newest figures that there are, by name."""
    progress = view.progress
    if progress is None:
        return []
    metrics = progress.metrics
    found: list[tuple[str, str | None]] = [
        ("loss", _number(metrics.loss, 4)),
        ("reward", _number(metrics.reward, 3)),
        ("accuracy", _accuracy(view.initial_accuracy, metrics.accuracy, progress.version)),
        ("samples/s", _number(metrics.samples_per_second, 1)),
        ("version", None if progress.version is None else str(progress.version)),
        ("rollouts", _rollouts(progress)),
    ]
    return [(name, value) for name, value in found if value is not None]


def _rollouts(progress: Progress) -> str | None:
    """How many are ready and, while it is not the newest, which version they serve."""
    rollouts = progress.rollouts
    if not rollouts.desired:
        return None
    behind = "" if rollouts.version in (None, progress.version) else f", serving version {rollouts.version}"
    return f"{rollouts.ready}/{rollouts.desired} ready{behind}"


def panel(view: View, now: float) -> RenderableType:
    """The state as a block of lines for a terminal."""
    progress = view.progress
    head = Text.from_markup(f"[bold]{escape(view.name)}[/]  {escape(doing(view))}")
    rows = Table.grid(padding=(0, 2))
    if progress is not None and progress.total_steps:
        left = f"{duration(progress.eta_seconds)} left" if progress.eta_seconds else ""
        bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=40)
        rows.add_row(f"step {progress.step}/{progress.total_steps}", bar, f"{clock(now - view.started)}  {left}")
    else:
        rows.add_row("", ProgressBar(pulse=True, width=40, animation_time=now), clock(now - view.started))
    shown = figures(view) or [("log", f"{view.folder}/logs")]
    return Group(head, rows, Text("   ".join(f"{name} {value}" for name, value in shown)))


def _accuracy(first: float | None, last: float | None, version: int | None) -> str | None:
    if last is None:
        return None
    return f"{last:.3f}" if first is None or version in (None, 0) else f"{first:.3f} → {last:.3f}"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    """75 as 1:15."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def duration(seconds: float) -> str:
    """75 as 1 min 15 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
