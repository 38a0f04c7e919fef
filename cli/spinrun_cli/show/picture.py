"""A run at a moment, from whatever source, and what is said of it: pure functions to text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spinrun_cli.show import view as views
from spinrun_cli.show.text import printable
from spinrun_cli.show.view import View, duration
from spinrun_protocol.wire import Progress

Json = dict[str, Any]

AT_WORK = ("Starting", "Running")
"""Phases in which the trainer says what it does."""
MOST_WINDOWS = 8
"""Newest windows that a screen shows."""
BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 60


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


@dataclass(frozen=True)
class Picture:
    """A run at a moment."""

    name: str
    phase: str
    attempt: int = 0
    progress: Progress | None = None
    """What the trainer said last; None before it has."""
    windows: Sequence[WindowFigures] = ()
    """In their order, the last perhaps that of the final evaluation alone."""
    trouble: str = ""
    """What stands in the way."""
    news: Sequence[str] = ()
    """The newest events, or lines of the trainer's log, the last at the end."""
    outcome: Outcome | None = field(default=None)
    """None while the run goes on."""

    @property
    def view(self) -> View:
        """The same as `spinrun local` shows it."""
        return View(self.name, "", started=0.0, attempt=self.attempt, progress=self.progress, initial_accuracy=self._initial)

    @property
    def _initial(self) -> float | None:
        """Accuracy of version 0."""
        return self.windows[0].accuracy if self.windows and self.windows[0].window == 0 else None

    @property
    def key(self) -> tuple[object, ...]:
        """Changes when there is something to tell in a line: not with each step, of which there may be thousands."""
        return self.phase, self.attempt, self.trouble, self.outcome, self.view.key if self.progress else None


def line(picture: Picture) -> str:
    """The run in one line."""
    if picture.outcome is not None:
        return f"{picture.name}: {picture.outcome.result}: {printable(picture.outcome.message)}"
    return "  ".join([f"{picture.name}:", *_parts(picture)])


def _parts(picture: Picture) -> list[str]:
    parts = [_doing(picture)]
    progress = picture.progress
    if progress is not None:
        if progress.total_steps:
            parts.append(f"step {progress.step}/{progress.total_steps}")
        parts += [f"{name} {value}" for name, value in views.figures(picture.view)]
        newest = next((each for each in reversed(picture.windows) if each.pairs is not None), None)
        if newest is not None:
            parts.append(f"pairs {newest.pairs:.0f}, ties {newest.ties or 0:.0f}")
        if progress.eta_seconds:
            parts.append(f"{duration(progress.eta_seconds)} left")
    if picture.attempt > 1:
        parts.append(f"attempt {picture.attempt}")
    if picture.trouble:
        parts.append(printable(picture.trouble))
    return parts


def _doing(picture: Picture) -> str:
    """The phase and, while the trainer is at work, what it does."""
    if picture.progress is None or picture.phase not in AT_WORK or picture.progress.activity == "starting":
        return picture.phase
    return f"{picture.phase}, {printable(views.doing(picture.view))}"


# --- a screen ------------------------------------------------------------------------------------------------------


def panel(picture: Picture) -> RenderableType:
    """The run as a block of lines for a terminal."""
    rows: list[RenderableType] = [Text.assemble((picture.name, "bold"), "  ", _doing(picture))]
    progress = picture.progress
    if progress is not None and progress.total_steps:
        left = f"{duration(progress.eta_seconds)} left" if progress.eta_seconds else ""
        steps = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=40)
        steps.add_row(f"step {progress.step}/{progress.total_steps}", bar, left)
        rows += [steps, Text("   ".join(f"{name} {value}" for name, value in views.figures(picture.view)))]
    accuracies = [each.accuracy for each in picture.windows if each.accuracy is not None]
    if len(accuracies) > 1:
        rows.append(
            Text(f"accuracy {sparkline(accuracies)}  {accuracies[0]:.3f} → {accuracies[-1]:.3f}, best {max(accuracies):.3f}")
        )
    if any(each.pairs is not None for each in picture.windows):
        rows.append(_table(picture.windows[-MOST_WINDOWS:]))
    if picture.trouble:
        rows.append(Text(printable(picture.trouble), style="yellow"))
    rows += [Text(printable(each), style="dim", overflow="ellipsis", no_wrap=True) for each in picture.news]
    if picture.outcome is not None:
        style = {"Complete": "green", "Failed": "red"}.get(picture.outcome.result, "yellow")
        rows.append(Text(f"{picture.outcome.result}: {printable(picture.outcome.message)}", style=style))
    return Group(*rows)


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, from the lowest to the highest of them; the newest where there are too many."""
    shown = values[-MOST_BARS:]
    low, high = min(shown), max(shown)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def _table(windows: Sequence[WindowFigures]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("window", "accuracy", "reward", "pairs", "ties", "samples/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in windows:
        figures = (
            ("3f", each.accuracy),
            ("3f", each.reward),
            ("0f", each.pairs),
            ("0f", each.ties),
            ("1f", each.samples_per_second),
        )
        table.add_row(str(each.window), *("" if value is None else f"{value:.{form}}" for form, value in figures))
    return table


# --- a document ----------------------------------------------------------------------------------------------------


def document(picture: Picture) -> Json:
    """The run for programs; what is not known is left out."""
    progress = picture.progress
    found: Json = {"name": picture.name, "phase": picture.phase, "attempt": picture.attempt or None}
    if progress is not None:
        fields = {"activity", "window", "windows", "step", "total_steps", "version", "rollouts", "metrics", "best", "eta_seconds"}
        found |= progress.model_dump(mode="json", by_alias=True, exclude_none=True, include=fields)
    found["byWindow"] = [_without_none(vars_of(each)) for each in picture.windows]
    found |= {"trouble": picture.trouble or None, "news": list(picture.news) or None}
    if picture.outcome is not None:
        found["outcome"] = {"result": picture.outcome.result, "message": picture.outcome.message}
    return _without_none(found)


def vars_of(figures: WindowFigures) -> Json:
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
