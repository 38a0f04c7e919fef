"""What a reconcile decides: plain data, which executor.py carries out in the order of its fields."""

from dataclasses import dataclass, field
from typing import Any, Literal

from spinrun_api.status import SpinRunStatus

Json = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """An Event about the run, for people."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do.

    The status comes first: an attempt's number, and the failures that count, are on record before the attempt's Job exists.
    """

    status: SpinRunStatus
    apply: list[Json] = field(default_factory=list[Json])
    """Children as they should be."""

    delete: list[Json] = field(default_factory=list[Json])
    """Children, as they were seen, that should go."""

    delete_run: bool = False
    """Whether the run itself has outlived its ttl; then nothing else is done."""

    events: list[Event] = field(default_factory=list[Event])
    only_starts: bool = False
    """Whether status and Events tell of nothing but a start that goes as it should, of which there will soon be more to tell."""
    requeue_seconds: float | None = None
    """When to look again even if nothing happens."""
