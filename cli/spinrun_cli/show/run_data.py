"""What a report and a comparison are made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator

from spinrun_api.json_values import checked_json
from spinrun_api.status import Best
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import TerminationMessage
from spinrun_worker.records import ScoredGroup

Item = TypeVar("Item")

LARGEST_FIGURE = 1e30
"""No figure of a run is larger; one that is leaves nothing of the others on an axis, or no axis can have it."""

Document = Annotated[dict[str, Any], AfterValidator(checked_json)]
"""A SpinRun as a file has it: JSON of any shape, since it may be from another version, or damaged."""


def value_at(document: object, *path: str) -> object:
    """What stands at a path of a document; None where the path leads nowhere.

    Args:
        document: Of any shape.
        path: Keys, one inside the other.
    """
    for key in path:
        document = cast(dict[str, object], document).get(key) if isinstance(document, dict) else None
    return document


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """The first, the last and some between, where there are too many.

    Args:
        items: In their order.
        most: How many to keep, at least 2.
    """
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _sound(lines: list[MetricsLine]) -> list[MetricsLine]:
    """The lines without figures that nothing can be made of."""
    return [
        line.model_copy(update={"values": {name: each for name, each in line.values.items() if _is_sound(each)}})
        for line in lines
    ]


def _is_sound(figure: float) -> bool:
    return math.isfinite(figure) and abs(figure) <= LARGEST_FIGURE


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

    def sound(self) -> "RunData":
        """The run without figures that are not finite or beyond all measure, and how many these were among its notes."""
        lines = [*self.steps, *self.windows, *self.evaluations]
        odd = sum(not _is_sound(figure) for line in lines for figure in line.values.values())
        if not odd:
            return self
        note = f"{odd} figures are left out: they are not finite, or beyond {LARGEST_FIGURE:g}."
        steps, windows, evaluations = (_sound(each) for each in (self.steps, self.windows, self.evaluations))
        return replace(self, steps=steps, windows=windows, evaluations=evaluations, notes=[*self.notes, note])

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
