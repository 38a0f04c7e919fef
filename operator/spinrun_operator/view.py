"""A run and what is seen of its children, as the questions that every step of a reconcile asks of them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_kube import names, times
from spinrun_operator.containers import has_started, trainer_end
from spinrun_operator.documents import ChildDocuments
from spinrun_operator.observed import Observed, is_deleted, is_over
from spinrun_operator.policies import failure, progress_deadline
from spinrun_operator.settings import Settings
from spinrun_operator.status import SUSPENDED, current_attempt, is_true
from spinrun_operator.trouble import Patience

Json = dict[str, Any]

STUCK_POD_SECONDS = 60
"""Time after the end of a deleted pod's grace period from which it counts as lost with its node. Should it still run, the
ledger refuses it: a newer attempt owns it."""


@dataclass(frozen=True)
class View:
    """The arguments of `reconcile`, and what follows from them alone."""

    run: SpinRun
    observed: Observed
    settings: Settings
    now: datetime
    documents: ChildDocuments

    @property
    def before(self) -> SpinRunStatus:
        """The status as it is on record."""
        return self.run.status or SpinRunStatus()

    @property
    def patience(self) -> Patience:
        """How long something may be in the way before it counts as trouble."""
        return Patience(self.now, self.settings.unscheduled_seconds)

    @property
    def is_paused(self) -> bool:
        """Whether the run was suspended when it was last looked at."""
        return is_true(self.before, SUSPENDED)

    # --- the trainer -----------------------------------------------------------------------------------------------

    @property
    def attempt(self) -> int:
        """Number of the attempt that is under way, or comes first."""
        return current_attempt(self.before)

    def job(self, attempt: int) -> Json | None:
        """The attempt's Job, also while it is being deleted."""
        return self.observed.own_child(self.run, "Job", names.job_name(self.run, attempt))

    @property
    def is_job_gone(self) -> bool:
        """Whether an attempt that ran has lost its Job: by a suspension, a changed spec, or somebody's hand."""
        job = self.job(self.attempt)
        return self.before.attempt_start_time is not None and (job is None or is_deleted(job))

    @property
    def has_trainer_started(self) -> bool:
        """Whether the trainer of this attempt runs or has run."""
        return any(map(has_started, self.observed.attempt_pods(self.run, self.attempt)))

    @property
    def is_trainer_alive(self) -> bool:
        """Whether a trainer of any attempt may still write. One that has ended does not, whatever runs beside it."""
        return any(trainer_end(pod) is None for pod in self._trainer_pods())

    @property
    def has_trainer_pods(self) -> bool:
        """Whether a trainer pod of any attempt has not ended."""
        return bool(self._trainer_pods())

    def _trainer_pods(self) -> list[Json]:
        """The trainer pods of all attempts that have not ended."""
        pods = self.observed.trainer_pods(self.run)
        return [pod for pod in pods if not is_over(pod) and not self._is_stuck(pod)]

    @property
    def attempt_end(self) -> failure.AttemptEnd | None:
        """How this attempt ended; None while it lasts or has not begun."""
        job, pods = self.job(self.attempt), self.observed.attempt_pods(self.run, self.attempt)
        if job is not None and (end := failure.attempt_end(job, pods)):
            return end
        if job is not None and not is_deleted(job) and any(self._is_stuck(pod) for pod in pods):
            return failure.AttemptEnd(failure.Cause.DISRUPTION, "a trainer pod was deleted and its node does not answer")
        told = self.observed.progress
        told = told if told is not None and told.progress.attempt == self.attempt else None
        return progress_deadline.stalled_end(self.run.spec.lifecycle, self.observed.stalled_seconds, told)

    def _is_stuck(self, pod: Json) -> bool:
        """Whether a deleted pod has not ended long after it had to."""
        if not is_deleted(pod):
            return False
        # The API server sets the time of deletion to the end of the grace period.
        return times.seconds_between(times.from_text(pod["metadata"]["deletionTimestamp"]), self.now) > STUCK_POD_SECONDS

    # --- rollouts and scorers --------------------------------------------------------------------------------------

    @property
    def ready_rollouts(self) -> int:
        """Rollouts that are Ready."""
        return self._ready_replicas(names.rollout_name(self.run))

    @property
    def ready_scorers(self) -> int:
        """Scorers that are Ready."""
        return self._ready_replicas(names.scorer_name(self.run))

    def _ready_replicas(self, name: str) -> int:
        servers = self.observed.own_child(self.run, "StatefulSet", name)
        return (servers or {}).get("status", {}).get("readyReplicas", 0)

    @property
    def has_servers(self) -> bool:
        """Whether a pod of rollouts or scorers is there."""
        return any(self.observed.server_pods(self.run, name(self.run)) for name in (names.rollout_name, names.scorer_name))
