"""Pods and objects are the run's by the uids of their owners: what others make with its labels and names counts for nothing."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from spinrun_kube import names, times
from spinrun_kube.kinds import CHILDREN, POD, kind_of
from spinrun_operator.apply import Applier
from spinrun_operator.observe import Observer, newest_notice, progress_target
from spinrun_operator.observed import Observed, child_id
from spinrun_operator.stall import StallClock
from spinrun_operator.trouble import NOTICES
from unit.operator.test_apply import FakeApi
from unit.operator.test_children import all_children
from unit.operator.world import SETTINGS, START, World, controlled_by, fail, phase_of, run_of, running_world

Json = dict[str, Any]
Forge = Callable[..., None]

JOB = controlled_by("Job", "demo-trainer-1")
FORGERIES: dict[str, Any] = {
    "labels alone": None,
    "no owners": [],
    "owner of the same name": [JOB | {"uid": "of-another-job"}],
    "owner that is not the controller": [{name: value for name, value in JOB.items() if name != "controller"}],
    "owner that says it is not the controller": [JOB | {"controller": False}],
    "controller of somebody else beside the right owner": [JOB | {"controller": False}, JOB | {"uid": "of-another-job"}],
    "owned by the run itself": [{"kind": "SpinRun", "name": "demo", "uid": run_of().metadata.uid, "controller": True}],
    "owned by a pod of the run": [controlled_by("Pod", "demo-trainer-1-0-abcde")],
}


@pytest.fixture(params=FORGERIES.values(), ids=list(FORGERIES))
def forge(request: pytest.FixtureRequest) -> Forge:
    """Puts a pod of somebody else's into a world, which looks like one of the trainer or of another component."""

    def put(world: World, component: str = names.TRAINER, **pod: Any) -> None:
        labels = names.labels(world.run, component) | {
            names.ATTEMPT_LABEL: str(world.run.status.attempt if world.run.status else 1)
        }
        metadata: Json = {"name": "a-forged", "uid": "forged", "labels": labels, "creationTimestamp": times.to_text(START)}
        metadata["annotations"] = {"batch.kubernetes.io/job-completion-index": "0"}
        metadata |= {} if request.param is None else {"ownerReferences": request.param}
        metadata |= pod.pop("metadata", {})
        status = {"phase": "Running", "podIP": "10.66.66.66", **pod}
        forged = {"kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "trainer"}]}, "status": status}
        # In front, where it would be met first.
        world.observed = replace(world.observed, pods=(forged, *world.observed.pods))

    return put


def ended(code: int, finished: str = "2026-01-01T12:00:10Z") -> Json:
    """The status of a pod whose trainer ended."""
    state = {"terminated": {"exitCode": code, "startedAt": times.to_text(START), "finishedAt": finished, "message": "forged"}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "trainer", "state": state}]}


def unchanged_by(world: World) -> bool:
    """Whether a pass changes nothing but what it always does."""
    before = world.run.status
    plan = world.settle()
    return (plan.status, plan.delete, plan.events) == (before, [], [])


# --- pods ----------------------------------------------------------------------------------------------------------


def test_progress_is_asked_of_the_runs_own_pod_alone(forge: Forge) -> None:
    world = running_world()
    world.no_pods()
    forge(world)
    assert progress_target(world.run, world.observed, 1) is None
    world.trainer_pod(podIP="10.0.0.5", metadata={"annotations": {"batch.kubernetes.io/job-completion-index": "0"}})
    target = progress_target(world.run, world.observed, 1)
    assert target is not None
    assert target.host == "10.0.0.5"


def test_attempt_does_not_start_by_a_forged_pod(forge: Forge) -> None:
    world = World()
    world.settle()
    forge(world)
    world.settle()
    assert world.run.status is not None
    assert (phase_of(world), world.run.status.attempt_start_time, world.told()) == ("Pending", None, [])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_forged_end_ends_nothing(forge: Forge, code: int) -> None:
    world = running_world()
    forge(world, **ended(code))
    assert unchanged_by(world)
    assert phase_of(world) == "Running"


def test_forged_end_does_not_say_how_an_attempt_ended(forge: Forge) -> None:
    world = running_world()
    forge(world, **ended(2, "2026-01-01T12:00:01Z"))
    fail(world, 1, 1, message="boom")
    world.settle()
    assert world.run.status is not None
    assert (phase_of(world), world.run.status.failed_attempts) == ("Restarting", 1)
    assert "boom" in world.events[-1].message
    assert "forged" not in world.events[-1].message


def test_forged_completion_does_not_complete_a_job_that_failed(forge: Forge) -> None:
    world = running_world()
    forge(world, **ended(0))
    fail(world, 1, 1)
    world.settle()
    assert phase_of(world) == "Restarting"


def test_forged_pod_that_cannot_be_deleted_restarts_nothing(forge: Forge) -> None:
    world = running_world()
    world.pass_time(3600)
    forge(world, metadata={"deletionTimestamp": times.to_text(START), "finalizers": ["x/y"]})
    assert unchanged_by(world)


def test_forged_pod_that_runs_does_not_hold_up_the_next_attempt(forge: Forge) -> None:
    world = running_world()
    fail(world, 1, 1)
    world.settle()
    world.no_pods()
    world.pass_time(1000)
    forge(world, metadata={"labels": names.labels(world.run, names.TRAINER) | {names.ATTEMPT_LABEL: "1"}})
    world.settle()
    assert "demo-trainer-2" in world.jobs()


@pytest.mark.parametrize("component", [names.TRAINER, names.ROLLOUT, names.SCORER])
def test_suspension_does_not_wait_for_forged_pods(forge: Forge, component: str) -> None:
    world = running_world()
    world.change_spec(lifecycle={"suspend": True})
    world.settle()
    world.no_pods()
    forge(world, component)
    world.settle()
    condition = world.condition("Suspended")
    assert condition is not None
    assert condition.status == "True"


def test_trouble_of_a_forged_pod_is_not_the_runs(forge: Forge) -> None:
    world = running_world()
    waiting = [{"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]
    forge(world, phase="Pending", containerStatuses=waiting)
    assert unchanged_by(world)


def test_forged_pod_does_not_stand_for_a_rollout_that_is_missing(forge: Forge) -> None:
    world = running_world()
    before = world.step().status.rollouts
    world.no_pods()
    world.trainer_pod()
    forge(world, names.ROLLOUT, metadata={"name": "demo-rollout-0"}, conditions=[{"type": "Ready", "status": "True"}])
    world.rollouts_ready(0)
    plan = world.step()
    assert before is not None
    assert plan.status.rollouts is not None
    assert (before.ready, plan.status.rollouts.ready) == (1, 0)
    assert plan.requeue_seconds == SETTINGS.trouble_seconds, "it looks for what keeps the rollout from being there"


def test_pods_of_the_run_before_are_not_this_runs() -> None:
    world = running_world()
    assert world.observed.own_pods(world.run)
    again = world.run.model_copy(update={"metadata": world.run.metadata.model_copy(update={"uid": "another"})})
    assert world.observed.own_pods(again) == []


# --- what is remembered --------------------------------------------------------------------------------------------


class Watched:
    """The copies of an operator's watches, as a test changes them."""

    def __init__(self) -> None:
        self.world = running_world()
        kinds = [kind for kind in CHILDREN if kind.name in ("Job", "StatefulSet")]
        informers: list[Any] = [SimpleNamespace(kind=POD, of_run=lambda _: list(self.world.observed.pods))]
        informers += [SimpleNamespace(kind=kind, of_run=lambda _, kind=kind: self._children(kind)) for kind in kinds]
        self.observer = Observer(None, informers, StallClock(), SETTINGS)  # type: ignore[arg-type]

    def _children(self, kind: Any) -> list[Json]:
        return [child for child in self.world.observed.children.values() if kind_of(child) == kind]

    async def look(self) -> Observed:
        run = self.world.run
        return await self.observer.observe(run, ("team", "demo"), refusals=(), progress=None, now=self.world.now)


async def test_pods_that_outlive_their_deleted_job_are_still_the_runs() -> None:
    watched = Watched()
    assert (await watched.look()).former_controllers == {}
    del watched.world.observed.children["Job", "demo-trainer-1"]
    seen = await watched.look()
    assert [pod["metadata"]["name"] for pod in seen.trainer_pods(watched.world.run)] == ["demo-trainer-1-0-abcde"]
    watched.world.observed = seen
    watched.world.settle()
    assert watched.world.jobs() == [], "the old trainer may still write"
    watched.world.no_pods()
    assert (await watched.look()).former_controllers == {}, "forgotten with its last pod"
    watched.world.trainer_pod()
    assert (await watched.look()).trainer_pods(watched.world.run) == []


async def test_run_of_the_same_name_does_not_inherit_pods() -> None:
    watched = Watched()
    await watched.look()
    watched.world.run = watched.world.run.model_copy(
        update={"metadata": watched.world.run.metadata.model_copy(update={"uid": "b"})}
    )
    seen = await watched.look()
    assert (seen.former_controllers, seen.own_pods(watched.world.run)) == ({}, [])


# --- objects with the name of a child ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "owners", [None, [], [JOB], [{"kind": "SpinRun", "name": "demo", "uid": run_of().metadata.uid}]], ids=str
)
@pytest.mark.parametrize("wanted", all_children(), ids=lambda child: f"{child['kind']}-{child['metadata']['name']}")
async def test_object_of_somebody_else_with_a_childs_name_is_named_and_left_alone(wanted: Json, owners: Any) -> None:
    kind, name = child_id(wanted)
    metadata: Json = {"name": name, "uid": "7", "resourceVersion": "1", "labels": {names.RUN_LABEL: "demo"}}
    api = FakeApi(wanted | {"metadata": metadata | ({} if owners is None else {"ownerReferences": owners})})
    for known in (None, api.live):
        refusal = await Applier(api, lambda _: None).apply(run_of(), wanted, known)  # type: ignore[arg-type]
        assert refusal is not None
        assert (refusal.reason, api.applied) == ("ChildConflict", [])
        assert f"{kind} {name} exists and is not this run's" in refusal.message


def test_objects_of_others_are_neither_deleted_nor_taken_for_the_runs() -> None:
    world = World()
    world.settle()
    forged = {"kind": "Job", "metadata": {"name": "demo-trainer-0", "uid": "7", "labels": {names.ATTEMPT_LABEL: "0"}}, "spec": {}}
    ready = {"kind": "StatefulSet", "metadata": {"name": "demo-rollout", "uid": "8"}, "status": {"readyReplicas": 1}, "spec": {}}
    world.observed.children.update({child_id(each): each for each in (forged, ready)})
    world.observed.children["Job", "demo-trainer-1"]["metadata"]["ownerReferences"] = []
    plan = world.step()
    assert plan.delete == []
    assert plan.status.rollouts is not None
    assert plan.status.rollouts.ready == 0
    assert ("Job", "demo-trainer-1") in [child_id(child) for child in plan.apply], "to be told of the conflict"


# --- events --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", ["", "2026-01-01", "soon", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
def test_event_with_an_odd_time_hides_no_other(time: str) -> None:
    document = running_world().observed.pods[0]
    events = [
        {"reason": next(iter(NOTICES)), "message": message, "lastTimestamp": at, "metadata": {"creationTimestamp": at}}
        for message, at in (("odd", time), ("true", times.to_text(START)))
    ]
    for order in (events, events[::-1]):
        assert [notice.message for notice in newest_notice(document, order, START)] == ["true"]
