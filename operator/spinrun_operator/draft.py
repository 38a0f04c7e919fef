"""The next status of a run while it is being written, and the Events on the way there."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from spinrun_api.redaction import redacted_text
from spinrun_api.status import Condition, SpinRunStatus
from spinrun_kube import times
from spinrun_operator.plan import Event
from spinrun_operator.status import condition_of, is_true

LONGEST_MESSAGE = 32768
"""Characters that the API allows in a condition's message."""


@dataclass
class Draft:
    """A status that the steps of a reconcile change one after the other."""

    before: SpinRunStatus
    """The status as it was, which stays."""
    generation: int | None
    now: datetime
    status: SpinRunStatus = field(init=False)
    """As far as it is written; its conditions are still the old ones."""
    conditions: list[Condition] = field(default_factory=list[Condition])
    """Those that have been decided, in the order in which they were."""
    events: list[Event] = field(default_factory=list[Event])

    def __post_init__(self) -> None:
        self.status = self.before.model_copy(update={"observed_generation": self.generation})

    def change(self, **fields: Any) -> None:
        """Writes fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def record_event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Adds an Event. Like a condition, it is without secrets: containers and servers may have written of it."""
        self.events.append(Event(kind, reason, redacted_text(message)))

    def was(self, kind: str) -> bool:
        """Whether a condition was True."""
        return is_true(self.before, kind)

    def set(self, kind: str, is_true: bool, reason: str, message: str = "") -> None:
        """Decides a condition. The time of its last transition stays while its status does."""
        status = "True" if is_true else "False"
        before = condition_of(self.before, kind)
        # What is quoted of an object may hold half a character, which JSON can and a status cannot.
        text = message[:LONGEST_MESSAGE].encode(errors="replace").decode()
        changed = times.to_text(self.now) if before is None or before.status != status else before.last_transition_time
        self.conditions.append(
            Condition(
                type=kind,
                status=status,
                reason=reason,
                message=redacted_text(text),
                last_transition_time=changed,
                observed_generation=self.generation,
            )
        )

    def keep(self, kind: str) -> None:
        """Leaves a condition as it was."""
        if before := condition_of(self.before, kind):
            self.conditions.append(before)

    def result(self, **fields: Any) -> SpinRunStatus:
        """The status with the conditions that were decided, and these last fields."""
        return self.status.model_copy(update={"conditions": self.conditions, **fields})
