"""What the status of a run says of its progress and its end."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from spinrun_api.status import Condition, Metrics, RolloutStatus, SpinRunStatus
from spinrun_cli.show.snapshot import Outcome, Snapshot, WindowFigures
from spinrun_kube import times
from spinrun_protocol.wire import Activity, Progress

Json = dict[str, Any]


def status_of(run: Json) -> SpinRunStatus:
    """The status of a run; an empty one where the operator has not seen it yet."""
    return SpinRunStatus.model_validate(run.get("status") or {})


def condition(status: SpinRunStatus, kind: str) -> Condition | None:
    """The condition of a type when it holds."""
    return next((each for each in status.conditions if each.type == kind and each.status == "True"), None)


def outcome(status: SpinRunStatus) -> Condition | None:
    """The condition Complete or Failed of a run that is over."""
    return condition(status, "Complete") or condition(status, "Failed")


def is_finished(run: Json) -> bool:
    """Whether the run is Complete or Failed."""
    return outcome(status_of(run)) is not None


def snapshot_of(
    name: str, status: SpinRunStatus, *, accuracies: Mapping[int, float] | None = None, news: Sequence[str] = ()
) -> Snapshot:
    """A run at the moment of its status.

    Args:
        name: Name of the run.
        status: Its status, which has the newest figures only.
        accuracies: What has been seen before, by window.
        news: The newest Events.
    """
    end, trouble = outcome(status), condition(status, "Degraded")
    return Snapshot(
        name=name,
        phase=status.phase or "waiting for the operator",
        attempt=status.attempt or 0,
        progress=progress_of(status),
        windows=[WindowFigures(window, accuracy=value) for window, value in sorted((accuracies or {}).items())],
        trouble=f"{trouble.reason}: {trouble.message}" if trouble else "",
        news=news,
        outcome=Outcome(end.type, end.message, end.reason) if end else None,
    )


def progress_of(status: SpinRunStatus) -> Progress | None:
    """What the status tells of the trainer's progress; None before there is any."""
    if status.window is None:
        return None
    seconds = None
    if status.eta is not None:
        seconds = times.seconds_between(times.utc_now(), times.from_text(status.eta))
    fields = status.model_dump(include={"window", "windows", "step", "total_steps", "version", "best"}, exclude_none=True)
    return Progress.model_validate(
        {"windows": 0, "step": 0, "total_steps": 0}
        | fields
        | {
            "uid": "",
            "attempt": status.attempt or 1,
            "activity": status.activity if status.activity in get_args(Activity) else "starting",
            "rollouts": status.rollouts or RolloutStatus(),
            "metrics": status.metrics or Metrics(),
            "eta_seconds": seconds,
        }
    )
