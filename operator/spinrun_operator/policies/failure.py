"""How an attempt of the trainer ended, and what follows from it: the next attempt, counted or not, or the end of the run."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Literal

from pydantic import ValidationError

from spinrun_api.spec import Lifecycle
from spinrun_kube import times
from spinrun_operator import reasons
from spinrun_operator.containers import Container, containers_of, is_outlived, last_line, refusal_of_input, trainer_end
from spinrun_operator.observed import INDEX_ANNOTATION, has_condition, is_deleted
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
    STALLED = "stalled"
    """It got no further, so that the operator ends it."""


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
    """How the attempt ended, by its Job and its pods; None while it lasts.

    What counts is the container `trainer` of each pod, whatever ends or runs beside it.
    """
    if has_condition(job, "Complete") or _all_completed(job, pods):
        return AttemptEnd(Cause.COMPLETE, "the trainer completed", ExitCode.COMPLETE, _termination_of_first(pods))
    if has_condition(job, "Failed"):
        ended = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed" or _disruption(pod)]
        # A trainer that had completed when its pod was taken away is not why the Job failed.
        ended = [pod for pod in ended if not (_has_completed(pod) and _disruption(pod))]
        return _first_end(ended)
    if has_condition(job, "FailureTarget"):
        # Its pods are being ended, and say more at their end.
        return None
    failed = [pod for pod in pods if (trainer_end(pod) or {}).get("exitCode")]
    # Without another container that runs on, the pod ends in a moment, and its Job with it.
    return _first_end(failed) if any(is_outlived(pod) and not is_deleted(pod) for pod in failed) else None


def _all_completed(job: Json, pods: list[Json]) -> bool:
    """Whether the trainers of all nodes completed, although their pods run on, or failed by what ran beside them."""
    nodes = job.get("spec", {}).get("completions", 1)
    completed = [pod for pod in pods if _has_completed(pod)]
    has_outcome = has_condition(job, "Failed") or any(map(is_outlived, completed))
    return bool(has_outcome) and len(set(map(_node, completed))) >= nodes


def _has_completed(pod: Json) -> bool:
    end = trainer_end(pod)
    return end is not None and end.get("exitCode") == ExitCode.COMPLETE


def _node(pod: Json) -> str:
    """Which node of the attempt the pod is."""
    return pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION) or pod["metadata"]["name"]


def _first_end(pods: list[Json]) -> AttemptEnd:
    """The first end is the cause: the other pods lose a peer, and the Job deletes them.

    Times are whole seconds; among equals, what says most goes first.
    """
    return min((_pod_end(pod) for pod in pods), key=_order, default=_no_pod())[1]


def _order(candidate: tuple[str, AttemptEnd]) -> tuple[str, bool, bool]:
    finished, end = candidate
    return finished, end.cause is Cause.DISRUPTION, end.exit_code == ExitCode.PREEMPTED


def _no_pod() -> tuple[str, AttemptEnd]:
    """A pod that failed on its own stays with its Job; one that is gone was taken away."""
    return "", AttemptEnd(Cause.DISRUPTION, "the trainer's pod was removed before its end could be read")


def _pod_end(pod: Json) -> tuple[str, AttemptEnd]:
    """When and how a pod ended."""
    name, cause = pod["metadata"]["name"], _failed_container(pod)
    state: Json = (cause.end if cause else None) or {}
    # The exit codes of other containers say nothing about the trainer.
    code = state.get("exitCode") if cause is None or cause.is_trainer else None
    finished = state.get("finishedAt") or "9"
    if why := _disruption(pod, state):
        end = AttemptEnd(Cause.DISRUPTION, f"pod {name}: {why}", code)
    elif cause is not None and state.get("reason") == "OOMKilled":
        end = AttemptEnd(Cause.OUT_OF_MEMORY, f"pod {name}: {_memory_message(pod, cause)}", code)
    elif cause is not None and not cause.is_trainer:
        said = last_line(state.get("message") or "") or state.get("reason") or "no message"
        end = AttemptEnd(Cause.EXIT, f"pod {name}: {cause.title} exited with code {state.get('exitCode')}: {said}")
    else:
        termination = read_termination(state.get("message", ""))
        said = termination.message if termination else state.get("message") or state.get("reason") or "no message"
        message = f"pod {name} exited with code {code}: {said[:MESSAGE_LIMIT]}"
        end = AttemptEnd(Cause.EXIT, message, code, termination, _lived(state))
    return finished, end


def _failed_container(pod: Json) -> Container | None:
    """The trainer's container, unless it did not fail or never ran: then the first other one that failed, if any did."""
    ended = [container for container in containers_of(pod) if container.end]
    trainer = next((container for container in ended if container.is_trainer), None)
    if trainer is not None and (trainer.end or {}).get("exitCode"):
        return trainer
    others = [container for container in ended if (container.end or {}).get("exitCode")]
    return min(others, key=lambda container: (container.end or {}).get("finishedAt") or "", default=trainer)


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


def _memory_message(pod: Json, container: Container) -> str:
    kind = "initContainers" if container.is_init else "containers"
    specs = (spec for spec in pod.get("spec", {}).get(kind) or () if spec["name"] == container.name)
    limit = next(specs, {}).get("resources", {}).get("limits", {}).get("memory")
    where = f"spec.trainer.template.spec.{kind}[{container.name}].resources.limits.memory"
    instead = ", or lower tokensPerMicroBatch" if container.is_trainer else ""
    if limit is None:
        return f"{container.title} was OOM-killed, as its node is out of memory: request memory{instead}"
    return f"{container.title} reached its memory limit of {limit}: raise {where}{instead}"


def _lived(state: Json) -> float:
    try:
        return times.seconds_between(times.from_text(state["startedAt"]), times.from_text(state["finishedAt"]))
    except (KeyError, TypeError, ValueError):
        return 0.0


def _termination_of_first(pods: list[Json]) -> TerminationMessage | None:
    """The termination message of rank 0, whose run completed."""
    in_order = sorted(pods, key=lambda pod: pod["metadata"]["name"])
    found = (read_termination((trainer_end(pod) or {}).get("message", "")) for pod in in_order)
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
    # One node's trainer may complete and another's not: only the cause says that all did.
    code = ExitCode.COMPLETE if end.cause is Cause.COMPLETE else end.exit_code or ExitCode.FAILED
    # The rules are about exit codes of the trainer: where another container failed, none of them matches.
    rules = [] if end.exit_code is None else lifecycle.failure_policy
    decision = decide(code, rules, disrupted=disrupted, out_of_memory=out_of_memory)
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


def refusal(pod: Json) -> FollowUp | None:
    """The end of the run because a rollout or a scorer refuses its input; None where the pod's containers do not."""
    container = refusal_of_input(pod)
    if container is None:
        return None
    end: Json = container.last_end or {}
    termination = read_termination(end.get("message", ""))
    said = termination.message if termination else last_line(end.get("message", "")) or end.get("reason") or "no message"
    where = f"pod {pod['metadata']['name']}, {container.title}"
    return FollowUp("Fail", reasons.INVALID_CONFIGURATION, f"{where} exited with code 2: {said[:MESSAGE_LIMIT]}")


def _failure_reason(end: AttemptEnd) -> str:
    if end.cause is Cause.STALLED:
        return reasons.PROGRESS_DEADLINE_EXCEEDED
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
