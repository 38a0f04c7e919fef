"""What a reconcile knows of the world besides the run: plain data, gathered by observe.py."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
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


def makes_pods(child: Json) -> bool:
    """Whether a child is one whose pods the run waits for."""
    return child["kind"] in ("StatefulSet", "Job")


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
    """Pods with the run's label, whoever made them: the methods below tell which are the run's."""

    former_controllers: Mapping[str, ChildId] = field(default_factory=dict[str, ChildId])
    """Jobs and StatefulSets of the run that are gone while pods of theirs still end, by uid."""

    refusals: tuple[Refusal, ...] = ()
    """What the last attempt to apply the children met."""

    notices: tuple[Notice, ...] = ()
    """What other controllers complain about."""

    progress: TrainerProgress | None = None
    """The newest progress that is worth a status write."""

    stalled_seconds: float | None = None
    """How long the attempt has not got any further, as far as this operator has seen; None while its pods wait for nodes."""

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

    # --- pods: the run's by their owners' uids, because anybody can write labels ------------------------------------

    def own_pods(self, run: SpinRun) -> list[Json]:
        """The pods of trainer, rollouts and scorers."""
        return self._pods_of(run, lambda _: True)

    def trainer_pods(self, run: SpinRun) -> list[Json]:
        """The trainer's pods of all attempts."""
        return self._pods_of(run, lambda controller: controller[0] == "Job")

    def attempt_pods(self, run: SpinRun, attempt: int) -> list[Json]:
        """The trainer's pods of an attempt."""
        job = ("Job", names.job_name(run, attempt))
        return self._pods_of(run, lambda controller: controller == job)

    def server_pods(self, run: SpinRun, name: str) -> list[Json]:
        """The pods of rollouts or scorers, by the name of their StatefulSet."""
        return self._pods_of(run, lambda controller: controller == ("StatefulSet", name))

    def _pods_of(self, run: SpinRun, is_meant: Callable[[ChildId], bool]) -> list[Json]:
        controllers = dict(self.former_controllers) | own_controllers(run, self.children)
        return [pod for uid, controller in controllers.items() if is_meant(controller) for pod in self._pods_by_owner[uid]]

    @cached_property
    def _pods_by_owner(self) -> Mapping[str, list[Json]]:
        found: defaultdict[str, list[Json]] = defaultdict(list)
        for pod in self.pods:
            if controller := names.controller_of(pod):
                found[controller["uid"]].append(pod)
        return found


def own_controllers(run: SpinRun, children: Mapping[ChildId, Json]) -> dict[str, ChildId]:
    """The run's Jobs and StatefulSets, which make its pods, by uid."""
    return {
        child["metadata"]["uid"]: which
        for which, child in children.items()
        if which[0] in ("Job", "StatefulSet") and names.belongs_to(run, child)
    }


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
