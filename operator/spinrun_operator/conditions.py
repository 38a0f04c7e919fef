"""The conditions of a run, by the conventions of the Kubernetes API, and its phase: the same in one word."""

import traceback
from datetime import datetime
from pathlib import Path

from spinrun_api.documents import InvalidDocumentError
from spinrun_api.status import Phase, SpinRunStatus
from spinrun_operator import reasons, trouble
from spinrun_operator.draft import Draft
from spinrun_operator.policies import suspend
from spinrun_operator.policies.failure import FollowUp
from spinrun_operator.status import (
    COMPLETE,
    DEGRADED,
    FAILED,
    LEDGER_UNAVAILABLE,
    PROGRESSING,
    READY,
    SUSPENDED,
    condition_of,
)
from spinrun_operator.view import View

_RESTARTS = (reasons.RESTARTING, reasons.PROGRESS_DEADLINE_EXCEEDED)
"""Reasons of Progressing between two attempts."""

LONGEST_PROBLEMS = 4000
"""Characters of all that is wrong with a spec, of which three conditions tell."""
LONGEST_ERROR = 300
"""Characters of an exception that a condition shows."""


def set_suspended(view: View, draft: Draft) -> None:
    """Suspended, and the time that a pause took once it is over."""
    was_suspended = draft.was(SUSPENDED)
    if not view.run.spec.lifecycle.suspend:
        draft.set(SUSPENDED, False, reasons.NOT_SUSPENDED)
        if was_suspended:
            draft.record_event("Normal", reasons.RESUMED, "the run resumes")
            if draft.status.start_time is not None:
                paused = suspend.paused_seconds(view.before.paused_seconds, condition_of(view.before, SUSPENDED), view.now)
                draft.change(paused_seconds=paused)
    elif view.has_trainer_pods or view.has_servers:
        draft.set(SUSPENDED, was_suspended, reasons.SUSPENDING, "the pods are ending, the trainer's after a checkpoint")
    else:
        draft.set(SUSPENDED, True, reasons.SUSPENDED, "spec.lifecycle.suspend is true: set it to false to resume")
        if not was_suspended:
            draft.record_event("Normal", reasons.SUSPENDED, "all pods are gone; the ledger is kept")


def set_ready(view: View, draft: Draft, follows: FollowUp | None) -> None:
    """Ready and Progressing of a run that is not over.

    Args:
        view: What is seen.
        draft: The status, in which the next attempt has its number.
        follows: Why there is another attempt, in the pass that decides it.
    """
    status, scorers = draft.status, view.run.spec.scorers
    if view.run.spec.lifecycle.suspend:
        _not_ready(draft, reasons.SUSPENDED, "spec.lifecycle.suspend is true", progressing=False)
    elif leftover := trouble.waits_for_cleanup(view.observed):
        _not_ready(draft, reasons.WAITING_FOR_CLEANUP, leftover.message)
    elif status.attempt_start_time is None and status.attempt != 1:
        _set_restarting(draft, follows)
    elif status.attempt_start_time is None:
        _not_ready(draft, reasons.PENDING, "the trainer has not started yet")
    elif view.ready_rollouts < view.run.spec.rollout.replicas:
        _not_ready(draft, reasons.STARTING, "not all rollouts are ready")
    elif scorers is not None and view.ready_scorers < scorers.replicas:
        _not_ready(draft, reasons.STARTING, "not all scorers are ready")
    else:
        servers = "rollouts" if scorers is None else "rollouts and scorers"
        draft.set(READY, True, reasons.RUNNING, f"trainer is running, all {servers} ready")
        draft.set(PROGRESSING, True, reasons.RUNNING, f"attempt {status.attempt} of the trainer is running")


def _not_ready(draft: Draft, reason: str, message: str, *, progressing: bool = True) -> None:
    draft.set(READY, False, reason, message)
    draft.set(PROGRESSING, progressing, reason, message)


def _set_restarting(draft: Draft, follows: FollowUp | None) -> None:
    """Why there is another attempt: said once, when the one before ends, and kept until this one runs."""
    reason, message = reasons.RESTARTING, f"starting attempt {draft.status.attempt}"
    before = condition_of(draft.before, PROGRESSING)
    if follows is not None:
        when = f" at {draft.status.next_attempt_time}" if draft.status.next_attempt_time else ""
        message = f"{message}{when}: {follows.message}"
        reason = follows.reason if follows.reason in _RESTARTS else reason
    elif before is not None and before.reason in _RESTARTS:
        reason, message = before.reason, before.message
    # As a Deployment's does that exceeded its deadline.
    _not_ready(draft, reason, message, progressing=reason != reasons.PROGRESS_DEADLINE_EXCEEDED)


def set_ledger_unavailable(view: View, draft: Draft, follows: FollowUp | None) -> None:
    """Whether the volume could not be written to; until a trainer gets beyond its start, or the run ends."""
    seen = view.observed.progress
    works = seen is not None and seen.progress.attempt == view.attempt and seen.progress.activity != "starting"
    if follows is not None and follows.ledger_unavailable:
        draft.set(LEDGER_UNAVAILABLE, True, reasons.LEDGER_UNAVAILABLE, follows.message)
    elif draft.was(LEDGER_UNAVAILABLE) and (works or follows is not None):
        draft.set(LEDGER_UNAVAILABLE, False, reasons.LEDGER_AVAILABLE)
    else:
        draft.keep(LEDGER_UNAVAILABLE)


def set_degraded(view: View, draft: Draft) -> None:
    """Whether something stands in the run's way; told when it is another thing than before."""
    found = trouble.first_trouble(view.run, view.observed, view.patience)
    if found is None:
        draft.set(DEGRADED, False, reasons.AS_EXPECTED)
        return
    reason, message = found
    before = condition_of(view.before, DEGRADED)
    if before is None or (before.status, before.reason) != ("True", reason):
        draft.record_event("Warning", reason, message)
    draft.set(DEGRADED, True, reason, message)


def set_over(view: View, draft: Draft, follows: FollowUp) -> None:
    """All conditions of a run that is over."""
    is_complete = follows.action == "Complete"
    draft.set(COMPLETE if is_complete else FAILED, True, follows.reason, follows.message)
    _not_ready(draft, reasons.COMPLETED if is_complete else reasons.FAILED, follows.message, progressing=False)
    draft.set(SUSPENDED, False, reasons.NOT_SUSPENDED)
    draft.set(DEGRADED, False, reasons.AS_EXPECTED)
    set_ledger_unavailable(view, draft, follows)


def phase(view: View, draft: Draft) -> Phase:
    """The conditions in one word."""
    true = {condition.type for condition in draft.conditions if condition.status == "True"}
    if COMPLETE in true:
        return "Complete"
    if FAILED in true:
        return "Failed"
    if view.run.spec.lifecycle.suspend:
        return "Suspended"
    if READY in true:
        return "Running"
    if any(condition.type == PROGRESSING and condition.reason in _RESTARTS for condition in draft.conditions):
        return "Restarting"
    return "Pending" if draft.status.attempt_start_time is None else "Starting"


def with_invalid_spec(before: SpinRunStatus, error: InvalidDocumentError, generation: int | None, now: datetime) -> SpinRunStatus:
    """The status of a run whose spec this operator cannot read: everything stays as it was, and the problems are named."""
    draft = Draft(before, generation, now)
    message = "; ".join(str(problem) for problem in error.problems)[:LONGEST_PROBLEMS]
    for condition in before.conditions:
        if condition.type not in (READY, PROGRESSING, DEGRADED):
            draft.keep(condition.type)
    _not_ready(draft, reasons.INVALID_SPEC, message, progressing=False)
    draft.set(DEGRADED, True, reasons.INVALID_SPEC, message)
    return draft.result()


def with_internal_error(before: SpinRunStatus, error: Exception, now: datetime) -> SpinRunStatus:
    """The status of a run on which the operator fails by a fault of its own: all but Degraded stays as it was.

    The message is the same for the same error, however often it is met.
    """
    # The generation is not observed: nothing was done about it.
    draft = Draft(before, before.observed_generation, now)
    what = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_ERROR].rstrip(": ")
    where = f" in {place}" if (place := _place_of(error)) else ""
    remedy = (
        "This is a fault of the operator: please report it with this message, the operator's version, the traceback in its log "
        "and the run's spec"
    )
    draft.set(DEGRADED, True, reasons.INTERNAL_ERROR, f"the operator fails on this run and keeps trying: {what}{where}. {remedy}")
    degraded = draft.conditions.pop()
    for condition in before.conditions:
        draft.conditions.append(degraded if condition.type == DEGRADED else condition)
    if condition_of(before, DEGRADED) is None:
        draft.conditions.append(degraded)
    return draft.result()


def _place_of(error: Exception) -> str:
    """The function and line of the operator's own code where it was raised; empty when it never got there."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "spinrun_" in frame.filename]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}, {own[-1].name}" if own else ""


def without_internal_error(before: SpinRunStatus, generation: int | None, now: datetime) -> SpinRunStatus:
    """The status of a run that is over, once a pass over it has succeeded again."""
    degraded = condition_of(before, DEGRADED)
    if degraded is None or degraded.reason != reasons.INTERNAL_ERROR:
        return before
    draft = Draft(before, generation, now)
    for condition in before.conditions:
        if condition.type == DEGRADED:
            draft.set(DEGRADED, False, reasons.AS_EXPECTED)
        else:
            draft.keep(condition.type)
    return draft.result()
