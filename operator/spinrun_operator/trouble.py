"""What stands in a run's way that its spec cannot show: the reason of the condition Degraded, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names, times
from spinrun_operator import reasons
from spinrun_operator.containers import containers_of, last_line
from spinrun_operator.observed import Observed, Refusal, is_deleted, is_over
from spinrun_operator.policies import retention

Json = dict[str, Any]

PATIENCE_SECONDS = 5
"""What is not ready after so long is looked at closely."""


@dataclass(frozen=True)
class Patience:
    """The time, and how long a pod may wait for a node: volumes are being bound, and an autoscaler may add a node."""

    now: datetime
    unscheduled_seconds: float


# Reasons of a waiting container that do not go away by waiting.
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError")

# Reasons of other controllers' events that tell of trouble, and ours for them.
NOTICES = {
    "FailedCreate": reasons.PODS_REFUSED,
    "ProvisioningFailed": reasons.CLAIM_PENDING,
    "FailedMount": reasons.VOLUME_NOT_MOUNTED,
    "FailedAttachVolume": reasons.VOLUME_NOT_MOUNTED,
}


def first_trouble(run: SpinRun, observed: Observed, patience: Patience) -> tuple[str, str] | None:
    """Reason and message of the most telling trouble; None when all is as expected."""
    return next(_troubles(run, observed, patience), None)


def _troubles(run: SpinRun, observed: Observed, patience: Patience) -> Iterator[tuple[str, str]]:
    """All troubles, the causes before their effects."""
    for refusal in observed.refusals:
        if refusal.reason != reasons.WAITING_FOR_CLEANUP:
            yield refusal.reason, refusal.message
    yield from _claim_troubles(run, observed)
    yield from _noticed(observed)
    for pod in observed.own_pods(run):
        if not is_deleted(pod) and not is_over(pod):
            yield from _pod_troubles(run, pod, patience)
    if told := observed.progress:
        of_this_attempt = run.status is not None and told.progress.attempt == run.status.attempt
        if of_this_attempt and told.progress.trouble:
            yield reasons.PREFERENCE_UNAVAILABLE, told.progress.trouble


def _claim_troubles(run: SpinRun, observed: Observed) -> Iterator[tuple[str, str]]:
    claim = observed.children.get(("PersistentVolumeClaim", names.claim_name(run)))
    if claim is not None and claim.get("status", {}).get("phase") == "Lost":
        name = claim["metadata"]["name"]
        yield reasons.CLAIM_LOST, f"the volume of claim {name} is gone: restore the volume, or delete the claim and the run"


def _noticed(observed: Observed) -> Iterator[tuple[str, str]]:
    for notice in observed.notices:
        kind, name = notice.child
        if reason := NOTICES.get(notice.reason):
            quota = "exceeded quota" in notice.message
            remedy = ": raise the quota, or delete what uses it" if quota else ""
            yield reasons.QUOTA_EXCEEDED if quota else reason, f"{kind} {name}: {notice.message}{remedy}"


def _pod_troubles(run: SpinRun, pod: Json, patience: Patience) -> Iterator[tuple[str, str]]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message", condition.get("reason", ""))
            if names_missing_claim(message):
                claim = names.claim_name(run)
                yield reasons.CLAIM_NOT_FOUND, f"there is no claim {claim}: create it, or name another in spec.storage.claimName"
            elif _age(pod, patience.now) >= patience.unscheduled_seconds:
                yield reasons.POD_UNSCHEDULABLE, f"pod {name} is unschedulable: {message}"
    for container in containers_of(pod):
        waiting = container.status.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        where = f"pod {name}, {container.title}"
        if reason in _IMAGE_REASONS:
            image = container.status.get("image", "")
            yield reasons.IMAGE_NOT_PULLED, f"{where}: image {image} cannot be pulled: correct its name or its pull secret"
        elif reason in _CONFIG_REASONS:
            yield reasons.CONFIG_MISSING, f"{where}: {message or reason}: create what is missing, or correct the pod template"
        elif reason == "CrashLoopBackOff":
            yield reasons.CONTAINER_CRASHING, f"{where} is crash-looping{_last_end(container.status)}: see its logs"


def names_missing_claim(message: str) -> bool:
    """Whether the scheduler says that a pod has no node because there is no claim of that name. Else a node may yet come."""
    return "persistentvolumeclaim" in message and "not found" in message


def _last_end(status: Json) -> str:
    """How the container ended, and the last line of what it said."""
    end = status.get("lastState", {}).get("terminated", {})
    if not end:
        return ""
    last = last_line(end.get("message", ""))
    return f" ({end.get('reason')}, exit code {end.get('exitCode')})" + (f": {last}" if last else "")


def puzzling(run: SpinRun, observed: Observed, now: datetime) -> list[Json]:
    """Children that are not as they should be for a while without saying why: events about them may tell."""
    return [each for each in unsettled(run, observed) if _age(each, now) > PATIENCE_SECONDS and not _has_no_node(each)]


def _has_no_node(document: Json) -> bool:
    """Whether it is a pod that says itself what it waits for."""
    return document["kind"] == "Pod" and not document["spec"].get("nodeName")


def unsettled(run: SpinRun, observed: Observed) -> Iterator[Json]:
    """Children that are not yet as they should be."""
    for name in (names.rollout_name(run), names.scorer_name(run)):
        servers = observed.own_child(run, "StatefulSet", name)
        if servers is not None and len(observed.server_pods(run, name)) < servers["spec"].get("replicas", 1):
            yield servers
    for job in observed.own_jobs(run):
        wanted = job["spec"].get("parallelism", 1)
        is_active = not is_deleted(job) and not any(
            each["status"] == "True" for each in job.get("status", {}).get("conditions") or ()
        )
        if is_active and len(observed.attempt_pods(run, retention.job_attempt(job))) < wanted:
            yield job
    claim = observed.children.get(("PersistentVolumeClaim", names.claim_name(run)))
    if claim is not None and claim.get("status", {}).get("phase", "Pending") == "Pending":
        yield claim
    for pod in observed.own_pods(run):
        if pod.get("status", {}).get("phase", "Pending") == "Pending" and not is_deleted(pod):
            yield pod


def _age(document: Json, now: datetime) -> float:
    return times.seconds_between(times.from_text(document["metadata"]["creationTimestamp"]), now)


def waits_for_cleanup(observed: Observed) -> Refusal | None:
    """A child of a deleted run of the same name that still has its name."""
    return next((each for each in observed.refusals if each.reason == reasons.WAITING_FOR_CLEANUP), None)
