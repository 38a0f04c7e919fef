"""What a suspended run keeps: first its trainer goes, with a checkpoint, and then its rollouts and scorers."""

from datetime import datetime

from spinrun_api.spec import SpinRunSpec
from spinrun_api.status import Condition
from spinrun_kube import times


def wanted_servers(spec: SpinRunSpec, replicas: int, *, over: bool, trainer_alive: bool) -> int:
    """Pods of rollouts or scorers that the run should have: `replicas`, as the spec asks for, or none.

    A trainer that still writes its checkpoint keeps them: it may be sampling.
    """
    return 0 if (over or spec.lifecycle.suspend) and not trainer_alive else replicas


def paused_seconds(before: int | None, suspended: Condition | None, now: datetime) -> int:
    """Seconds of all pauses, when the last one ends now."""
    if suspended is None or suspended.status != "True":
        return before or 0
    return (before or 0) + round(times.seconds_between(times.from_text(suspended.last_transition_time), now))
