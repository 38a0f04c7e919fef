"""The one function that decides: from a run and what is seen of the world to children, status, events and the next look.

Pure: it sends nothing and reads no clock.
"""

from datetime import datetime
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_kube import names, times
from spinrun_operator import attempts, conditions, reasons, trouble
from spinrun_operator.documents import ChildDocuments
from spinrun_operator.draft import Draft
from spinrun_operator.observed import Observed, child_id, is_deleted, makes_pods
from spinrun_operator.plan import Event, Plan
from spinrun_operator.policies import deadline, progress_deadline, ttl
from spinrun_operator.settings import Settings
from spinrun_operator.status import DEGRADED, PROGRESSING, condition_of, current_attempt, is_finished, is_true, with_progress
from spinrun_operator.view import View
from spinrun_operator.wanted import unwanted_jobs, wanted_children, with_server_counts

Json = dict[str, Any]


def is_managed(run: SpinRun) -> bool:
    """Whether the run is this operator's to serve, and still wanted."""
    manager = run.spec.lifecycle.managed_by
    return manager in (None, names.MANAGED_BY) and "deletionTimestamp" not in (run.metadata.model_extra or {})


def reconcile(
    run: SpinRun, observed: Observed, settings: Settings, now: datetime, documents: ChildDocuments | None = None
) -> Plan:
    """What to do about the run.

    Args:
        run: The run, which must be `is_managed`.
        observed: What is seen of the world.
        settings: The operator's.
        now: The time.
        documents: The run's children as they were made before, if they are `are_of` this run; None makes them.
    """
    view = View(run, observed, settings, now, documents or ChildDocuments(run, settings))
    # What is over stays over: only its rollouts and scorers leave.
    status, events = _finished_status(view) if is_finished(view.before) else _next_status(view)
    children = wanted_children(view, status)
    return Plan(
        status=status,
        apply=children,
        delete=unwanted_jobs(view, status),
        delete_run=_has_outlived_ttl(view, status),
        events=events,
        only_starts=_only_starts(view, status, events),
        requeue_seconds=_next_look(view, status, children),
    )


def _next_status(view: View) -> tuple[SpinRunStatus, list[Event]]:
    """The new status of a run that is not over, and the Events on the way there."""
    draft = Draft(view.before, view.run.metadata.generation, view.now)
    draft.change(attempt=view.attempt, ledger_image=view.settings.worker_image)
    draft.status = with_progress(draft.status, view.observed.progress)
    attempts.record_start(view, draft)
    follows = attempts.follow_up(view)
    if follows is None or follows.action == "Restart":
        attempts.number_next(view, draft, follows)
        attempts.cap_wait(view, draft)
        conditions.set_suspended(view, draft)
        conditions.set_ready(view, draft, follows)
        conditions.set_ledger_unavailable(view, draft, follows)
        conditions.set_degraded(view, draft)
    else:
        attempts.end_run(view, draft, follows)
        conditions.set_over(view, draft, follows)
    draft.status = with_server_counts(view, draft.status)
    return draft.result(phase=conditions.phase(view, draft)), draft.events


def _finished_status(view: View) -> tuple[SpinRunStatus, list[Event]]:
    """The status of a run that was over before."""
    generation = view.run.metadata.generation
    before = conditions.without_internal_error(view.before, generation, view.now)
    seen = {"observed_generation": generation, "attempt": view.attempt, "ledger_image": view.settings.worker_image}
    return with_server_counts(view, before.model_copy(update=seen)), []


def _only_starts(view: View, status: SpinRunStatus, events: list[Event]) -> bool:
    """See `Plan`. What numbers an attempt, or tells of trouble, is never among it."""
    before, progressing = view.before, condition_of(status, PROGRESSING)
    return (
        before.phase in (None, "Pending", "Starting")
        and status.attempt == current_attempt(before)
        and progressing is not None
        and progressing.reason in (reasons.PENDING, reasons.STARTING)
        and not is_true(before, DEGRADED)
        and not is_true(status, DEGRADED)
        and all(event.reason == reasons.TRAINER_STARTED for event in events)
    )


def _has_outlived_ttl(view: View, status: SpinRunStatus) -> bool:
    moment = ttl.deletion_time(view.run.spec.lifecycle, status)
    return moment is not None and moment <= view.now


def _next_look(view: View, status: SpinRunStatus, children: list[Json]) -> float | None:
    """Seconds until something is due that no event announces: of pods that are not made, for one, nothing is heard."""
    moments = [ttl.deletion_time(view.run.spec.lifecycle, status)]
    if not is_finished(status):
        moments.append(deadline.deadline(view.run.spec.lifecycle, status))
        moments.append(times.from_text(status.next_attempt_time) if status.next_attempt_time else None)
    waits = [times.seconds_between(view.now, moment) for moment in moments if moment is not None]
    if not is_finished(status) and (
        left := progress_deadline.seconds_left(view.run.spec.lifecycle, view.observed.stalled_seconds)
    ):
        waits.append(left)
    waits_for_pods = any(makes_pods(child) and child_id(child) not in view.observed.children for child in children)
    if not is_finished(status) and (waits_for_pods or _is_troubled(view) or _has_deleted_pods(view)):
        waits.append(view.settings.trouble_seconds)
    return min(waits, default=None)


def _is_troubled(view: View) -> bool:
    return bool(
        trouble.first_trouble(view.run, view.observed, view.patience)
        or next(iter(trouble.unsettled(view.run, view.observed)), None)
    )


def _has_deleted_pods(view: View) -> bool:
    return any(is_deleted(pod) for pod in view.observed.trainer_pods(view.run))
