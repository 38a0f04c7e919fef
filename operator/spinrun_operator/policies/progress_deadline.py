"""When an attempt that gets no further is ended: progressDeadlineSeconds after it last did."""

from spinrun_api.spec import Lifecycle
from spinrun_operator.observed import TrainerProgress
from spinrun_operator.policies.failure import AttemptEnd, Cause


def seconds_left(lifecycle: Lifecycle, stalled_seconds: float | None) -> float | None:
    """Seconds until the attempt is to be ended, if it gets no further; None without a limit, and while it waits for nodes.

    Args:
        lifecycle: The run's.
        stalled_seconds: How long the attempt has not got any further; None while its pods wait for nodes.
    """
    if lifecycle.progress_deadline_seconds is None or stalled_seconds is None or lifecycle.suspend:
        return None
    return max(0.0, lifecycle.progress_deadline_seconds - stalled_seconds)


def stalled_end(lifecycle: Lifecycle, stalled_seconds: float | None, told: TrainerProgress | None) -> AttemptEnd | None:
    """The end of an attempt that has stalled for too long; None for another.

    Args:
        lifecycle: As above.
        stalled_seconds: As above.
        told: What this attempt's rank 0 said last; None where it has said nothing.
    """
    if seconds_left(lifecycle, stalled_seconds) != 0.0:
        return None
    limit = f"no progress within progressDeadlineSeconds: {lifecycle.progress_deadline_seconds}"
    if told is None:
        return AttemptEnd(Cause.STALLED, f"{limit}; its trainer has told nothing yet")
    last = told.progress
    waits = f" ({last.message})" if last.message else ""
    return AttemptEnd(Cause.STALLED, f"{limit}; last seen: {last.activity}{waits}, window {last.window}, step {last.step}")
