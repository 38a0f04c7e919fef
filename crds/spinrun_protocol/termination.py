"""The termination message of a container of ours: how it ended, for the operator and for people."""

from typing import Literal

from spinrun_api.base import Count, Record
from spinrun_api.redaction import redacted_text

MAX_BYTES = 4096
"""Longest termination message that Kubernetes keeps."""


class TerminationMessage(Record):
    """A termination message: what a trainer writes as it ends, and the check of a rollout's model."""

    result: Literal["Complete", "Preempted", "Failed"]
    """How it ended."""

    reason: str
    """One word in PascalCase: Completed, Preempted, InvalidConfiguration, LedgerUnavailable, Superseded, NoPairs, NoPrompts, …"""

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


def encode(words: TerminationMessage) -> bytes:
    """Compact JSON of at most MAX_BYTES, without secrets; a message that is too long is truncated."""
    # Paths and foreign messages may hold bytes that are not text; JSON cannot.
    message = redacted_text(words.message).encode(errors="replace").decode()
    while (excess := len(_json(words, message)) - MAX_BYTES) > 0 and len(message) > 1:
        message = message[: -excess - 1] + "…"
    return _json(words, message)


def _json(words: TerminationMessage, message: str) -> bytes:
    return words.model_copy(update={"message": message}).model_dump_json(by_alias=True, exclude_none=True).encode()
