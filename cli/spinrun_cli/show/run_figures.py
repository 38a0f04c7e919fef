"""A run's newest figures taken together: shares of its prompts and of its time, and settings of its spec. Pure."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from spinrun_cli.show.run_data import RunData, value_at
from spinrun_cli.show.text import figure
from spinrun_protocol.ledger import MetricsLine

RECENT_WINDOWS = 3
"""So many of the newest windows are looked at: what limits a run changes as it learns."""
PHASES = ("generate", "train", "reference", "evaluate", "publish", "activate", "checkpoint", "score")
"""Phases of a window, in the order in which they are stacked: the longest first."""
OUTCOMES = {
    "paired_prompts": "pairs",
    "all_right": "all right",
    "all_wrong": "all wrong",
    "other_ties": "other ties",
    "ties": "ties",  # of windows from before they were told apart
    "identical": "identical",
    "unrated": "unrated",
}
"""What becomes of a prompt: the figure that counts it, and its word."""
SPEED = "throughput/samples_per_second"
PREFERENCES = ("rule", "judge", "rewardModel", "ranker", "groundTruth")
LARGEST_SETTING = 10**9


class Figures:
    """A run's figures as the rules look at them: those of its newest windows, taken together."""

    def __init__(self, data: RunData) -> None:
        """Take the figures of a run. data: whose figures are all finite."""
        self._document = data.document
        windows = _newest(data.windows, "window")
        self.windows = windows[-RECENT_WINDOWS:]
        """The newest, each as it was done last."""
        self.all_windows = windows
        self.steps = data.steps
        self.evaluations = _newest([line for line in data.evaluations if "accuracy" in line.values], "version")
        # An attempt that takes a window from the ledger waits for no answers: its times are not those of a window.
        self.timed = [line for line in self.windows if SPEED in line.values] or self.windows
        """Those whose prompts were answered by the attempt that has timed it."""
        self._starting = {line.window for before, line in pairwise(windows) if before.attempt != line.attempt}
        self._starting |= {line.window for line in windows[:1]}

    @property
    def when(self) -> str:
        """Which windows are looked at."""
        return _span(self.windows)

    def total(self, name: str) -> float:
        """The sum of a figure."""
        return sum(max(0.0, line.values.get(name, 0.0)) for line in self.windows)

    def mean(self, name: str) -> float:
        """The mean of a figure over the windows that have it; 0 without any."""
        values = [line.values[name] for line in self.windows if name in line.values]
        return sum(values) / len(values) if values else 0.0

    def last(self, name: str) -> float:
        """A figure of the newest window; 0 where it has none."""
        return max(0.0, self.windows[-1].values.get(name, 0.0)) if self.windows else 0.0

    @property
    def prompts(self) -> dict[str, float]:
        """How many prompts became what."""
        windows = [outcomes_of(line.values) for line in self.windows]
        return {name: sum(window.get(name, 0.0) for window in windows) for name in OUTCOMES}

    def of_prompts(self, *outcomes: str) -> tuple[float, str]:
        """The share of the prompts that became one of these, and the same in words."""
        prompts = self.prompts
        count, total = sum(prompts[outcome] for outcome in outcomes), sum(prompts.values())
        share = ratio(count, total)
        return share, f"{percent(share)} of the prompts of {self.when} ({figure(count, 0)} of {figure(total, 0)})"

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds in each phase. In an attempt's first window activation is also the wait for vLLM to start, and left out."""
        return {
            phase: sum(
                max(0.0, line.values.get(f"timing/{phase}_seconds", 0.0))
                for line in self.timed
                if phase != "activate" or line.window not in self._starting
            )
            for phase in PHASES
        }

    @property
    def when_timed(self) -> str:
        """Of which windows these are."""
        return _span(self.timed)

    def of_time(self, *phases: str) -> tuple[float, str]:
        """The share of the time that phases take, and the same in words."""
        seconds = self.seconds
        spent, total = sum(seconds[phase] for phase in phases), sum(seconds.values())
        share = ratio(spent, total)
        return share, f"{percent(share)} of the time of {self.when_timed} ({figure(spent, 1)} of {figure(total, 1)} s)"

    def setting(self, *path: str, default: float) -> float:
        """A number of the spec; the default where there is none, or nothing that could be one."""
        value = value_at(self._document, "spec", *path)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_SETTING:
            return default
        return float(value)

    def named(self, *path: str) -> str:
        """A field of the spec by its path, with its number where the spec has one."""
        value = self.setting(*path, default=math.nan)
        return ".".join(("spec", *path)) + ("" if math.isnan(value) else f" ({value:g})")

    def choice(self, *path: str, default: str) -> str:
        """A word of the spec."""
        value = value_at(self._document, "spec", *path)
        return value if isinstance(value, str) and len(value) < 100 else default

    def block(self, *path: str) -> dict[str, object]:
        """A block of the spec; empty where there is none."""
        value = value_at(self._document, "spec", *path)
        return dict(value) if isinstance(value, dict) else {}

    @property
    def preference(self) -> str:
        """The preference's block, as a document calls it."""
        return next((name for name in PREFERENCES if name in self.block("preference")), "rule")

    @property
    def steps_per_window(self) -> float:
        """Optimizer steps of a window, without those on replayed pairs."""
        reference = self.setting("method", "refUpdateFreq", default=16)
        return self.setting("method", "rolloutUpdateFreq", default=0) or reference

    @property
    def answering_seconds(self) -> float:
        """How long the rollouts were answering the windows' prompts, whether or not the trainer waited for them."""
        return sum(_answering_seconds(line.values) for line in self.timed)

    @property
    def fills_windows(self) -> bool:
        """Whether windows ask prompts until they have enough pairs; a ledger may have their figures and no spec."""
        return self.setting("trainer", "pairsPerStep", default=0) > 0 or any("prompts" in line.values for line in self.windows)

    @property
    def overlaps(self) -> bool:
        """Whether the rollouts are a window ahead."""
        return self.setting("method", "overlap", default=0) > 0


def outcomes_of(values: Mapping[str, float]) -> dict[str, float]:
    """How many prompts of a window became what. Each is counted once: ties by what they are or, in windows from before they were
    told apart, as a whole.

    Args:
        values: The window's figures.
    """
    counted = {name: values.get(name, 0.0) for name in ("identical", "unrated")}
    if "paired_prompts" in values:
        counted |= {name: values.get(name, 0.0) for name in ("paired_prompts", "all_right", "all_wrong", "other_ties")}
    else:
        counted |= {"paired_prompts": values.get("pairs", 0.0), "ties": values.get("ties", 0.0)}
    return {name: max(0.0, count) for name, count in counted.items()}


def ratio(part: float, whole: float) -> float:
    """A share from 0 to 1; 0 of nothing."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def percent(share: float) -> str:
    """0.61 as 61 %."""
    return f"{share:.0%}".replace("%", " %")


def _newest(lines: Sequence[MetricsLine], number: Literal["window", "version"]) -> list[MetricsLine]:
    """The last line of each window or version, in their order: an attempt repeats what came after its checkpoint."""
    newest = {getattr(line, number): line for line in lines}
    return [newest[each] for each in sorted(newest)]


def _span(lines: Sequence[MetricsLine]) -> str:
    """Windows in words."""
    first, last = lines[0].window, lines[-1].window
    return f"window {first}" if len(lines) == 1 else f"windows {first} to {last}"


def _answering_seconds(values: Mapping[str, float]) -> float:
    speed = values.get(SPEED, 0.0)
    return max(0.0, values.get("samples", 0.0) / speed if speed > 0 else values.get("timing/generate_seconds", 0.0))


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share that was seen in a number of trials (Wilson's score interval). A mean outside 0..1, or without
    trials, is an interval of one point."""
    if not 0 < count < math.inf or not 0 <= share <= 1:
        return share, share
    z = 1.96
    # Everything is multiplied by the count, which a damaged file may have near 0.
    centre = (share * count + z * z / 2) / (count + z * z)
    half = z * math.sqrt(share * (1 - share) * count + z * z / 4) / (count + z * z)
    return centre - half, centre + half
