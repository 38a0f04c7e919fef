"""The termination message of a trainer's pod: how it ended, for the operator and for people."""

from typing import Literal

from spinrun_api.base import Count, Record


class TerminationMessage(Record):
    """A termination message: what a trainer writes as it ends."""

    result: Literal["Complete", "Preempted", "Failed"]
    """How it ended."""

    reason: str
    """One word in PascalCase: Completed, Preempted, InvalidConfiguration, LedgerUnavailable, Superseded, NoPairs, …"""

    message: str
    """What happened and what to do, for people."""

    exit_code: int
    """Exit code that goes with it."""

    window: Count | None = None
    """Window it was in."""

    step: Count | None = None
    """Optimizer steps done."""

    version: Count | None = None
    """Newest published version."""

    accuracy: float | None = None
    """Last accuracy."""

    initial_accuracy: float | None = None
    """Accuracy of version 0."""
