"""A run at a moment as a person reads it: a line, or a block of lines on a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spinrun_cli.show.snapshot import Outcome, Snapshot, WindowFigures
from spinrun_cli.show.text import clock, duration, figure, printable
from spinrun_protocol.wire import Progress

PHASES_AT_WORK = ("", "Starting", "Running")
"""Phases in which the trainer says what it does."""
BUSY = ("generate", "evaluate")
"""Activities whose progress is counted in prompts."""
WAITING = ("activate", "score", *BUSY)
"""Activities in which the trainer may wait for rollouts, or for the model that prefers."""
MAX_REASON_LENGTH = 80
MAX_WINDOWS = 8
"""Newest windows that a block shows."""
LARGEST_FIGURE = 1e30
"""Larger ones have no bar."""
BARS = "▁▂▃▄▅▆▇█"
MAX_BARS = 60


# --- a line --------------------------------------------------------------------------------------------------------


def line(snapshot: Snapshot, *, elapsed: float | None = None) -> str:
    """The run in one line.

    Args:
        snapshot: The run.
        elapsed: Seconds since the command began that runs it, which stand in the name's place; None where it only watches.
    """
    if snapshot.outcome is not None:
        return f"{snapshot.name}: {_outcome(snapshot.outcome)}"
    head = f"{snapshot.name}:" if elapsed is None else f"[{clock(elapsed)}]"
    return f"{head}  {state(snapshot)}"


def state(snapshot: Snapshot) -> str:
    """How far the run is and how it does, in one line without its name."""
    if snapshot.outcome is not None:
        return _outcome(snapshot.outcome)
    parts = [doing(snapshot)]
    progress = snapshot.progress
    if progress is not None:
        if progress.total_steps:
            parts.append(f"step {progress.step}/{progress.total_steps}")
        parts += [f"{name} {value}" for name, value in figures(snapshot)]
        newest = next((each for each in reversed(snapshot.windows) if each.pairs is not None), None)
        if newest is not None:
            parts.append(f"pairs {figure(newest.pairs or 0, 0)}, ties {figure(newest.ties or 0, 0)}")
        if progress.eta_seconds:
            parts.append(f"{duration(progress.eta_seconds)} left")
    if snapshot.attempt > 1:
        parts.append(f"attempt {snapshot.attempt}")
    if snapshot.trouble:
        parts.append(printable(snapshot.trouble))
    return "  ".join(parts)


def _outcome(outcome: Outcome) -> str:
    reason = f" ({outcome.reason})" if outcome.reason else ""
    return f"{outcome.result}{reason}: {printable(outcome.message)}"


def doing(snapshot: Snapshot) -> str:
    """The phase and, while the trainer is at work, its window and activity, or who is still starting."""
    phase, progress = snapshot.phase, snapshot.progress
    if phase and (progress is None or phase not in PHASES_AT_WORK or progress.activity == "starting"):
        return phase
    activity = printable(_activity(snapshot))
    return f"{phase}, {activity}" if phase else activity


def _activity(snapshot: Snapshot) -> str:
    progress = snapshot.progress
    waiting = ", ".join(f"{name} {state}" for name, state in snapshot.children.items() if state != "ready")
    if progress is None or progress.activity == "starting":
        return f"starting ({waiting})" if waiting else "starting"
    if progress.activity == "finished":
        return "finished"
    text = f"window {min(progress.window + 1, progress.windows)}/{progress.windows} {progress.activity}"
    if progress.activity in BUSY and progress.prompts_total:
        text += f" {progress.prompts_done}/{progress.prompts_total} prompts"
    # What our own children do says more than what the trainer cannot reach.
    reason = waiting or _shortened(progress.message)
    return f"{text} ({reason})" if reason and progress.activity in WAITING else text


def _shortened(text: str) -> str:
    """The text, cut where it would not fit into a line."""
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]}…"


def figures(snapshot: Snapshot) -> list[tuple[str, str]]:
    """The newest figures that there are, by name."""
    progress = snapshot.progress
    if progress is None:
        return []
    metrics = progress.metrics
    found: list[tuple[str, str | None]] = [
        ("loss", _number(metrics.loss, 4)),
        ("reward", _number(metrics.reward, 3)),
        ("accuracy", _accuracy(snapshot.initial_accuracy, metrics.accuracy, progress.version)),
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


def _accuracy(first: float | None, last: float | None, version: int | None) -> str | None:
    if last is None:
        return None
    now = figure(last, 3)
    return now if first is None or version in (None, 0) else f"{figure(first, 3)} → {now}"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else figure(value, digits)


# --- a block -------------------------------------------------------------------------------------------------------


def panel(snapshot: Snapshot, *, elapsed: float | None = None) -> RenderableType:
    """The run as a block of lines for a terminal.

    Args:
        snapshot: The run.
        elapsed: Seconds since the command began that runs it; None where it only watches.
    """
    rows: list[RenderableType] = [Text.assemble((snapshot.name, "bold"), "  ", doing(snapshot))]
    if (bar := _bar(snapshot.progress, elapsed)) is not None:
        rows.append(bar)
    if shown := figures(snapshot):
        rows.append(Text("   ".join(f"{name} {value}" for name, value in shown)))
    accuracies = [each.accuracy for each in snapshot.windows if each.accuracy is not None]
    if len(accuracies) > 1:
        first, last, best = (figure(each, 3) for each in (accuracies[0], accuracies[-1], max(accuracies)))
        rows.append(Text(f"accuracy {sparkline(accuracies)}  {first} → {last}, best {best}"))
    if any(each.pairs is not None for each in snapshot.windows):
        rows.append(_table(snapshot.windows[-MAX_WINDOWS:]))
    if snapshot.trouble:
        rows.append(Text(printable(snapshot.trouble), style="yellow"))
    rows += [Text(printable(each), style="dim", overflow="ellipsis", no_wrap=True) for each in snapshot.news]
    if snapshot.outcome is not None:
        style = {"Complete": "green", "Failed": "red"}.get(snapshot.outcome.result, "yellow")
        rows.append(Text(_outcome(snapshot.outcome), style=style))
    return Group(*rows)


def _bar(progress: Progress | None, elapsed: float | None) -> Table | None:
    """The steps that are done; while they are not known, a sign of life where the run's own command shows it."""
    row = Table.grid(padding=(0, 2))
    if progress is not None and progress.total_steps:
        left = f"{duration(progress.eta_seconds)} left" if progress.eta_seconds else ""
        times = left if elapsed is None else f"{clock(elapsed)}  {left}"
        bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=40)
        row.add_row(f"step {progress.step}/{progress.total_steps}", bar, times)
    elif elapsed is not None:
        row.add_row("", ProgressBar(pulse=True, width=40, animation_time=elapsed), clock(elapsed))
    else:
        return None
    return row


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, from the lowest to the highest of them; the newest where there are too many."""
    shown = [value for value in values if abs(value) <= LARGEST_FIGURE][-MAX_BARS:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def _table(windows: Sequence[WindowFigures]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("window", "accuracy", "reward", "pairs", "ties", "samples/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in windows:
        cells = (
            (3, each.accuracy),
            (3, each.reward),
            (0, each.pairs),
            (0, each.ties),
            (1, each.samples_per_second),
        )
        table.add_row(str(each.window), *("" if value is None else figure(value, digits) for digits, value in cells))
    return table
