"""Reading a run's status, and the figures in it that the trainer and the servers tell."""

from spinrun_api.status import Condition, Metrics, RolloutStatus, ScorerStatus, SpinRunStatus
from spinrun_kube import times
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


def condition_of(status: SpinRunStatus, kind: str) -> Condition | None:
    """The condition of that type."""
    return next((condition for condition in status.conditions if condition.type == kind), None)


def is_true(status: SpinRunStatus, kind: str) -> bool:
    """Whether the condition of that type is there and True."""
    condition = condition_of(status, kind)
    return condition is not None and condition.status == "True"


def is_finished(status: SpinRunStatus) -> bool:
    """Whether the run has completed or failed for good."""
    return is_true(status, COMPLETE) or is_true(status, FAILED)


def current_attempt(status: SpinRunStatus) -> int:
    """Number of the attempt that is under way, or comes first."""
    return status.attempt or 1


def with_progress(status: SpinRunStatus, seen: TrainerProgress | None) -> SpinRunStatus:
    """The status with what rank 0 said; unchanged when it is not this attempt that spoke."""
    if seen is None or seen.progress.attempt != status.attempt:
        return status
    progress = seen.progress
    eta = None
    if progress.eta_seconds is not None:
        eta = times.to_text(times.later(seen.received, progress.eta_seconds))
    version = status.version if progress.version is None else progress.version
    return status.model_copy(
        update={
            "window": progress.window,
            "windows": progress.windows,
            "step": progress.step,
            "total_steps": progress.total_steps,
            "version": version,
            "activity": progress.activity,
            "metrics": rounded(progress.metrics),
            "best": progress.best or status.best,
            "eta": eta,
        }
    )


def with_servers(
    status: SpinRunStatus, *, rollouts: RolloutStatus, scorers: ScorerStatus | None, seen: TrainerProgress | None
) -> SpinRunStatus:
    """The status with rollouts and scorers, each as a group.

    Args:
        status: The status before.
        rollouts: How many there are, and should be.
        scorers: The same; None for a run without any.
        seen: What rank 0 said: it knows which version the rollouts serve.
    """
    version = seen.progress.rollouts.version if seen is not None and rollouts.ready else None
    return status.model_copy(update={"rollouts": rollouts.model_copy(update={"version": version}), "scorers": scorers})


def rounded(metrics: Metrics) -> Metrics:
    """The figures with as many digits as people see."""
    values = metrics.model_dump(exclude_none=True)
    return Metrics(**{name: round(value, METRIC_DIGITS) for name, value in values.items()})
