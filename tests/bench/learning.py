"""What `make bench-learning` has measured: kept as it comes, as a table and as a picture. Runs nothing."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from spinrun_cli.show.charts import LIGHT, SETTINGS
from spinrun_protocol.ledger import MetricsLine

MARGIN = 0.15
"""What the last version must have gained on version 0: more than chance gives 90 answers."""


@dataclass(frozen=True)
class Outcome:
    """One run: its evaluated versions, in order. The lists have an entry for each."""

    steps: list[int]
    """Optimizer steps that made the version."""
    accuracy: list[float]
    """Share of held-out questions that are answered rightly."""
    tokens: list[int]
    """Tokens generated for training until it was there; held-out answers are left out."""
    seconds: list[float]
    """Since the start of the process until it was trained; for version 0 until it was evaluated."""

    @property
    def gain(self) -> float:
        """Of the last version on version 0."""
        return self.accuracy[-1] - self.accuracy[0]

    def within(self, budget: float, spent: Sequence[float]) -> float:
        """Accuracy that a budget buys: between two versions that which lies on the line between them.

        Args:
            budget: Tokens or seconds.
            spent: The same of each version.
        """
        if budget <= spent[0]:
            return self.accuracy[0]
        for (before, after), (low, high) in zip(pairwise(spent), pairwise(self.accuracy), strict=True):
            if budget <= after:
                return low + (high - low) * (budget - before) / (after - before)
        return self.accuracy[-1]


Results = dict[str, dict[str, dict[int, Outcome]]]
"""By task, row and seed."""


def outcome(lines: Iterable[MetricsLine], started: float) -> Outcome | None:
    """The outcome of a run's figures, or None where there is no evaluation.

    Args:
        lines: All lines of metrics.jsonl that count.
        started: When the process was started, seconds since 1970.
    """
    lines = list(lines)
    # Version N is what window N - 1 has made.
    windows = sorted((line for line in lines if line.event == "window"), key=lambda line: line.window)
    tokens, spent, trained, steps = 0, [0], [0.0], [0]
    for line in windows:
        tokens += round(line.values["samples"] * line.values.get("response_length/mean", 0.0))
        spent.append(tokens)
        trained.append(line.time - started)
        steps.append(line.step)
    evaluations = {line.version: line for line in lines if line.event == "evaluation"}
    versions = sorted(version for version in evaluations if version < len(spent))
    if not versions:
        return None
    return Outcome(
        steps=[steps[version] for version in versions],
        accuracy=[evaluations[version].values["accuracy"] for version in versions],
        tokens=[spent[version] for version in versions],
        seconds=[round(trained[version] if version else evaluations[0].time - started, 1) for version in versions],
    )


def load(path: Path) -> Results:
    """What a file holds; nothing if it does not exist."""
    if not path.exists():
        return {}
    whole = json.loads(path.read_text())
    return {
        task: {row: {int(seed): Outcome(**values) for seed, values in by_seed.items()} for row, by_seed in rows.items()}
        for task, rows in whole.items()
    }


def store(path: Path, results: Results) -> None:
    """Write the file as a whole: it is complete at any time."""
    plain = {
        task: {
            row: {str(seed): asdict(by_seed[seed]) for seed in sorted(by_seed)}
            for row, by_seed in sorted(rows.items())
            if by_seed
        }
        for task, rows in sorted(results.items())
    }
    temporary = path.with_suffix(".new")
    temporary.write_text(_short_lists(json.dumps(plain, indent=1)) + "\n")
    temporary.replace(path)


def _short_lists(text: str) -> str:
    """JSON with each list in one line."""
    lines: list[str] = []
    for line in text.split("\n"):
        if lines and (lines[-1].endswith("[") or (lines[-1].count("[") == 1 and "]" not in lines[-1])):
            lines[-1] += (" " if lines[-1].endswith(",") else "") + line.strip()
        else:
            lines.append(line)
    return "\n".join(lines)


def markdown(results: Results, rows: Sequence[str], *, tokens: Sequence[int], seconds: Sequence[int]) -> str:
    """The table for the page: a line for each task and row, means over its seeds.

    Args:
        results: What has been measured.
        rows: The rows in their order.
        tokens: Budgets of generated tokens.
        seconds: Budgets of time.
    """
    budgets = [*(f"{each // 1000}k tokens" for each in tokens), *(f"{each} s" for each in seconds)]
    names = ["task", "run", "seeds", "version 0", "last", "last by seed", "gain", *budgets, "tokens", "seconds", ""]
    table = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for task, measured in results.items():
        for row in rows:
            outcomes = measured.get(row)
            if not outcomes:
                continue
            each = [outcomes[seed] for seed in sorted(outcomes)]
            figures = [
                f"{_mean(each, lambda one: one.accuracy[0]):.3f}",
                f"{_mean(each, lambda one: one.accuracy[-1]):.3f}",
                ", ".join(f"{one.accuracy[-1]:.3f}" for one in each),
                f"{_mean(each, lambda one: one.gain):+.3f}",
                *(f"{_mean(each, lambda one, most=most: one.within(most, one.tokens)):.3f}" for most in tokens),
                *(f"{_mean(each, lambda one, most=most: one.within(most, one.seconds)):.3f}" for most in seconds),
                f"{_mean(each, lambda one: one.tokens[-1]) / 1000:.1f}k",
                f"{_mean(each, lambda one: one.seconds[-1]):.0f}",
            ]
            mark = "learned" if learned(each) else "gained less"
            table.append(f"| {task} | {row} | {len(each)} | " + " | ".join([*figures, mark]) + " |")
    return "\n".join(table)


def learned(outcomes: Iterable[Outcome]) -> bool:
    """Whether the runs of a row gained MARGIN: each seed for itself, so that a lucky one hides none."""
    return all(one.gain >= MARGIN for one in outcomes)


def _mean(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> float:
    return statistics.mean(map(value, outcomes))


def draw(results: Results, groups: Mapping[str, Sequence[str]], path: Path) -> None:
    """Accuracy by generated tokens and by seconds: a column for each group of rows, two lines of charts for each task.

    Args:
        results: What has been measured.
        groups: Titles of columns, and the rows that each compares.
        path: Of the picture.
    """
    lines = [(task, axis) for task in results for axis in ("tokens", "seconds")]
    with mpl.rc_context({**SETTINGS, "svg.fonttype": "path"}):
        figure = Figure(figsize=(3.7 * len(groups), 2.5 * max(len(lines), 1)), layout="constrained", facecolor=LIGHT.surface)
        charts = figure.subplots(max(len(lines), 1), len(groups), sharey="row", sharex="row", squeeze=False)
        for (task, axis), line in zip(lines, charts, strict=False):
            for (title, rows), axes in zip(groups.items(), line, strict=True):
                _chart(axes, results[task], rows, axis)
                axes.set_title(f"{task}: {title}", fontsize=9, color=LIGHT.text, loc="left")
        figure.savefig(path, dpi=90, metadata={"Software": None})


def _chart(axes: Axes, measured: Mapping[str, Mapping[int, Outcome]], rows: Sequence[str], axis: str) -> None:
    for row, colour in zip(rows, LIGHT.series, strict=False):
        outcomes = list(measured.get(row, {}).values())
        if not outcomes:
            continue
        common = min(len(one.accuracy) for one in outcomes)
        x = [statistics.mean(getattr(one, axis)[index] for one in outcomes) for index in range(common)]
        y = [statistics.mean(one.accuracy[index] for one in outcomes) for index in range(common)]
        for one in outcomes:
            axes.plot(getattr(one, axis), one.accuracy, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=3, label=row)
    axes.set_xlabel("generated tokens" if axis == "tokens" else "seconds from start", fontsize=8, color=LIGHT.muted)
    if axis == "tokens":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, 1.02)
    axes.grid(axis="y", color=LIGHT.grid)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT.muted, length=0, labelsize=8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, loc="lower right", labelcolor=LIGHT.text)
