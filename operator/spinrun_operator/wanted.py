"""The children that a run should have now, and those that should go."""

from typing import Any

from spinrun_api.status import RolloutStatus, ScorerStatus, SpinRunStatus
from spinrun_kube import names, times
from spinrun_operator.children.ledger_claim import is_usable, ledger_claim
from spinrun_operator.children.network_policy import network_policy, trainer_network_policy
from spinrun_operator.children.pod_monitor import pod_monitor
from spinrun_operator.children.rollout_statefulset import rollout_statefulset
from spinrun_operator.children.run_config import run_config
from spinrun_operator.children.scorer_statefulset import scorer_statefulset, without_pods
from spinrun_operator.children.service_account import service_account
from spinrun_operator.children.services import rollout_service, scorer_service, trainer_service
from spinrun_operator.children.token_secret import token_secret
from spinrun_operator.children.trainer_job import trainer_job
from spinrun_operator.observed import has_ended, is_deleted
from spinrun_operator.policies import retention, suspend
from spinrun_operator.status import current_attempt, is_finished, with_servers
from spinrun_operator.view import View

Json = dict[str, Any]


def wanted_children(view: View, status: SpinRunStatus) -> list[Json]:
    """Children as they should be, each after those that it needs. What is made once is left out when it is there."""
    run, settings, make = view.run, view.settings, view.documents.make
    children = [
        make(service_account),
        make(run_config),
        make(rollout_service),
        make(network_policy, settings),
        *_former_network_policies(view),
    ]
    if run.spec.trainer.nodes > 1:
        children += [make(trainer_service), make(trainer_network_policy)]
    if view.observed.own_child(run, "Secret", names.token_name(run)) is None:
        children.insert(0, view.documents.finish(token_secret(run, view.observed.new_token)))
    claim, present = ledger_claim(run), view.observed.children.get(("PersistentVolumeClaim", names.claim_name(run)))
    if claim is not None and not (present and is_usable(run, present)):
        children.insert(0, view.documents.finish(claim))
    if view.observed.has_pod_monitors and settings.pod_monitor:
        children.append(make(pod_monitor))
    children.append(make(rollout_statefulset, settings, replicas=_wanted_rollouts(view, status)))
    children += _scorer_children(view, status)
    if _may_start_trainer(view, status):
        # It is made once: there is no need to remember it.
        children.append(view.documents.finish(trainer_job(run, settings, attempt=current_attempt(status))))
    return children


def _scorer_children(view: View, status: SpinRunStatus) -> list[Json]:
    run, settings, make = view.run, view.settings, view.documents.make
    if run.spec.scorers is not None:
        statefulset = make(scorer_statefulset, settings, replicas=_wanted_scorers(view, status))
        return [make(scorer_service), statefulset]
    # Before its first start a run may still be given another preference.
    left = view.observed.own_child(run, "StatefulSet", names.scorer_name(run))
    return [] if left is None else [view.documents.finish(without_pods(run, left))]


def _former_network_policies(view: View) -> list[Json]:
    """NetworkPolicies that an older operator made, and that the operator may not delete.

    Policies add up: what these allow must be what the run allows now, not what it allowed then.
    """
    run, settings, finish = view.run, view.settings, view.documents.finish
    left = [
        finish(network_policy(run, settings, name=name))
        for name in names.former_network_policy_names(run)
        if view.observed.own_child(run, "NetworkPolicy", name) is not None
    ]
    if run.spec.trainer.nodes == 1 and view.observed.own_child(run, "NetworkPolicy", names.trainer_name(run)) is not None:
        left.append(view.documents.make(trainer_network_policy))
    return left


def _may_start_trainer(view: View, status: SpinRunStatus) -> bool:
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


def unwanted_jobs(view: View, status: SpinRunStatus) -> list[Json]:
    """Jobs of earlier attempts, and this one's when it must not run any longer or was made from another spec."""
    jobs = retention.superseded_jobs(list(view.observed.own_jobs(view.run)), current_attempt(status))
    current = view.job(current_attempt(status))
    if current is None or is_deleted(current) or has_ended(current):
        return jobs
    revision = current["metadata"].get("annotations", {}).get(names.REVISION_ANNOTATION)
    if is_finished(status) or view.run.spec.lifecycle.suspend or revision != view.documents.revision:
        jobs.append(current)
    return jobs


# --- how many servers ----------------------------------------------------------------------------------------------


def with_server_counts(view: View, status: SpinRunStatus) -> SpinRunStatus:
    """The status with how many rollouts and scorers are ready, and how many there should be."""
    scorers = None
    if view.run.spec.scorers is not None:
        scorers = ScorerStatus(ready=view.ready_scorers, desired=_wanted_scorers(view, status))
    rollouts = RolloutStatus(ready=view.ready_rollouts, desired=_wanted_rollouts(view, status))
    return with_servers(status, rollouts=rollouts, scorers=scorers, seen=view.observed.progress)


def _wanted_rollouts(view: View, status: SpinRunStatus) -> int:
    return _wanted_servers(view, status, view.run.spec.rollout.replicas)


def _wanted_scorers(view: View, status: SpinRunStatus) -> int:
    scorers = view.run.spec.scorers
    return _wanted_servers(view, status, scorers.replicas) if scorers is not None else 0


def _wanted_servers(view: View, status: SpinRunStatus, replicas: int) -> int:
    over = is_finished(view.before) or status.completion_time is not None
    return suspend.wanted_servers(view.run.spec, replicas, over=over, trainer_alive=view.is_trainer_alive)
