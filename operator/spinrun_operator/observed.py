"""What a reconcile knows of the world besides the run: plain data, gathered by observe.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_protocol.wire import Progress

Json = dict[str, Any]
ChildId = tuple[str, str]
"""Kind and name."""
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
"""Kubernetes' own: which of its Job's pods a pod is, from 0."""


def child_id(document: Json) -> ChildId:
    """Kind and name of a document."""
    return document["kind"], document["metadata"]["name"]


@dataclass(frozen=True)
class Refusal:
    """A child that could not be made or changed, and will be tried again."""

    child: ChildId
    reason: str
    message: str


@dataclass(frozen=True)
class Notice:
    """A warning event of another controller about one of the run's children."""

    child: ChildId
    reason: str
    message: str


@dataclass(frozen=True)
class TrainerProgress:
    """What rank 0 said, and when."""

    progress: Progress
    received: datetime


@dataclass(frozen=True)
class Observed:
    """The run's children, and what stands in their way."""

    children: dict[ChildId, Json] = field(default_factory=dict[ChildId, Json])
    """Objects with the run's label, pods apart, and those with a child's name that an attempt to make it found."""

    pods: tuple[Json, ...] = ()
    """Pods of trainer, rollouts and scorers."""

    refusals: tuple[Refusal, ...] = ()
    """What the last attempt to apply the children met."""

    notices: tuple[Notice, ...] = ()
    """What other controllers complain about."""

    progress: TrainerProgress | None = None
    """The newest progress that is worth a status write."""

    new_token: str = ""
    """A fresh random token, for the case that the run has none yet."""

    has_pod_monitors: bool = False
    """Whether the cluster knows the kind PodMonitor."""

    def own_child(self, run: SpinRun, kind: str, name: str) -> Json | None:
        """The child when it is there and is this run's."""
        found = self.children.get((kind, name))
        return found if found is not None and names.belongs_to(run, found) else None

    def own_jobs(self, run: SpinRun) -> Iterator[Json]:
        """The run's Jobs, of all attempts."""
        return (job for (kind, _), job in self.children.items() if kind == "Job" and names.belongs_to(run, job))

    def component_pods(self, component: str) -> list[Json]:
        """Pods of trainer, rollouts or scorers."""
        return [pod for pod in self.pods if pod["metadata"].get("labels", {}).get(names.COMPONENT_LABEL) == component]

    def attempt_pods(self, attempt: int) -> list[Json]:
        """The trainer's pods of an attempt."""
        wanted = str(attempt)
        pods = self.component_pods(names.TRAINER)
        return [pod for pod in pods if pod["metadata"]["labels"].get(names.ATTEMPT_LABEL) == wanted]


def is_deleted(document: Json) -> bool:
    """Whether the object is on its way out."""
    return "deletionTimestamp" in document["metadata"]


def is_over(pod: Json) -> bool:
    """Whether none of the pod's containers will run any more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def has_ended(job: Json) -> bool:
    """Whether a Job is Complete or Failed."""
    return bool(has_condition(job, "Complete") or has_condition(job, "Failed"))


def has_condition(document: Json, kind: str) -> Json | None:
    """The condition of that type when its status is True."""
    conditions = document.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)
