"""What every tracker can do, and what it is told about a run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from spinrun_api.redaction import redacted
from spinrun_api.run import SpinRun
from spinrun_protocol.ledger import MetricsLine, RunRecord

AttemptResult = Literal["complete", "preempted", "failed"]
"""How an attempt ended; after the last two another attempt may continue the same run."""


class Tracker(Protocol):
    """Shows a run in one place. One thread uses it; any call may take long, and raise anything."""

    @property
    def place(self) -> str:
        """Where a person finds the run."""
        ...

    def write(self, line: MetricsLine) -> None:
        """Show the figures of a step, a window or an evaluation."""
        ...

    def close(self, result: AttemptResult, /) -> None:
        """Send the rest, and end the run for this attempt."""
        ...


def figures(line: MetricsLine) -> dict[str, float]:
    """The figures of a line, under names that distinguish those of windows and evaluations from those of steps."""
    prefix = "" if line.event == "step" else f"{line.event}/"
    return {prefix + name: value for name, value in line.values.items()}


def run_of(record: RunRecord) -> SpinRun:
    """The run that a record describes."""
    return SpinRun.model_validate(record.run)


def settings(record: RunRecord) -> dict[str, Any]:
    """What people compare runs by: the spec, without secrets and pod templates; versions and machine."""
    spec: dict[str, Any] = record.run["spec"]
    shown = {name: {key: value for key, value in block.items() if key != "template"} for name, block in spec.items()}
    own = {"versions": record.versions, "machine": record.machine, "worldSize": record.world_size}
    return redacted(shown | own)


def flattened(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a block, by its path, such as trainer.learningRate.

    Args:
        document: Nested blocks.
        above: Prefix of the paths.
    """
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{above}{name}.")
        else:
            yield above + name, value


def folder_of(run: SpinRun, root: Path) -> Path:
    """The run's own folder below one that many runs share."""
    return root / run.ledger_name()
