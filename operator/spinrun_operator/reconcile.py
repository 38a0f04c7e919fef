"""The one function that decides: from a run and what is seen of the world to children, status, events and the next look.

Pure: it sends nothing and reads no clock. Order matters in one place, which `apply.py` keeps: the status is written before the
children, so that an attempt's number and the failures that count are on record before the attempt's Job exists.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from spinrun_api.run import SpinRun
from spinrun_api.status import RolloutStatus, ScorerStatus, SpinRunStatus
from spinrun_kube import names, times
from spinrun_operator import reasons, trouble
from spinrun_operator.children.ledger_claim import is_usable, ledger_claim
from spinrun_operator.children.network_policy import rollout_network_policy, scorer_network_policy, trainer_network_policy
from spinrun_operator.children.pod_monitor import pod_monitor
from spinrun_operator.children.rollout_statefulset import rollout_statefulset
from spinrun_operator.children.run_config import run_config
from spinrun_operator.children.scorer_statefulset import scorer_statefulset, without_pods
from spinrun_operator.children.service_account import service_account
from spinrun_operator.children.services import rollout_service, scorer_service, trainer_service
from spinrun_operator.children.token_secret import token_secret
from spinrun_operator.children.trainer_job import trainer_job, trainer_revision
from spinrun_operator.observed import Observed, has_ended, is_deleted, is_over
from spinrun_operator.policies import deadline, failure, retention, suspend, ttl
from spinrun_operator.settings import Settings
from spinrun_operator.status import (
    COMPLETE,
    DEGRADED,
    FAILED,
    LEDGER_UNAVAILABLE,
    PROGRESSING,
    READY,
    SUSPENDED,
    Conditions,
    current_attempt,
    is_finished,
    with_progress,
    with_servers,
)

Json = dict[str, Any]

STUCK_POD_SECONDS = 60
"""Time after the end of a deleted pod's grace period from which it counts as lost with its node. Should it still run, the
ledger refuses it: a newer attempt owns it."""


@dataclass(frozen=True)
class Event:
    """Something to tell people of."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do, in the order of the fields."""

    status: SpinRunStatus
    apply: list[Json] = field(default_factory=list[Json])
    """Children as they should be."""

    delete: list[Json] = field(default_factory=list[Json])
    """Children, as they were seen, that should go."""

    delete_run: bool = False
    """Whether the run itself has outlived its ttl."""

    events: list[Event] = field(default_factory=list[Event])
    requeue_seconds: float | None = None
    """When to look again even if nothing happens."""


def is_managed(run: SpinRun) -> bool:
    """Whether the run is this operator's to serve, and still wanted."""
    manager = run.spec.lifecycle.managed_by
    return manager in (None, names.MANAGED_BY) and "deletionTimestamp" not in (run.metadata.model_extra or {})


def reconcile(run: SpinRun, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What to do about the run. It must be `is_managed`."""
    before = run.status or SpinRunStatus()
    view = _View(run, observed, settings, now, before)
    status, events = _next_status(view)
    # What is over stays over: only its rollouts and scorers leave.
    return Plan(
        status=status,
        apply=_wanted_children(view, status),
        delete=_unwanted_jobs(view, status),
        delete_run=_has_outlived_ttl(view, status),
        events=events,
        requeue_seconds=_next_look(view, status),
    )


# --- what is seen --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """The arguments of `reconcile`, and what every step asks of them."""

    run: SpinRun
    observed: Observed
    settings: Settings
    now: datetime
    before: SpinRunStatus

    @property
    def patience(self) -> trouble.Patience:
        return trouble.Patience(self.now, self.settings.unscheduled_seconds)

    @property
    def attempt(self) -> int:
        return current_attempt(self.before)

    def job(self, attempt: int) -> Json | None:
        """The attempt's Job, also while it is being deleted."""
        return self.observed.own_child(self.run, "Job", names.job_name(self.run, attempt))

    @property
    def is_trainer_running(self) -> bool:
        """Whether the trainer of this attempt runs or has run."""
        started = (pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed") for pod in self._attempt_pods)
        return any(started)

    @property
    def _attempt_pods(self) -> list[Json]:
        return self.observed.attempt_pods(self.attempt)

    @property
    def is_trainer_alive(self) -> bool:
        """Whether a trainer pod of any attempt may still write."""
        return any(not is_over(pod) and not self._is_stuck(pod) for pod in self.observed.component_pods(names.TRAINER))

    def _is_stuck(self, pod: Json) -> bool:
        """Whether a deleted pod has not ended long after it had to."""
        if not is_deleted(pod):
            return False
        # The API server sets the time of deletion to the end of the grace period.
        return times.seconds_between(times.from_text(pod["metadata"]["deletionTimestamp"]), self.now) > STUCK_POD_SECONDS

    @property
    def ending(self) -> failure.Ending | None:
        """How this attempt ended; None while it goes on or has not begun."""
        job, pods = self.job(self.attempt), self._attempt_pods
        if job is not None and (end := failure.ending(job, pods)):
            return end
        if job is not None and not is_deleted(job) and any(self._is_stuck(pod) for pod in pods):
            return failure.Ending(failure.Cause.DISRUPTION, "a trainer pod was deleted and its node does not answer")
        return None

    @property
    def is_paused(self) -> bool:
        """Whether the run was suspended when it was last looked at."""
        return any(condition.type == SUSPENDED and condition.status == "True" for condition in self.before.conditions)

    @property
    def is_job_gone(self) -> bool:
        """Whether an attempt that ran has lost its Job: by a suspension, a changed spec, or somebody's hand."""
        job = self.job(self.attempt)
        return self.before.attempt_start_time is not None and (job is None or is_deleted(job))

    @property
    def ready_rollouts(self) -> int:
        return self._ready(names.rollout_name(self.run))

    @property
    def ready_scorers(self) -> int:
        return self._ready(names.scorer_name(self.run))

    def _ready(self, name: str) -> int:
        servers = self.observed.own_child(self.run, "StatefulSet", name)
        return (servers or {}).get("status", {}).get("readyReplicas", 0)

    @property
    def has_servers(self) -> bool:
        """Whether a pod of rollouts or scorers is there."""
        return bool(self.observed.component_pods(names.ROLLOUT) or self.observed.component_pods(names.SCORER))


# --- the status ----------------------------------------------------------------------------------------------------


def _next_status(view: _View) -> tuple[SpinRunStatus, list[Event]]:
    """The run's new status, and what to tell of the way there."""
    status = view.before.model_copy(update={"observed_generation": view.run.metadata.generation, "attempt": view.attempt})
    conditions = Conditions(view.now, view.run.metadata.generation, view.before.conditions)
    events: list[Event] = []
    if is_finished(view.before):
        return _count_servers(view, status), events
    status = with_progress(status, view.observed.progress)
    status = _start(view, status, events)
    verdict = _verdict(view)
    if verdict is None or verdict.action == "Restart":
        status = _next_attempt(view, status, verdict, events)
        status = _resume_or_suspend(view, status, conditions, events)
        _describe(view, status, conditions, verdict)
        _describe_trouble(view, conditions, events)
    else:
        status = _end(view, status, conditions, verdict, events)
    status = _count_servers(view, status)
    return status.model_copy(update={"conditions": conditions.after, "phase": _phase(view, status, conditions)}), events


def _count_servers(view: _View, status: SpinRunStatus) -> SpinRunStatus:
    return with_servers(
        status,
        rollouts=RolloutStatus(ready=view.ready_rollouts, desired=_wanted_rollouts(view, status)),
        scorers=ScorerStatus(ready=view.ready_scorers, desired=_wanted_scorers(view, status)) if view.run.spec.scorers else None,
        seen=view.observed.progress,
    )


def _start(view: _View, status: SpinRunStatus, events: list[Event]) -> SpinRunStatus:
    """Records the first sight of this attempt's running trainer, from which its Job is not made a second time."""
    if status.attempt_start_time is not None or not view.is_trainer_running:
        return status
    started = times.to_text(view.now)
    events.append(Event("Normal", reasons.TRAINER_STARTED, f"attempt {view.attempt} of the trainer runs"))
    update = {"attempt_start_time": started, "next_attempt_time": None, "start_time": status.start_time or started}
    return status.model_copy(update=update)


def _verdict(view: _View) -> failure.Verdict | None:
    """What follows from the end of the attempt, or of the time that the run has; None while neither is there."""
    if (end := view.ending) is not None:
        unavailable = next(
            (each for each in view.before.conditions if each.type == LEDGER_UNAVAILABLE and each.status == "True"), None
        )
        return failure.judge(
            end,
            view.run.spec.lifecycle,
            view.settings,
            failed_attempts=view.before.failed_attempts or 0,
            ledger_unavailable_since=times.from_text(unavailable.last_transition_time) if unavailable else None,
            now=view.now,
        )
    limit = deadline.deadline(view.run.spec.lifecycle, view.before)
    # The pause that now ends is counted in this pass.
    if limit is not None and limit <= view.now and not view.is_paused:
        seconds = view.run.spec.lifecycle.active_deadline_seconds
        return failure.Verdict(
            "Fail", reasons.DEADLINE_EXCEEDED, f"the run was active longer than activeDeadlineSeconds: {seconds}"
        )
    return None


def _next_attempt(view: _View, status: SpinRunStatus, verdict: failure.Verdict | None, events: list[Event]) -> SpinRunStatus:
    """Numbers the next attempt when this one is over or gone."""
    if verdict is None and not view.is_job_gone:
        return status
    update: dict[str, Any] = {"attempt": view.attempt + 1}
    update |= dict.fromkeys(("attempt_start_time", "next_attempt_time", "activity", "eta"))
    if verdict is None:
        if not view.run.spec.lifecycle.suspend:
            message = f"the Job of attempt {view.attempt} is gone; attempt {view.attempt + 1} follows"
            events.append(Event("Normal", reasons.TRAINER_LOST, message))
        return status.model_copy(update=update)
    if verdict.counted:
        update["failed_attempts"] = (status.failed_attempts or 0) + 1
    if verdict.delay_seconds:
        update["next_attempt_time"] = times.to_text(view.now + timedelta(seconds=verdict.delay_seconds))
    events.append(Event("Warning", verdict.reason, f"attempt {view.attempt}: {verdict.message}"))
    return status.model_copy(update=update)


def _resume_or_suspend(view: _View, status: SpinRunStatus, conditions: Conditions, events: list[Event]) -> SpinRunStatus:
    """The condition Suspended, and the time that a pause took once it is over."""
    was_suspended = conditions.holds(SUSPENDED)
    if not view.run.spec.lifecycle.suspend:
        conditions.set(SUSPENDED, False, reasons.NOT_SUSPENDED)
        if not was_suspended:
            return status
        events.append(Event("Normal", reasons.RESUMED, "the run goes on"))
        if status.start_time is None:
            return status
        paused = suspend.paused_seconds(status.paused_seconds, conditions.get(SUSPENDED), view.now)
        return status.model_copy(update={"paused_seconds": paused})
    if view.is_trainer_alive or view.has_servers:
        conditions.set(SUSPENDED, was_suspended, reasons.SUSPENDING, "the pods end, the trainer's after a checkpoint")
    else:
        conditions.set(SUSPENDED, True, reasons.SUSPENDED, "spec.lifecycle.suspend is true: set it to false to go on")
        if not was_suspended:
            events.append(Event("Normal", reasons.SUSPENDED, "all pods are gone; the ledger is kept"))
    return status


def _end(
    view: _View, status: SpinRunStatus, conditions: Conditions, verdict: failure.Verdict, events: list[Event]
) -> SpinRunStatus:
    """The run is over."""
    complete = verdict.action == "Complete"
    conditions.set(COMPLETE if complete else FAILED, True, verdict.reason, verdict.message)
    outcome = reasons.COMPLETED if complete else reasons.FAILED
    conditions.set(READY, False, outcome, verdict.message)
    conditions.set(PROGRESSING, False, outcome, verdict.message)
    conditions.set(SUSPENDED, False, reasons.NOT_SUSPENDED)
    conditions.set(DEGRADED, False, reasons.AS_EXPECTED)
    _describe_ledger(view, conditions, verdict)
    events.append(Event("Normal" if complete else "Warning", verdict.reason, verdict.message))
    update: dict[str, Any] = {"completion_time": times.to_text(view.now), "eta": None, "next_attempt_time": None}
    if verdict.counted:
        update["failed_attempts"] = (status.failed_attempts or 0) + 1
    if complete:
        update |= {"activity": "finished"} | _last_figures(view, status)
    return status.model_copy(update=update)


def _last_figures(view: _View, status: SpinRunStatus) -> Json:
    """What the trainer's last words say beyond the progress that was read last."""
    end = view.ending
    if end is None or end.words is None:
        return {}
    words = end.words.model_dump(include={"window", "step", "version"}, exclude_none=True)
    if end.words.accuracy is not None:
        metrics = status.metrics.model_dump() if status.metrics else {}
        words["metrics"] = type(status).model_validate({"metrics": metrics | {"accuracy": round(end.words.accuracy, 4)}}).metrics
    return words


def _describe(view: _View, status: SpinRunStatus, conditions: Conditions, verdict: failure.Verdict | None) -> None:
    """Ready, Progressing and LedgerUnavailable of a run that goes on."""
    scorers = view.run.spec.scorers
    if view.run.spec.lifecycle.suspend:
        _both(conditions, progressing=False, reason=reasons.SUSPENDED, message="spec.lifecycle.suspend is true")
    elif leftover := trouble.waits_for_cleanup(view.observed):
        _both(conditions, progressing=True, reason=reasons.WAITING_FOR_CLEANUP, message=leftover.message)
    elif status.attempt_start_time is None and status.attempt != 1:
        _both(conditions, progressing=True, reason=reasons.RESTARTING, message=_restart_message(status, conditions, verdict))
    elif status.attempt_start_time is None:
        _both(conditions, progressing=True, reason=reasons.PENDING, message="the trainer has not started yet")
    elif view.ready_rollouts < view.run.spec.rollout.replicas:
        _both(conditions, progressing=True, reason=reasons.STARTING, message="not all rollouts are ready")
    elif scorers is not None and view.ready_scorers < scorers.replicas:
        _both(conditions, progressing=True, reason=reasons.STARTING, message="not all scorers are ready")
    else:
        servers = "all rollouts are ready" if scorers is None else "all rollouts and scorers are ready"
        conditions.set(READY, True, reasons.RUNNING, f"the trainer runs and {servers}")
        conditions.set(PROGRESSING, True, reasons.RUNNING, f"attempt {status.attempt} of the trainer runs")
    _describe_ledger(view, conditions, verdict)


def _both(conditions: Conditions, *, progressing: bool, reason: str, message: str) -> None:
    conditions.set(READY, False, reason, message)
    conditions.set(PROGRESSING, progressing, reason, message)


def _restart_message(status: SpinRunStatus, conditions: Conditions, verdict: failure.Verdict | None) -> str:
    """Why there is another attempt: said once, when the one before ends, and kept until this one runs."""
    if verdict is not None:
        when = f" at {status.next_attempt_time}" if status.next_attempt_time else ""
        return f"attempt {status.attempt} follows{when}, because {verdict.message}"
    before = conditions.get(PROGRESSING)
    if before is not None and before.reason == reasons.RESTARTING:
        return before.message
    return f"attempt {status.attempt} follows"


def _describe_ledger(view: _View, conditions: Conditions, verdict: failure.Verdict | None) -> None:
    """Whether the volume could not be written to; until a trainer gets beyond its start, or the run ends."""
    seen = view.observed.progress
    works = seen is not None and seen.progress.attempt == view.attempt and seen.progress.activity != "starting"
    if verdict is not None and verdict.ledger_unavailable:
        conditions.set(LEDGER_UNAVAILABLE, True, reasons.LEDGER_UNAVAILABLE, verdict.message)
    elif conditions.holds(LEDGER_UNAVAILABLE) and (works or verdict is not None):
        conditions.set(LEDGER_UNAVAILABLE, False, reasons.LEDGER_AVAILABLE)
    else:
        conditions.keep(LEDGER_UNAVAILABLE)


def _describe_trouble(view: _View, conditions: Conditions, events: list[Event]) -> None:
    """Whether something stands in the run's way."""
    found = trouble.first_trouble(view.run, view.observed, view.patience)
    if found is None:
        conditions.set(DEGRADED, False, reasons.AS_EXPECTED)
        return
    reason, message = found
    before = conditions.get(DEGRADED)
    if before is None or (before.status, before.reason) != ("True", reason):
        events.append(Event("Warning", reason, message))
    conditions.set(DEGRADED, True, reason, message)


def _phase(view: _View, status: SpinRunStatus, conditions: Conditions) -> str:
    """The conditions in one word."""
    true = {condition.type: condition.reason for condition in conditions.after if condition.status == "True"}
    if COMPLETE in true:
        return "Complete"
    if FAILED in true:
        return "Failed"
    if view.run.spec.lifecycle.suspend:
        return "Suspended"
    if READY in true:
        return "Running"
    if true.get(PROGRESSING) == reasons.RESTARTING:
        return "Restarting"
    return "Pending" if status.attempt_start_time is None else "Starting"


# --- the children --------------------------------------------------------------------------------------------------


def _wanted_rollouts(view: _View, status: SpinRunStatus) -> int:
    return _wanted_servers(view, status, view.run.spec.rollout.replicas)


def _wanted_scorers(view: _View, status: SpinRunStatus) -> int:
    scorers = view.run.spec.scorers
    return _wanted_servers(view, status, scorers.replicas) if scorers is not None else 0


def _wanted_servers(view: _View, status: SpinRunStatus, replicas: int) -> int:
    over = is_finished(view.before) or status.completion_time is not None
    return suspend.wanted_servers(view.run.spec, replicas, over=over, trainer_alive=view.is_trainer_alive)


def _wanted_children(view: _View, status: SpinRunStatus) -> list[Json]:
    """Children as they should be, each after those that it needs. What is made once is left out when it is there."""
    run, settings = view.run, view.settings
    children = [
        service_account(run),
        run_config(run),
        rollout_service(run),
        trainer_service(run),
        rollout_network_policy(run, settings),
        trainer_network_policy(run, settings),
    ]
    if view.observed.own_child(run, "Secret", names.token_name(run)) is None:
        children.insert(0, token_secret(run, view.observed.new_token))
    claim, present = ledger_claim(run), view.observed.children.get(("PersistentVolumeClaim", names.claim_name(run)))
    if claim is not None and not (present and is_usable(run, present)):
        children.insert(0, claim)
    if view.observed.has_pod_monitors and settings.pod_monitor:
        children.append(pod_monitor(run))
    children.append(rollout_statefulset(run, settings, replicas=_wanted_rollouts(view, status)))
    children += _scorer_children(view, status)
    if _may_start_trainer(view, status):
        children.append(trainer_job(run, settings, attempt=current_attempt(status)))
    return children


def _scorer_children(view: _View, status: SpinRunStatus) -> list[Json]:
    run, settings = view.run, view.settings
    if run.spec.scorers is not None:
        statefulset = scorer_statefulset(run, settings, replicas=_wanted_scorers(view, status))
        return [scorer_service(run), scorer_network_policy(run, settings), statefulset]
    # Before its first start a run may still be given another preference.
    left = view.observed.own_child(run, "StatefulSet", names.scorer_name(run))
    return [] if left is None else [without_pods(run, left)]


def _may_start_trainer(view: _View, status: SpinRunStatus) -> bool:
    """Whether the attempt's Job is to be made now: never beside a trainer that may still write, and never a second time."""
    waits = status.next_attempt_time is not None and times.from_text(status.next_attempt_time) > view.now
    return not (
        is_finished(status)
        or view.run.spec.lifecycle.suspend
        or waits
        or status.attempt_start_time is not None
        or view.job(current_attempt(status)) is not None
        or view.is_trainer_alive
    )


def _unwanted_jobs(view: _View, status: SpinRunStatus) -> list[Json]:
    """Jobs of earlier attempts, and this one's when it must not go on or was made from another spec."""
    jobs = retention.superseded_jobs(list(view.observed.own_jobs(view.run)), current_attempt(status))
    current = view.job(current_attempt(status))
    if current is None or is_deleted(current) or has_ended(current):
        return jobs
    revision = current["metadata"].get("annotations", {}).get(names.REVISION_ANNOTATION)
    if is_finished(status) or view.run.spec.lifecycle.suspend or revision != trainer_revision(view.run):
        jobs.append(current)
    return jobs


# --- the run's end, and the next look -------------------------------------------------------------------------------


def _has_outlived_ttl(view: _View, status: SpinRunStatus) -> bool:
    moment = ttl.deletion_time(view.run.spec.lifecycle, status)
    return moment is not None and moment <= view.now


def _next_look(view: _View, status: SpinRunStatus) -> float | None:
    """Seconds until something is due that no event announces."""
    moments = [ttl.deletion_time(view.run.spec.lifecycle, status)]
    if not is_finished(status):
        moments.append(deadline.deadline(view.run.spec.lifecycle, status))
        moments.append(times.from_text(status.next_attempt_time) if status.next_attempt_time else None)
    waits = [times.seconds_between(view.now, moment) for moment in moments if moment is not None]
    if not is_finished(status) and (_is_troubled(view) or _has_deleted_pods(view)):
        waits.append(view.settings.trouble_seconds)
    return min(waits, default=None)


def _is_troubled(view: _View) -> bool:
    return bool(
        trouble.first_trouble(view.run, view.observed, view.patience)
        or next(iter(trouble.unsettled(view.run, view.observed)), None)
    )


def _has_deleted_pods(view: _View) -> bool:
    return any(is_deleted(pod) for pod in view.observed.component_pods(names.TRAINER))
