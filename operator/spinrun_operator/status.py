"""The status of a run: conditions by the conventions of the Kubernetes API, and the figures that the trainer tells."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from spinrun_api.documents import InvalidDocumentError
from spinrun_api.status import Condition, Metrics, RolloutStatus, ScorerStatus, SpinRunStatus
from spinrun_kube import times
from spinrun_operator import reasons
from spinrun_operator.observed import TrainerProgress

READY = "Ready"
PROGRESSING = "Progressing"
SUSPENDED = "Suspended"
COMPLETE = "Complete"
FAILED = "Failed"
DEGRADED = "Degraded"
LEDGER_UNAVAILABLE = "LedgerUnavailable"

# Digits of the figures that people see: more would make writes that nobody can tell apart.
METRIC_DIGITS = 4


@dataclass
class Conditions:
    """The conditions of a run, being rewritten."""

    now: datetime
    generation: int | None
    before: list[Condition] = field(default_factory=list[Condition])
    after: list[Condition] = field(default_factory=list[Condition])

    def get(self, kind: str) -> Condition | None:
        """The condition as it was."""
        return next((condition for condition in self.before if condition.type == kind), None)

    def holds(self, kind: str) -> bool:
        """Whether the condition was True."""
        condition = self.get(kind)
        return condition is not None and condition.status == "True"

    def set(self, kind: str, holds: bool, reason: str, message: str = "") -> None:
        """Says what holds now. The time of the last transition stays while the status does."""
        status = "True" if holds else "False"
        before = self.get(kind)
        changed = times.to_text(self.now) if before is None or before.status != status else before.last_transition_time
        self.after.append(
            Condition(
                type=kind,
                status=status,
                reason=reason,
                message=message[:32768],
                last_transition_time=changed,
                observed_generation=self.generation,
            )
        )

    def keep(self, kind: str) -> None:
        """Leaves the condition as it was."""
        if before := self.get(kind):
            self.after.append(before)


def invalid(before: SpinRunStatus, error: InvalidDocumentError, generation: int | None, now: datetime) -> SpinRunStatus:
    """The status of a run whose spec this operator cannot read: everything stays as it was, and the problems are named."""
    conditions = Conditions(now, generation, before.conditions)
    message = "; ".join(str(problem) for problem in error.problems)
    replaced = (READY, PROGRESSING, DEGRADED)
    for condition in before.conditions:
        if condition.type not in replaced:
            conditions.keep(condition.type)
    conditions.set(READY, False, reasons.INVALID_SPEC, message)
    conditions.set(PROGRESSING, False, reasons.INVALID_SPEC, message)
    conditions.set(DEGRADED, True, reasons.INVALID_SPEC, message)
    return before.model_copy(update={"conditions": conditions.after, "observed_generation": generation})


def current_attempt(status: SpinRunStatus) -> int:
    """Number of the attempt that is under way, or comes first."""
    return status.attempt or 1


def is_finished(status: SpinRunStatus) -> bool:
    """Whether the run has completed or failed for good."""
    return any(condition.type in (COMPLETE, FAILED) and condition.status == "True" for condition in status.conditions)


def with_progress(status: SpinRunStatus, seen: TrainerProgress | None) -> SpinRunStatus:
    """The status with what rank 0 said; unchanged when it is not this attempt that spoke."""
    if seen is None or seen.progress.attempt != status.attempt:
        return status
    progress = seen.progress
    eta = None
    if progress.eta_seconds is not None:
        eta = times.to_text(seen.received + timedelta(seconds=progress.eta_seconds))
    version = status.version if progress.version is None else progress.version
    return status.model_copy(
        update={
            "window": progress.window,
            "windows": progress.windows,
            "step": progress.step,
            "total_steps": progress.total_steps,
            "version": version,
            "activity": progress.activity,
            "metrics": _rounded(progress.metrics),
            "best": progress.best or status.best,
            "eta": eta,
        }
    )


def with_servers(
    status: SpinRunStatus, *, rollouts: RolloutStatus, scorers: ScorerStatus | None, seen: TrainerProgress | None
) -> SpinRunStatus:
    """The status with rollouts and scorers, each as a group. seen: tells which version the rollouts serve."""
    version = seen.progress.rollouts.version if seen is not None and rollouts.ready else None
    return status.model_copy(update={"rollouts": rollouts.model_copy(update={"version": version}), "scorers": scorers})


def _rounded(metrics: Metrics) -> Metrics:
    values = metrics.model_dump(exclude_none=True)
    return Metrics(**{name: round(value, METRIC_DIGITS) for name, value in values.items()})
