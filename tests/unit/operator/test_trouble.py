"""What stands in a run's way."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from spinrun_operator.observe import newest_notice
from spinrun_operator.observed import Notice
from spinrun_operator.trouble import Patience, first_trouble, puzzling
from unit.operator.world import START, World, pod_of, running_world

Json = dict[str, Any]

PATIENCE = Patience(START, unscheduled_seconds=0)


def unschedulable(message: str) -> Json:
    """A pod's condition."""
    return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}


def waiting(reason: str, message: str = "", **more: Any) -> list[Json]:
    """Container statuses."""
    return [{"name": "trainer", "image": "worker:1", "state": {"waiting": {"reason": reason, "message": message}}, **more}]


@pytest.mark.parametrize(
    ("pod", "reason", "message"),
    [
        (
            {"conditions": [unschedulable("0/3 nodes are available")]},
            "PodUnschedulable",
            "is unschedulable: 0/3 nodes are available",
        ),
        (
            {"conditions": [unschedulable('persistentvolumeclaim "demo-ledger" not found')]},
            "ClaimNotFound",
            "there is no claim demo-ledger",
        ),
        ({"containerStatuses": waiting("ImagePullBackOff")}, "ImageNotPulled", "image worker:1 cannot be pulled"),
        (
            {"containerStatuses": waiting("CreateContainerConfigError", "no key")},
            "ConfigMissing",
            "no key: create what is missing",
        ),
        (
            {"containerStatuses": waiting("CrashLoopBackOff", lastState={"terminated": {"reason": "Error", "exitCode": 7}})},
            "ContainerCrashing",
            "is crash-looping (Error, exit code 7)",
        ),
    ],
)
def test_pod_that_does_not_start_says_why(pod: Json, reason: str, message: str) -> None:
    world = running_world()
    world.trainer_pod(phase="Pending", **pod)
    found = first_trouble(world.run, world.observed, PATIENCE)
    assert found is not None
    assert found[0] == reason
    assert message in found[1]


@pytest.mark.parametrize(
    ("message", "want"),
    [
        ("", ""),
        ("loading\n(EngineCore pid=77) ValueError: no such model\n", ": ValueError: no such model"),
        ("x" * 1000, ": " + "x" * 300),
    ],
)
def test_crash_looping_scorer_says_so_with_the_end_of_its_log(message: str, want: str) -> None:
    world = running_world(preference={"rewardModel": {"source": "org/stern"}})
    ended = {"terminated": {"reason": "Error", "exitCode": 1, "message": message}}
    status = {"name": "vllm", "image": "vllm:1", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended}
    world.scorer_pod(containerStatuses=[status])
    found = first_trouble(world.run, world.observed, PATIENCE)
    assert found is not None
    assert found[0] == "ContainerCrashing"
    assert found[1] == f"pod demo-scorer-0, container vllm is crash-looping (Error, exit code 1){want}: see its logs"


@pytest.mark.parametrize("component", ["trainer", "rollout", "scorer"])
@pytest.mark.parametrize(
    ("waits", "reason", "message"),
    [
        ("ImagePullBackOff", "ImageNotPulled", ": image alpine/git cannot be pulled: correct its name or its pull secret"),
        ("ErrImagePull", "ImageNotPulled", ": image alpine/git cannot be pulled: correct its name or its pull secret"),
        ("InvalidImageName", "ImageNotPulled", ": image alpine/git cannot be pulled: correct its name or its pull secret"),
        ("CreateContainerConfigError", "ConfigMissing", ": no such key: create what is missing, or correct the pod template"),
        ("CreateContainerError", "ConfigMissing", ": no such key: create what is missing, or correct the pod template"),
        ("CrashLoopBackOff", "ContainerCrashing", " is crash-looping (OOMKilled, exit code 137): unpacking: see its logs"),
    ],
)
def test_init_container_or_native_sidecar_that_does_not_start_says_why(
    component: str, waits: str, reason: str, message: str
) -> None:
    world = running_world(preference={"rewardModel": {"source": "org/stern"}})
    last = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "message": "cloning\nunpacking\n"}}
    status = {"name": "fetch", "image": "alpine/git", "state": {"waiting": {"reason": waits, "message": "no such key"}}}
    put = {"trainer": world.trainer_pod, "rollout": world.rollout_pod, "scorer": world.scorer_pod}[component]
    fetched = {"name": "proxy", "image": "proxy:1", "state": {"terminated": {"exitCode": 0}}}
    put(
        phase="Pending",
        initContainerStatuses=[fetched, status | {"lastState": last}],
        containerStatuses=waiting("PodInitializing"),
    )
    found = first_trouble(world.run, world.observed, PATIENCE)
    assert found is not None
    assert found[0] == reason
    name = {"trainer": "demo-trainer-1-0-abcde"}.get(component, f"demo-{component}-0")
    assert found[1] == f"pod {name}, init container fetch{message}"


def test_native_sidecar_that_keeps_crashing_is_named_while_the_pod_runs() -> None:
    world = running_world()
    last = {"terminated": {"reason": "Error", "exitCode": 1, "message": "no upstream"}}
    proxy = {"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last}
    world.trainer_pod(initContainerStatuses=[proxy])
    found = first_trouble(world.run, world.observed, PATIENCE)
    assert found is not None
    assert found[1].endswith("init container proxy is crash-looping (Error, exit code 1): no upstream: see its logs")


@pytest.mark.parametrize("state", [{"running": {}}, {"terminated": {"exitCode": 0}}, {"waiting": {"reason": "PodInitializing"}}])
def test_init_container_at_work_is_no_trouble(state: Json) -> None:
    world = running_world()
    world.trainer_pod(phase="Pending", initContainerStatuses=[{"name": "fetch", "state": state}])
    assert first_trouble(world.run, world.observed, PATIENCE) is None


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_pod_that_is_on_its_way_is_no_trouble(reason: str) -> None:
    world = running_world()
    world.trainer_pod(phase="Pending", containerStatuses=waiting(reason))
    assert first_trouble(world.run, world.observed, PATIENCE) is None


@pytest.mark.parametrize(("seconds", "is_trouble"), [(29, False), (30, True)])
def test_pod_may_wait_for_a_node_for_a_while(seconds: float, is_trouble: bool) -> None:
    world = running_world()
    world.trainer_pod(phase="Pending", conditions=[unschedulable("0/3 nodes are available")])
    patience = Patience(START + timedelta(seconds=seconds), unscheduled_seconds=30)
    assert (first_trouble(world.run, world.observed, patience) is not None) == is_trouble


def test_pod_that_is_being_deleted_is_no_trouble() -> None:
    world = running_world()
    deleted = {"deletionTimestamp": "2026-01-01T12:00:00Z"}
    world.trainer_pod(phase="Pending", metadata=deleted, containerStatuses=waiting("ImagePullBackOff"))
    assert first_trouble(world.run, world.observed, PATIENCE) is None


@pytest.mark.parametrize(
    ("reason", "message", "want"),
    [
        ("FailedCreate", "pods is forbidden: exceeded quota: tight", "QuotaExceeded"),
        ("FailedCreate", "violates PodSecurity", "PodsRefused"),
        ("ProvisioningFailed", "no such class", "ClaimPending"),
        ("FailedMount", "configmap not found", "VolumeNotMounted"),
    ],
)
def test_warnings_of_other_controllers_are_passed_on(reason: str, message: str, want: str) -> None:
    world = running_world()
    notice = Notice(("StatefulSet", "demo-rollout"), reason, message)
    found = first_trouble(world.run, replace(world.observed, notices=(notice,)), PATIENCE)
    assert found is not None
    assert found[0] == want
    assert message in found[1]


def test_what_is_puzzling_is_asked_about_only_after_a_while() -> None:
    world = World()
    world.settle()
    assert puzzling(world.run, world.observed, world.now) == []
    kinds = sorted(document["kind"] for document in puzzling(world.run, world.observed, world.now + timedelta(seconds=6)))
    assert kinds == ["Job", "PersistentVolumeClaim", "StatefulSet"]


def test_scorers_that_are_not_made_are_asked_about() -> None:
    world = running_world(preference={"rewardModel": {"source": "org/stern"}}, scorer={"replicas": 2})
    world.observed = replace(world.observed, pods=tuple(pod for pod in world.observed.pods if "scorer-1" not in str(pod)))
    (document,) = puzzling(world.run, world.observed, world.now + timedelta(seconds=6))
    assert document["metadata"]["name"] == "demo-scorer"


def test_nothing_puzzles_about_a_running_run() -> None:
    world = running_world()
    assert puzzling(world.run, world.observed, world.now + timedelta(hours=1)) == []


def event(reason: str, seconds: float, message: str = "m") -> Json:
    """An event of another controller."""
    time = (START + timedelta(seconds=seconds)).isoformat()
    return {"reason": reason, "lastTimestamp": time, "message": message, "metadata": {"creationTimestamp": time}}


def test_newest_telling_event_counts_and_an_old_one_does_not() -> None:
    document = pod_of({"name": "p"}, "Pending") | {"kind": "Pod"}
    events = [event("FailedCreate", -20, "older"), event("FailedCreate", -10, "newer"), event("Scheduled", 0)]
    assert newest_notice(document, events, START) == [Notice(("Pod", "p"), "FailedCreate", "newer")]
    assert newest_notice(document, events, START + timedelta(hours=1)) == []


def test_same_news_about_another_pod_is_the_same_text() -> None:
    document = pod_of({"name": "p"}, "Pending") | {"kind": "Job"}
    told = [newest_notice(document, [event("FailedCreate", 0, f'pods "demo-{name}" is forbidden')], START) for name in "ab"]
    assert told[0] == told[1]
