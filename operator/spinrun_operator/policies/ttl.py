"""When a run that is over is deleted: ttlSecondsAfterFinished after its end."""

from datetime import datetime

from spinrun_api.spec import Lifecycle
from spinrun_api.status import SpinRunStatus
from spinrun_kube import times


def deletion_time(lifecycle: Lifecycle, status: SpinRunStatus) -> datetime | None:
    """When the run is to be deleted; None for never, or while it is not over."""
    if lifecycle.ttl_seconds_after_finished is None or status.completion_time is None:
        return None
    return times.later(times.from_text(status.completion_time), lifecycle.ttl_seconds_after_finished)
