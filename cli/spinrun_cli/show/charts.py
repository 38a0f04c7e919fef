"""The curves of a run, drawn once for the page (SVG, in the page's own colours) and once for the picture (PNG)."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from spinrun_cli.show.run_data import RunData, spread, value_at
from spinrun_cli.show.run_figures import OUTCOMES, PHASES, outcomes_of, wilson
from spinrun_cli.show.text import printable
from spinrun_protocol.ledger import MetricsLine

MOST_MARKED_POINTS = 60
LONGEST_TITLE = 100
MOST_POINTS = 1000
"""Points of a curve: more cannot be told apart."""
LEGEND_COLUMNS = 4
LEGEND_ROW_POINTS = 13


@dataclass(frozen=True)
class Palette:
    """Colours of a drawing."""

    text: str
    muted: str
    grid: str
    surface: str
    series: tuple[str, ...]


LIGHT = Palette(
    text="#1b1b1a",
    muted="#6b6a66",
    grid="#e4e3df",
    surface="#ffffff",
    series=("#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#4a3aa7", "#e87ba4", "#008300", "#e34948"),
)
# Colours that stand for the page's variables: matplotlib knows no variables, and the page's scheme is not known here.
PLACEHOLDERS = Palette(
    text="#010101",
    muted="#010102",
    grid="#010103",
    surface="#010104",
    series=tuple(f"#0102{index:02x}" for index in range(1, 9)),
)
VARIABLES = {
    PLACEHOLDERS.text: "var(--text)",
    PLACEHOLDERS.muted: "var(--muted)",
    PLACEHOLDERS.grid: "var(--grid)",
    PLACEHOLDERS.surface: "var(--surface)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(PLACEHOLDERS.series, 1)},
}
SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's colours
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}

Draw = Callable[[Axes, RunData, Palette], None]


@dataclass(frozen=True)
class Panel:
    """One chart."""

    title: str
    caption: str
    """What it shows and how to read it."""
    draw: Draw
    has_data: Callable[[RunData], bool]
    in_picture: bool = True


def panels(data: RunData) -> list[Panel]:
    """The charts for which there are figures, in the order of the page."""
    data = data.sound()
    return [panel for panel in PANELS if panel.has_data(data)]


def _drawable(data: RunData) -> RunData:
    """A run with the figures that a chart has room for."""
    data = data.sound()
    thinned = {name: spread(getattr(data, name), MOST_POINTS) for name in ("steps", "windows", "evaluations")}
    return replace(data, **thinned)


def to_svg(panel: Panel, data: RunData) -> str:
    """A chart as an SVG element that takes its colours from the page's CSS variables."""
    data = _drawable(data)
    return _drawn(panel.title, lambda axes: panel.draw(axes, data, PLACEHOLDERS))


def compared_svg(comparison: "ComparisonChart", runs: Sequence[RunData]) -> str:
    """A curve of several runs in one chart, in the order of the page's colours, --series-1 and so on."""
    runs = [_drawable(data) for data in runs]

    def draw(axes: Axes) -> None:
        longest = 0
        for index, data in enumerate(runs):
            if comparison.has_data(data):
                x, y = comparison.curve(data)
                _curve(axes, x, y, PLACEHOLDERS.series[index])
                longest = max(longest, len(x))
        if longest > 1:
            axes.autoscale(axis="x")  # a run of one point has set limits for itself
        if comparison.is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(x=0.06, y=0.12)
        axes.set_xlabel(comparison.x_label)

    return _drawn(comparison.title, draw)


def _drawn(title: str, draw: Callable[[Axes], None]) -> str:
    """A drawing as an SVG element."""
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.6, 2.7), layout="constrained")
        axes = figure.subplots()
        _prepare(axes, PLACEHOLDERS)
        draw(axes)
        figure.patch.set_alpha(0)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    # The size comes from the page; the aspect stays that of viewBox.
    drawing = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", drawing, count=1)
    drawing = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", drawing, count=1)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def picture(data: RunData, chosen: Sequence[Panel] | None = None, *, dpi: int = 140) -> bytes:
    """Charts in one PNG, on white: those chosen, or else those that matter most. Without figures it says so.

    Args:
        data: The run.
        chosen: Charts for which it has figures.
        dpi: Pixels of an inch.
    """
    data = _drawable(data)
    shown = [panel for panel in panels(data) if panel.in_picture] if chosen is None else list(chosen)
    columns = min(3, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    with mpl.rc_context({**SETTINGS, "svg.fonttype": "path"}):
        figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained", facecolor=LIGHT.surface)
        # As plain text: between two dollars matplotlib would read a formula, and there may not be one.
        title = printable(data.name[:LONGEST_TITLE], keep="")
        figure.suptitle(title, color=LIGHT.text, fontsize=12, fontweight="bold", parse_math=False)
        for index, panel in enumerate(shown, 1):
            axes = figure.add_subplot(rows, columns, index)
            _prepare(axes, LIGHT)
            panel.draw(axes, data, LIGHT)
            axes.set_title(panel.title, color=LIGHT.text, fontsize=10, loc="left", pad=6 + LEGEND_ROW_POINTS * _legend_rows(axes))
        if not shown:
            figure.text(0.5, 0.5, "no figures yet", ha="center", color=LIGHT.muted)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def _prepare(axes: Axes, palette: Palette) -> None:
    axes.set_facecolor("none")
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.muted, length=0, labelsize=8.5)
    axes.spines["bottom"].set_color(palette.grid)
    axes.xaxis.label.set_color(palette.muted)
    axes.yaxis.label.set_color(palette.muted)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))


def _values(lines: Sequence[MetricsLine], name: str) -> list[float]:
    """Figures by name, NaN where a line has none: a gap in the curve."""
    return [line.values.get(name, math.nan) for line in lines]


def _curve(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, *, label: str | None = None) -> None:
    marker = "o" if len(x) <= MOST_MARKED_POINTS else None
    if len(x) == 1:
        axes.set_xlim(x[0] - 0.5, x[0] + 0.5)  # else the one point would stand between fractions
    axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label, solid_capstyle="round")


def _by_window(lines: Sequence[MetricsLine], name: str) -> tuple[list[float], list[float]]:
    """Steps and a figure, with a gap where a window of several steps ends: there the reference changes, and the figure jumps."""
    steps, values = [float(line.step) for line in lines], _values(lines, name)
    if all(one.window != other.window for one, other in pairwise(lines)):
        return steps, values
    for index in range(len(lines) - 1, 0, -1):
        if lines[index].window != lines[index - 1].window:
            steps.insert(index, steps[index] - 0.5)
            values.insert(index, math.nan)
    return steps, values


def _legend(axes: Axes, palette: Palette) -> None:
    """Above the axes, so that it hides no data."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=LEGEND_COLUMNS, frameon=False, labelcolor=palette.text, fontsize=8.5,
        borderaxespad=0.2, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip


def _legend_rows(axes: Axes) -> int:
    legend = axes.get_legend()
    return math.ceil(len(legend.get_texts()) / LEGEND_COLUMNS) if legend else 0


def _accuracy(axes: Axes, data: RunData, palette: Palette) -> None:
    lines = [line for line in data.evaluations if "accuracy" in line.values]
    versions, accuracy = [line.version for line in lines], _values(lines, "accuracy")
    bounds = [wilson(line.values["accuracy"], line.values.get("num_prompts", 0)) for line in lines]
    colour = palette.series[0]
    axes.fill_between(versions, [low for low, _ in bounds], [high for _, high in bounds], color=colour, alpha=0.15, linewidth=0)
    _curve(axes, versions, accuracy, colour)
    for index in {0, len(lines) - 1}:
        axes.annotate(
            f"{accuracy[index]:.0%}", (versions[index], accuracy[index]), xytext=(0, 7), textcoords="offset points",
            ha="center", color=palette.text, fontweight="bold", fontsize=9,
        )  # fmt: skip
    if all(0 <= value <= 1 for value in accuracy):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(max(0, min(low for low, _ in bounds) - 0.05), min(1.06, max(high for _, high in bounds) + 0.08))
    axes.margins(x=0.06)
    axes.set_xlabel("version")


def _reward(axes: Axes, data: RunData, palette: Palette) -> None:
    _curve(axes, [line.window for line in data.windows], _values(data.windows, "reward/mean"), palette.series[0])
    axes.set_xlabel("window")


def _loss(axes: Axes, data: RunData, palette: Palette) -> None:
    _curve(axes, *_by_window(data.steps, "loss"), palette.series[0])
    if starts_at_ln_2(data):
        axes.axhline(math.log(2), color=palette.muted, linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(
            "ln 2", (1, math.log(2)), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points", ha="right",
            color=palette.muted, fontsize=8.5,
        )  # fmt: skip
    axes.set_xlabel("step")


def starts_at_ln_2(data: RunData) -> bool:
    """Whether the loss of a policy that is its own reference is ln 2, as docs/methods.md says of two losses."""
    names = ("loss", "losses", "sftWeight", "weightByLikelihood", "weightByMargin")
    loss, *others = (value_at(data.document, "spec", "method", name) for name in names)
    return loss in ("sigmoid", "robust") and not any(others)


def _margins(axes: Axes, data: RunData, palette: Palette) -> None:
    for index, (name, label) in enumerate(
        (("rewards/margins", "margin"), ("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))
    ):
        _curve(axes, *_by_window(data.steps, name), palette.series[index], label=label)
    _legend(axes, palette)
    axes.set_xlabel("step")


def _reward_accuracy(axes: Axes, data: RunData, palette: Palette) -> None:
    _curve(axes, *_by_window(data.steps, "rewards/accuracies"), palette.series[0])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("step")


def _clipped(axes: Axes, data: RunData, palette: Palette) -> None:
    for index, (name, label) in enumerate((("clip_ratio/low_mean", "below"), ("clip_ratio/high_mean", "above"))):
        _curve(axes, *_by_window(data.steps, name), palette.series[index], label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    _legend(axes, palette)
    axes.set_xlabel("step")


def _entropy(axes: Axes, data: RunData, palette: Palette) -> None:
    _curve(axes, [line.window for line in data.windows], _values(data.windows, "entropy"), palette.series[0])
    axes.set_xlabel("window")


OUTCOME_COLOURS = {
    "paired_prompts": 0, "all_right": 2, "all_wrong": 1, "other_ties": 3, "ties": 3, "identical": 5, "unrated": 7,
}  # fmt: skip


def _outcomes(axes: Axes, data: RunData, palette: Palette) -> None:
    windows = [line.window for line in data.windows]
    outcomes = [outcomes_of(line.values) for line in data.windows]
    bottom = [0.0] * len(windows)
    for name, label in OUTCOMES.items():
        counts = [of_window.get(name, 0.0) for of_window in outcomes]
        if not any(counts) and name != "paired_prompts":
            continue
        axes.bar(
            windows, counts, bottom=bottom, width=0.6, color=palette.series[OUTCOME_COLOURS[name]], label=label,
            edgecolor=palette.surface, linewidth=1,
        )  # fmt: skip
        bottom = [low + high for low, high in zip(bottom, counts, strict=True)]
    _legend(axes, palette)
    axes.set_xlabel("window")
    axes.set_ylabel("prompts")


def _lengths(axes: Axes, data: RunData, palette: Palette) -> None:
    windows = [line.window for line in data.windows]
    _curve(axes, windows, _values(data.windows, "response_length/mean"), palette.series[0], label="training samples")
    if data.evaluations:
        versions = [line.version for line in data.evaluations]
        _curve(axes, versions, _values(data.evaluations, "response_length/mean"), palette.series[1], label="held-out answers")
        _legend(axes, palette)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("window")
    axes.set_ylabel("tokens")


def _truncated(axes: Axes, data: RunData, palette: Palette) -> None:
    shares = _values(data.windows, "response_length/truncated")
    _curve(axes, [line.window for line in data.windows], shares, palette.series[0])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("window")


def _phases(axes: Axes, data: RunData, palette: Palette) -> None:
    windows = [line.window for line in data.windows]
    bottom = [0.0] * len(windows)
    for index, phase in enumerate(PHASES):
        seconds = [line.values.get(f"timing/{phase}_seconds", 0.0) for line in data.windows]
        if not any(seconds):
            continue
        axes.bar(
            windows, seconds, bottom=bottom, width=0.6, color=palette.series[index], label=phase, edgecolor=palette.surface,
            linewidth=1,
        )  # fmt: skip
        bottom = [low + high for low, high in zip(bottom, seconds, strict=True)]
    _legend(axes, palette)
    axes.set_xlabel("window")
    axes.set_ylabel("seconds")


def _throughput(axes: Axes, data: RunData, palette: Palette) -> None:
    speeds = _values(data.windows, "throughput/samples_per_second")
    _curve(axes, [line.window for line in data.windows], speeds, palette.series[0])
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("window")
    axes.set_ylabel("samples/s")


def _has(lines: Callable[[RunData], list[MetricsLine]], name: str) -> Callable[[RunData], bool]:
    return lambda data: any(name in line.values for line in lines(data))


def _windows(data: RunData) -> list[MetricsLine]:
    return data.windows


def _steps(data: RunData) -> list[MetricsLine]:
    return data.steps


PANELS = (
    Panel(
        "Held-out accuracy",
        "Greedy answers to prompts that were never trained on. The band is the 95 % interval for this number of prompts.",
        _accuracy,
        _has(lambda data: data.evaluations, "accuracy"),
    ),
    Panel(
        "Reward", "Mean reward of all samples of a window, at the training temperature.", _reward, _has(_windows, "reward/mean")
    ),
    Panel(
        "Loss",
        "Per optimizer step, in nats. At the first step of a window the policy is its own reference.",
        _loss,
        _has(_steps, "loss"),
    ),
    Panel(
        "Margins",
        "Beta times the log-ratio to the reference (without one, the log-prob per token) of both answers, and their difference.",
        _margins,
        _has(_steps, "rewards/margins"),
    ),
    Panel(
        "Reward accuracy",
        "Share of a step's pairs in which the policy has moved towards the chosen answer since the window began.",
        _reward_accuracy,
        _has(_steps, "rewards/accuracies"),
        in_picture=False,
    ),
    Panel(
        "Clipped tokens",
        "Share of a step's tokens that no longer move the model, because they have become much less or much more likely.",
        _clipped,
        _has(_steps, "clip_ratio/region_mean"),
        in_picture=False,
    ),
    Panel(
        "Entropy",
        "Mean of -log p over the sampled tokens, in nats: how undecided the model is.",
        _entropy,
        _has(_windows, "entropy"),
        in_picture=False,
    ),
    Panel(
        "What became of the prompts",
        "Those whose answers differ in reward gave pairs. The others taught nothing: all answers right, all wrong, otherwise "
        "equal, of the same text, or without rewards.",
        _outcomes,
        _has(_windows, "pairs"),
        in_picture=False,
    ),
    Panel("Response length", "Mean length of the answers.", _lengths, _has(_windows, "response_length/mean")),
    Panel(
        "Truncated answers",
        "Share of the answers that were cut at rollout.maxTokens.",
        _truncated,
        _has(_windows, "response_length/truncated"),
        in_picture=False,
    ),
    Panel(
        "Time per phase",
        "Where a window's time goes. Activate is also the wait for rollouts: in the first window, for vLLM to start.",
        _phases,
        lambda data: any(name.startswith("timing/") for line in data.windows for name in line.values),
    ),
    Panel(
        "Throughput",
        "Samples per second while the rollouts generate.",
        _throughput,
        _has(_windows, "throughput/samples_per_second"),
        in_picture=False,
    ),
)


@dataclass(frozen=True)
class ComparisonChart:
    """A curve of which that of several runs stand in one chart."""

    title: str
    x_label: str
    curve: Callable[[RunData], tuple[list[float], list[float]]]
    has_data: Callable[[RunData], bool]
    is_share: bool = False


def _figure_of_windows(name: str) -> Callable[[RunData], tuple[list[float], list[float]]]:
    return lambda data: ([float(line.window) for line in data.windows], _values(data.windows, name))


COMPARISONS = (
    ComparisonChart(
        "Held-out accuracy",
        "version",
        lambda data: ([float(line.version) for line in data.evaluations], _values(data.evaluations, "accuracy")),
        _has(lambda data: data.evaluations, "accuracy"),
    ),
    ComparisonChart("Reward", "window", _figure_of_windows("reward/mean"), _has(_windows, "reward/mean")),
    ComparisonChart("Loss", "step", lambda data: _by_window(data.steps, "loss"), _has(_steps, "loss")),
    ComparisonChart("Margins", "step", lambda data: _by_window(data.steps, "rewards/margins"), _has(_steps, "rewards/margins")),
    ComparisonChart("Entropy", "window", _figure_of_windows("entropy"), _has(_windows, "entropy")),
    ComparisonChart("Pairs", "window", _figure_of_windows("pairs"), _has(_windows, "pairs")),
    ComparisonChart(
        "Response length", "window", _figure_of_windows("response_length/mean"), _has(_windows, "response_length/mean")
    ),
    ComparisonChart(
        "Truncated answers",
        "window",
        _figure_of_windows("response_length/truncated"),
        _has(_windows, "response_length/truncated"),
        is_share=True,
    ),
    ComparisonChart(
        "Samples per second",
        "window",
        _figure_of_windows("throughput/samples_per_second"),
        _has(_windows, "throughput/samples_per_second"),
    ),
)
