"""How an attempt of the trainer ended, and what follows from it: the next attempt, counted or not, or the end of the run."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Literal

from pydantic import ValidationError

from spinrun_api.spec import Lifecycle
from spinrun_kube import times
from spinrun_operator import reasons
from spinrun_operator.observed import has_condition, is_deleted
from spinrun_operator.settings import Settings
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.policy import Action, decide
from spinrun_protocol.termination import TerminationMessage

Json = dict[str, Any]

MESSAGE_LIMIT = 1000
"""Characters of a trainer's termination message that go into a condition."""

# What a kubelet says of a container of which it knows nothing any more: the node was lost or restarted.
_LOST_CONTAINER = "ContainerStatusUnknown"


class Cause(Enum):
    """What ended an attempt."""

    COMPLETE = "complete"
    EXIT = "exit"
    OUT_OF_MEMORY = "out of memory"
    DISRUPTION = "disruption"
    """Eviction, drain, preemption, a deleted pod, a lost node: nothing that the trainer did."""


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended."""

    cause: Cause
    message: str
    exit_code: int | None = None
    termination: TerminationMessage | None = None
    lived_seconds: float = 0.0


@dataclass(frozen=True)
class FollowUp:
    """What follows the end of an attempt."""

    action: Literal["Complete", "Fail", "Restart"]
    reason: str
    message: str
    counted: bool = False
    delay_seconds: float = 0.0
    ledger_unavailable: bool = False


# --- what happened -------------------------------------------------------------------------------------------------


def attempt_end(job: Json, pods: list[Json]) -> AttemptEnd | None:
    """How the attempt ended, by its Job and its pods; None while it lasts."""
    if has_condition(job, "Complete"):
        return AttemptEnd(Cause.COMPLETE, "the trainer completed", ExitCode.COMPLETE, _termination_of_first(pods))
    if has_condition(job, "Failed"):
        ended = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed" or _disruption(pod)]
        # The first to end is the cause: the others lose a peer, and the Job deletes their pods. Times are whole seconds; among
        # equals, what says most goes first.
        return min((_pod_end(pod) for pod in ended), key=_order, default=_no_pod())[1]
    return None


def _order(candidate: tuple[str, AttemptEnd]) -> tuple[str, bool, bool]:
    finished, end = candidate
    return finished, end.cause is Cause.DISRUPTION, end.exit_code == ExitCode.PREEMPTED


def _no_pod() -> tuple[str, AttemptEnd]:
    """A pod that failed on its own stays with its Job; one that is gone was taken away."""
    return "", AttemptEnd(Cause.DISRUPTION, "the trainer's pod was removed before its end could be read")


def _pod_end(pod: Json) -> tuple[str, AttemptEnd]:
    """When and how a pod ended."""
    name, container, state = pod["metadata"]["name"], *_terminated(pod)
    code, finished = state.get("exitCode"), state.get("finishedAt") or "9"
    if why := _disruption(pod, state):
        end = AttemptEnd(Cause.DISRUPTION, f"pod {name}: {why}", code)
    elif state.get("reason") == "OOMKilled":
        end = AttemptEnd(Cause.OUT_OF_MEMORY, f"pod {name}: {_memory_message(pod, container)}", code)
    else:
        termination = read_termination(state.get("message", ""))
        said = termination.message if termination else state.get("message") or state.get("reason") or "no message"
        message = f"pod {name} exited with code {code}: {said[:MESSAGE_LIMIT]}"
        end = AttemptEnd(Cause.EXIT, message, code, termination, _lived(state))
    return finished, end


def _terminated(pod: Json) -> tuple[str, Json]:
    """Name and end of the trainer's container, or of a sidecar's that failed when the trainer's did not."""
    ends = {
        status["name"]: status["state"]["terminated"]
        for status in pod.get("status", {}).get("containerStatuses") or ()
        if status.get("state", {}).get("terminated")
    }
    if ends.get("trainer", {}).get("exitCode"):
        return "trainer", ends["trainer"]
    return min(
        ends.items(), key=lambda end: (not end[1].get("exitCode"), end[1].get("finishedAt") or ""), default=("trainer", {})
    )


def _disruption(pod: Json, state: Json | None = None) -> str:
    """Who took the pod away; empty when nobody did."""
    status = pod.get("status", {})
    if condition := has_condition(pod, "DisruptionTarget"):
        return f"{condition.get('reason', 'Disrupted')}: {condition.get('message', '')}".rstrip(": ")
    if status.get("reason") in ("Evicted", "Terminated", "NodeLost", "NodeShutdown", "Preempting"):
        return f"{status['reason']}: {status.get('message', '')}".rstrip(": ")
    if (state or {}).get("reason") == _LOST_CONTAINER:
        return "the node lost the container"
    return "the pod was deleted" if is_deleted(pod) else ""


def _memory_message(pod: Json, container: str) -> str:
    specs = (spec for spec in pod.get("spec", {}).get("containers") or () if spec["name"] == container)
    limit = next(specs, {}).get("resources", {}).get("limits", {}).get("memory")
    where = f"spec.trainer.template.spec.containers[{container}].resources.limits.memory"
    if limit is None:
        return f"container {container} was OOM-killed, as its node is out of memory: request memory, or lower tokensPerMicroBatch"
    return f"container {container} reached its memory limit of {limit}: raise {where}, or lower tokensPerMicroBatch"


def _lived(state: Json) -> float:
    try:
        return times.seconds_between(times.from_text(state["startedAt"]), times.from_text(state["finishedAt"]))
    except (KeyError, TypeError, ValueError):
        return 0.0


def _termination_of_first(pods: list[Json]) -> TerminationMessage | None:
    """The termination message of rank 0, whose run completed."""
    found = (
        read_termination(_terminated(pod)[1].get("message", "")) for pod in sorted(pods, key=lambda pod: pod["metadata"]["name"])
    )
    return next((each for each in found if each), None)


def read_termination(message: str) -> TerminationMessage | None:
    """The termination message as the trainer writes it; None for any other text, such as the end of a log."""
    try:
        return TerminationMessage.model_validate_json(message)
    except ValidationError:
        return None


# --- what follows --------------------------------------------------------------------------------------------------


def follow_up(
    end: AttemptEnd,
    lifecycle: Lifecycle,
    settings: Settings,
    *,
    failed_attempts: int,
    ledger_unavailable_since: datetime | None,
    now: datetime,
) -> FollowUp:
    """What follows the end of an attempt.

    Args:
        end: How it ended.
        lifecycle: The run's, with backoffLimit and failurePolicy.
        settings: The operator's, with the waits between attempts.
        failed_attempts: Attempts before this one that counted as failures.
        ledger_unavailable_since: When the ledger's volume was first found not to be writable, if it still is not.
        now: The time.
    """
    disrupted, out_of_memory = end.cause is Cause.DISRUPTION, end.cause is Cause.OUT_OF_MEMORY
    # Whether the trainer completed is for the Job to say: one can fail by a sidecar, or by a deadline of its pods.
    code = ExitCode.COMPLETE if end.cause is Cause.COMPLETE else end.exit_code or ExitCode.FAILED
    decision = decide(code, lifecycle.failure_policy, disrupted=disrupted, out_of_memory=out_of_memory)
    match decision.action:
        case Action.COMPLETE:
            return FollowUp("Complete", reasons.COMPLETED, end.termination.message if end.termination else end.message)
        case Action.FAIL if decision.by_rule:
            return FollowUp("Fail", reasons.FAILURE_POLICY, f"{end.message} (spec.lifecycle.failurePolicy: Fail)")
        case Action.FAIL:
            return FollowUp("Fail", reasons.INVALID_CONFIGURATION, end.message)
        case Action.RESTART_UNCOUNTED if disrupted:
            return FollowUp("Restart", reasons.TRAINER_DISRUPTED, end.message)
        case Action.RESTART_UNCOUNTED:
            reason = _failure_reason(end) if decision.by_rule else reasons.TRAINER_PREEMPTED
            return FollowUp("Restart", reason, end.message, delay_seconds=_pause(end, settings))
        case Action.AWAIT_LEDGER:
            delay = _ledger_delay(ledger_unavailable_since, now, settings)
            return FollowUp("Restart", reasons.LEDGER_UNAVAILABLE, end.message, delay_seconds=delay, ledger_unavailable=True)
        case Action.RESTART:
            return _counted(end, lifecycle, settings, failed_attempts + 1)


def _failure_reason(end: AttemptEnd) -> str:
    return reasons.TRAINER_OOM_KILLED if end.cause is Cause.OUT_OF_MEMORY else reasons.TRAINER_FAILED


def _counted(end: AttemptEnd, lifecycle: Lifecycle, settings: Settings, failed: int) -> FollowUp:
    if failed > lifecycle.backoff_limit:
        message = f"{failed} failed attempts are more than backoffLimit {lifecycle.backoff_limit} allows; the last: {end.message}"
        return FollowUp("Fail", reasons.BACKOFF_LIMIT_EXCEEDED, message, counted=True)
    delay = min(settings.restart_delay_seconds * 2 ** min(failed - 1, 30), settings.max_restart_delay_seconds)
    return FollowUp("Restart", _failure_reason(end), end.message, counted=True, delay_seconds=delay)


def _pause(end: AttemptEnd, settings: Settings) -> float:
    """What is not counted could restart for ever: an attempt that did not live long is not followed at once."""
    return max(0.0, settings.restart_delay_seconds - end.lived_seconds)


def _ledger_delay(since: datetime | None, now: datetime, settings: Settings) -> float:
    """As long again as it has lasted, which doubles from one attempt to the next."""
    lasted = times.seconds_between(since, now) if since else 0.0
    return min(max(settings.restart_delay_seconds, lasted), settings.max_restart_delay_seconds)
