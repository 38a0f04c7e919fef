"""When a run has had its time: activeDeadlineSeconds from the first start of the trainer, pauses excluded."""

from datetime import datetime

from spinrun_api.spec import Lifecycle
from spinrun_api.status import SpinRunStatus
from spinrun_kube import times


def deadline(lifecycle: Lifecycle, status: SpinRunStatus) -> datetime | None:
    """When the run must have ended; None without a limit, before the first start, and while the run is suspended."""
    if lifecycle.active_deadline_seconds is None or status.start_time is None or lifecycle.suspend:
        return None
    allowed = lifecycle.active_deadline_seconds + (status.paused_seconds or 0)
    return times.later(times.from_text(status.start_time), allowed)
