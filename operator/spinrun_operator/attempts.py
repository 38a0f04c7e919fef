"""The trainer's attempts in the status: the start of one, the number of the next, and the end of the last."""

from spinrun_api.status import Metrics
from spinrun_kube import names, times
from spinrun_operator import reasons
from spinrun_operator.draft import Draft
from spinrun_operator.observed import is_deleted
from spinrun_operator.policies import deadline, failure
from spinrun_operator.status import LEDGER_UNAVAILABLE, condition_of, is_true, rounded
from spinrun_operator.view import View


def record_start(view: View, draft: Draft) -> None:
    """Records the first sight of this attempt's running trainer, from which its Job is not made a second time."""
    if view.before.attempt_start_time is not None or not view.has_trainer_started:
        return
    started = times.to_text(view.now)
    draft.change(attempt_start_time=started, next_attempt_time=None, start_time=view.before.start_time or started)
    draft.record_event("Normal", reasons.TRAINER_STARTED, f"attempt {view.attempt} of the trainer is running")


def follow_up(view: View) -> failure.FollowUp | None:
    """What follows from the end of the attempt, or of the time that the run has; None while neither is there."""
    lifecycle = view.run.spec.lifecycle
    if (end := view.attempt_end) is not None:
        unavailable = condition_of(view.before, LEDGER_UNAVAILABLE) if is_true(view.before, LEDGER_UNAVAILABLE) else None
        return failure.follow_up(
            end,
            lifecycle,
            view.settings,
            failed_attempts=view.before.failed_attempts or 0,
            ledger_unavailable_since=times.from_text(unavailable.last_transition_time) if unavailable else None,
            now=view.now,
        )
    for name in (names.rollout_name(view.run), names.scorer_name(view.run)):
        for pod in view.observed.server_pods(view.run, name):
            if not is_deleted(pod) and (refusal := failure.refusal(pod)):
                return refusal
    limit = deadline.deadline(lifecycle, view.before)
    # The pause that now ends is counted in this pass.
    if limit is not None and limit <= view.now and not view.is_paused:
        message = f"the run was active longer than activeDeadlineSeconds: {lifecycle.active_deadline_seconds}"
        return failure.FollowUp("Fail", reasons.DEADLINE_EXCEEDED, message)
    return None


def number_next(view: View, draft: Draft, follows: failure.FollowUp | None) -> None:
    """Numbers the next attempt when this one is over or gone.

    Args:
        view: What is seen.
        draft: The status.
        follows: What follows from the end of this one; None where it has not ended, and where it is gone.
    """
    if follows is None and not view.is_job_gone:
        return
    draft.change(attempt=view.attempt + 1, attempt_start_time=None, next_attempt_time=None, activity=None, eta=None)
    if follows is None:
        if not view.run.spec.lifecycle.suspend:
            message = f"the Job of attempt {view.attempt} is gone; starting attempt {view.attempt + 1}"
            draft.record_event("Normal", reasons.TRAINER_LOST, message)
        return
    _count(draft, follows)
    if follows.delay_seconds:
        draft.change(next_attempt_time=times.to_text(times.later(view.now, follows.delay_seconds)))
    draft.record_event("Warning", follows.reason, f"attempt {view.attempt}: {follows.message}")


def cap_wait(view: View, draft: Draft) -> None:
    """Brings the next attempt forward where its time is farther away than any wait: the clock was set back since."""
    if draft.status.next_attempt_time is None:
        return
    latest = times.later(view.now, view.settings.max_restart_delay_seconds)
    if times.from_text(draft.status.next_attempt_time) > latest:
        draft.change(next_attempt_time=times.to_text(latest))


def end_run(view: View, draft: Draft, follows: failure.FollowUp) -> None:
    """Writes that the run is over."""
    draft.change(completion_time=times.to_text(view.now), eta=None, next_attempt_time=None)
    _count(draft, follows)
    is_complete = follows.action == "Complete"
    if is_complete:
        draft.change(activity="finished")
        _take_last_figures(view, draft)
    draft.record_event("Normal" if is_complete else "Warning", follows.reason, follows.message)


def _count(draft: Draft, follows: failure.FollowUp) -> None:
    """Counts the attempt that ended, if it counts."""
    if follows.counted:
        draft.change(failed_attempts=(draft.status.failed_attempts or 0) + 1)


def _take_last_figures(view: View, draft: Draft) -> None:
    """Takes over what the trainer's termination message says beyond the progress that was read last."""
    end = view.attempt_end
    if end is None or end.termination is None:
        return
    draft.change(**end.termination.model_dump(include={"window", "step", "version"}, exclude_none=True))
    if end.termination.accuracy is not None:
        metrics = draft.status.metrics or Metrics()
        draft.change(metrics=rounded(metrics.model_copy(update={"accuracy": end.termination.accuracy})))
