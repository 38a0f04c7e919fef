"""A cluster without a cluster: the operator's plans are carried out on plain dictionaries."""

import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from spinrun_api.documents import parse_run
from spinrun_api.run import SpinRun
from spinrun_api.status import Condition
from spinrun_kube import names, times
from spinrun_operator.documents import ChildDocuments
from spinrun_operator.observed import Observed, TrainerProgress, child_id
from spinrun_operator.plan import Event, Plan
from spinrun_operator.reconcile import reconcile
from spinrun_operator.settings import Settings
from spinrun_protocol.wire import Progress

Json = dict[str, Any]

START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
OWN_MODEL: Json = {"preference": {"rewardModel": {"source": "org/stern"}}}
"""Of a run that serves the model of its preference itself."""
SETTINGS = Settings(accelerator="cpu", worker_image="worker:1", vllm_image="vllm:1", starting_seconds=0)


def run_of(name: str = "demo", status: Json | None = None, **spec: Any) -> SpinRun:
    """A run; `spec` replaces whole blocks."""
    blocks = {
        "model": {"source": "/models/tiny"},
        "data": {"prompts": {"source": "arithmetic"}},
        "preference": {"rule": {"kind": "lastNumber"}},
        "storage": {"size": "1Gi"},
    }
    metadata = {"name": name, "namespace": "team", "uid": UID, "generation": 1}
    document = {"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": metadata, "spec": blocks | spec}
    return parse_run(document | ({"status": status} if status else {}))


@dataclass
class World:
    """One run with its children. `step` is one pass of the operator; between passes a test moves pods and time."""

    run: SpinRun = field(default_factory=run_of)
    observed: Observed = field(default_factory=lambda: Observed(new_token="secret"))
    now: datetime = START
    settings: Settings = SETTINGS
    events: list[Event] = field(default_factory=list)

    def step(self, documents: ChildDocuments | None = None) -> Plan:
        """One pass: what the plan says is done, and the plan returned."""
        plan = reconcile(self.run, self.observed, self.settings, self.now, documents)
        self.run = self.run.model_copy(update={"status": plan.status})
        children = dict(self.observed.children)
        for child in plan.apply:
            known = children.get(child_id(child), {})
            created = {"uid": f"uid-of-{child['metadata']['name']}", "creationTimestamp": times.to_text(self.now)}
            children[child_id(child)] = copy.deepcopy(child) | {
                "metadata": created | child["metadata"],
                "status": known.get("status", {}),
            }
        former = dict(self.observed.former_controllers)
        for child in plan.delete:
            former[children.pop(child_id(child))["metadata"]["uid"]] = child_id(child)
        self.observed = replace(self.observed, children=children, former_controllers=former)
        self.events += plan.events
        return plan

    def settle(self) -> Plan:
        """Passes until one changes nothing."""
        for _ in range(10):
            before = (self.run.status, self.observed.children.keys())
            plan = self.step()
            if (self.run.status, self.observed.children.keys()) == before:
                return plan
        raise AssertionError("the operator does not come to rest")

    def change_spec(self, **spec: Any) -> None:
        """The user changes blocks of the spec."""
        document = self.run.to_document()
        document["spec"] = document["spec"] | spec
        document["metadata"]["generation"] += 1
        self.run = parse_run(document)

    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)

    def trainer_pod(self, attempt: int = 1, index: int = 0, *, phase: str = "Running", **more: Any) -> None:
        """A pod of the trainer as it is now."""
        name = f"demo-trainer-{attempt}-{index}-abcde"
        labels = names.labels(self.run, names.TRAINER) | {names.ATTEMPT_LABEL: str(attempt)}
        metadata = self._pod_metadata(name, "Job", f"demo-trainer-{attempt}", labels)
        self._put(pod_of(metadata | more.pop("metadata", {}), phase, **more))

    def rollout_pod(self, index: int = 0, *, phase: str = "Running", **more: Any) -> None:
        """A pod of the rollouts as it is now."""
        labels = names.labels(self.run, names.ROLLOUT)
        metadata = self._pod_metadata(f"demo-rollout-{index}", "StatefulSet", "demo-rollout", labels)
        self._put(pod_of(metadata, phase, **more))

    def scorer_pod(self, index: int = 0, *, phase: str = "Running", **more: Any) -> None:
        """A pod of the scorers as it is now."""
        labels = names.labels(self.run, names.SCORER)
        metadata = self._pod_metadata(f"demo-scorer-{index}", "StatefulSet", "demo-scorer", labels)
        self._put(pod_of(metadata, phase, **more))

    def _pod_metadata(self, name: str, kind: str, owner: str, labels: Json) -> Json:
        """Of a pod that a Job or a StatefulSet has made."""
        return {
            "name": name,
            "uid": f"uid-of-{name}",
            "labels": labels,
            "creationTimestamp": times.to_text(START),
            "ownerReferences": [controlled_by(kind, owner)],
        }

    def _put(self, pod: Json) -> None:
        others = [other for other in self.observed.pods if other["metadata"]["name"] != pod["metadata"]["name"]]
        self.observed = replace(self.observed, pods=(*others, pod))

    def no_pods(self) -> None:
        """All pods are gone."""
        self.observed = replace(self.observed, pods=())

    def job(self, attempt: int, *conditions: str) -> None:
        """The Job of an attempt gets conditions."""
        status = {"conditions": [{"type": kind, "status": "True"} for kind in conditions]}
        self._child("Job", f"demo-trainer-{attempt}")["status"] = status

    def rollouts_ready(self, count: int) -> None:
        """So many rollouts are ready."""
        self._child("StatefulSet", "demo-rollout")["status"] = {"readyReplicas": count}

    def scorers_ready(self, count: int) -> None:
        """So many scorers are ready."""
        self._child("StatefulSet", "demo-scorer")["status"] = {"readyReplicas": count}

    def bind_claim(self) -> None:
        """The ledger's claim gets its volume."""
        self._child("PersistentVolumeClaim", "demo-ledger")["status"] = {"phase": "Bound"}

    def tell(self, progress: TrainerProgress | None) -> None:
        """Rank 0 has told its progress."""
        self.observed = replace(self.observed, progress=progress)

    def _child(self, kind: str, name: str) -> Json:
        return self.observed.children[kind, name]

    # --- what a test asks ---------------------------------------------------------------------------------------

    def jobs(self) -> list[str]:
        """Names of the Jobs."""
        return sorted(name for kind, name in self.observed.children if kind == "Job")

    def replicas(self, component: str = names.ROLLOUT) -> int:
        """Rollouts, or scorers, asked for."""
        return self._child("StatefulSet", f"demo-{component}")["spec"]["replicas"]

    def condition(self, kind: str) -> Condition | None:
        """A condition of the run."""
        assert self.run.status is not None
        return next((condition for condition in self.run.status.conditions if condition.type == kind), None)

    def told(self) -> list[str]:
        """Reasons of the events so far."""
        return [event.reason for event in self.events]


def controlled_by(kind: str, name: str) -> Json:
    """The owner reference of what a child of the world has made."""
    return {"kind": kind, "name": name, "uid": f"uid-of-{name}", "controller": True}


def pod_of(metadata: Json, phase: str, *, ended: Json | None = None, conditions: list[Json] | None = None, **status: Any) -> Json:
    """A pod. ended: how its trainer's container ended."""
    state = {"terminated": {"finishedAt": "2026-01-01T12:00:30Z", "startedAt": "2026-01-01T12:00:00Z", **ended}} if ended else {}
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "4Gi"}}}]},
        "status": {
            "phase": phase,
            "conditions": conditions or [],
            "containerStatuses": [{"name": "trainer", "state": state}],
            **status,
        },
    }


def running_world(**spec: Any) -> World:
    """A world whose run has its first trainer and all rollouts running."""
    world = World(run_of(**spec))
    world.settle()
    world.trainer_pod()
    for index in range(world.run.spec.rollout.replicas):
        world.rollout_pod(index)
    world.rollouts_ready(world.run.spec.rollout.replicas)
    if scorers := world.run.spec.scorers:
        for index in range(scorers.replicas):
            world.scorer_pod(index)
        world.scorers_ready(scorers.replicas)
    world.bind_claim()
    world.settle()
    return world


# --- what several tests say ----------------------------------------------------------------------------------------


def phase_of(world: World) -> str | None:
    """The run's phase."""
    return world.run.status.phase if world.run.status else None


def fail(world: World, attempt: int, code: int, **ended: Any) -> None:
    """The trainer of an attempt ends on its own."""
    world.trainer_pod(attempt, phase="Failed", ended={"exitCode": code} | ended)
    world.job(attempt, "FailureTarget", "Failed")


def progress_of(**fields: Any) -> TrainerProgress:
    """What rank 0 says."""
    base = {"uid": UID, "attempt": 1, "activity": "train", "window": 1, "windows": 4, "step": 20, "total_steps": 64}
    return TrainerProgress(Progress.model_validate(base | fields), START + timedelta(seconds=30))
