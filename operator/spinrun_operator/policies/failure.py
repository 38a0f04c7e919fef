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
from spinrun_protocol.termination import LastWords

Json = dict[str, Any]

MESSAGE_LIMIT = 1000
"""Characters of a trainer's last words that go into a condition."""

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
class Ending:
    """How an attempt ended."""

    cause: Cause
    message: str
    exit_code: int | None = None
    words: LastWords | None = None
    lived_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What follows."""

    action: Literal["Complete", "Fail", "Restart"]
    reason: str
    message: str
    counted: bool = False
    delay_seconds: float = 0.0
    ledger_unavailable: bool = False


# --- what happened -------------------------------------------------------------------------------------------------


def ending(job: Json, pods: list[Json]) -> Ending | None:
    """How the attempt ended; None while it goes on. pods: those of the attempt."""
    if has_condition(job, "Complete"):
        return Ending(Cause.COMPLETE, "the trainer completed", ExitCode.COMPLETE, _words_of_first(pods))
    if has_condition(job, "Failed"):
        ended = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed" or _disruption(pod)]
        # The first to end is the cause: the others lose a peer, and the Job deletes their pods. Times are whole seconds; among
        # equals, what says most goes first.
        return min((_pod_ending(pod) for pod in ended), key=_order, default=_no_pod())[1]
    return None


def _order(candidate: tuple[str, Ending]) -> tuple[str, bool, bool]:
    finished, end = candidate
    return finished, end.cause is Cause.DISRUPTION, end.exit_code == ExitCode.PREEMPTED


def _no_pod() -> tuple[str, Ending]:
    """A pod that failed by itself stays with its Job; one that is gone was taken away."""
    return "", Ending(Cause.DISRUPTION, "the trainer's pod was removed before its end could be read")


def _pod_ending(pod: Json) -> tuple[str, Ending]:
    """When and how a pod ended."""
    name, container, state = pod["metadata"]["name"], *_terminated(pod)
    code, finished = state.get("exitCode"), state.get("finishedAt") or "9"
    if why := _disruption(pod, state):
        end = Ending(Cause.DISRUPTION, f"pod {name}: {why}", code)
    elif state.get("reason") == "OOMKilled":
        end = Ending(Cause.OUT_OF_MEMORY, f"pod {name}: {_memory_message(pod, container)}", code)
    else:
        words = last_words(state.get("message", ""))
        said = words.message if words else state.get("message") or state.get("reason") or "no message"
        end = Ending(Cause.EXIT, f"pod {name} exited with code {code}: {said[:MESSAGE_LIMIT]}", code, words, _lived(state))
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
        return f"container {container} was killed for want of memory on its node: request memory, or lower tokensPerMicroBatch"
    return f"container {container} reached its memory limit of {limit}: raise {where}, or lower tokensPerMicroBatch"


def _lived(state: Json) -> float:
    try:
        return times.seconds_between(times.from_text(state["startedAt"]), times.from_text(state["finishedAt"]))
    except (KeyError, TypeError, ValueError):
        return 0.0


def _words_of_first(pods: list[Json]) -> LastWords | None:
    """What rank 0 said at the end of a run that completed."""
    spoken = (last_words(_terminated(pod)[1].get("message", "")) for pod in sorted(pods, key=lambda pod: pod["metadata"]["name"]))
    return next((words for words in spoken if words), None)


def last_words(message: str) -> LastWords | None:
    """The termination message as the trainer writes it; None for any other text, such as the end of a log."""
    try:
        return LastWords.model_validate_json(message)
    except ValidationError:
        return None


# --- what follows --------------------------------------------------------------------------------------------------


def judge(
    end: Ending,
    lifecycle: Lifecycle,
    settings: Settings,
    *,
    failed_attempts: int,
    ledger_unavailable_since: datetime | None,
    now: datetime,
) -> Verdict:
    """What follows from an ending. failed_attempts: those that counted before this one."""
    disrupted, out_of_memory = end.cause is Cause.DISRUPTION, end.cause is Cause.OUT_OF_MEMORY
    # The Job says whether the trainer completed: that of one that failed may have ended with 0, and another container not.
    code = ExitCode.COMPLETE if end.cause is Cause.COMPLETE else end.exit_code or ExitCode.FAILED
    decision = decide(code, lifecycle.failure_policy, disrupted=disrupted, out_of_memory=out_of_memory)
    match decision.action:
        case Action.COMPLETE:
            return Verdict("Complete", reasons.COMPLETED, end.words.message if end.words else end.message)
        case Action.FAIL if decision.by_rule:
            return Verdict("Fail", reasons.FAILURE_POLICY, f"{end.message} (spec.lifecycle.failurePolicy: Fail)")
        case Action.FAIL:
            return Verdict("Fail", reasons.INVALID_CONFIGURATION, end.message)
        case Action.RESTART_UNCOUNTED if disrupted:
            return Verdict("Restart", reasons.TRAINER_DISRUPTED, end.message)
        case Action.RESTART_UNCOUNTED:
            reason = _failure_reason(end) if decision.by_rule else reasons.TRAINER_PREEMPTED
            return Verdict("Restart", reason, end.message, delay_seconds=_pause(end, settings))
        case Action.AWAIT_LEDGER:
            delay = _ledger_delay(ledger_unavailable_since, now, settings)
            return Verdict("Restart", reasons.LEDGER_UNAVAILABLE, end.message, delay_seconds=delay, ledger_unavailable=True)
        case Action.RESTART:
            return _counted(end, lifecycle, settings, failed_attempts + 1)


def _failure_reason(end: Ending) -> str:
    return reasons.TRAINER_OOM_KILLED if end.cause is Cause.OUT_OF_MEMORY else reasons.TRAINER_FAILED


def _counted(end: Ending, lifecycle: Lifecycle, settings: Settings, failed: int) -> Verdict:
    if failed > lifecycle.backoff_limit:
        message = f"{failed} failed attempts are more than backoffLimit {lifecycle.backoff_limit} allows; the last: {end.message}"
        return Verdict("Fail", reasons.BACKOFF_LIMIT_EXCEEDED, message, counted=True)
    delay = min(settings.restart_delay_seconds * 2 ** min(failed - 1, 30), settings.max_restart_delay_seconds)
    return Verdict("Restart", _failure_reason(end), end.message, counted=True, delay_seconds=delay)


def _pause(end: Ending, settings: Settings) -> float:
    """What is not counted could go round for ever: an attempt that did not live long is not followed at once."""
    return max(0.0, settings.restart_delay_seconds - end.lived_seconds)


def _ledger_delay(since: datetime | None, now: datetime, settings: Settings) -> float:
    """As long again as it has lasted, which doubles from one attempt to the next."""
    lasted = times.seconds_between(since, now) if since else 0.0
    return min(max(settings.restart_delay_seconds, lasted), settings.max_restart_delay_seconds)
