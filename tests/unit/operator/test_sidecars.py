"""What runs beside the trainer, and before it: neither keeps an attempt from ending nor is taken for the trainer."""

from typing import Any

import pytest

from spinrun_api.status import Metrics
from spinrun_kube import times
from spinrun_operator.observed import INDEX_ANNOTATION
from spinrun_protocol.termination import TerminationMessage
from unit.operator.world import OWN_MODEL, World, fail, phase_of, run_of, running_world

Json = dict[str, Any]

RUNNING: Json = {"running": {"startedAt": "2026-01-01T12:00:00Z"}}
NOT_STARTED: Json = {"waiting": {"reason": "PodInitializing"}}
IMAGE_MISSING: Json = {"waiting": {"reason": "ImagePullBackOff"}}


def ended(code: int, second: int = 30, **more: Any) -> Json:
    """The state of a container that ended."""
    lived = {"startedAt": "2026-01-01T12:00:00Z", "finishedAt": f"2026-01-01T12:00:{second}Z"}
    return {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", **lived, **more}}


def statuses(**states: Json) -> list[Json]:
    """Container statuses by name; _ stands for a dash."""
    return [{"name": name.replace("_", "-"), "image": f"{name}:1", "state": state} for name, state in states.items()]


def node(index: int) -> Json:
    """Metadata of a node's pod, beside what the world gives it."""
    return {"annotations": {INDEX_ANNOTATION: str(index)}}


def reason_of_failure(world: World) -> str:
    """Why the run failed."""
    condition = world.condition("Failed")
    assert condition is not None
    return condition.reason


BESIDE = {
    "a-proxy": {"istio_proxy": RUNNING},
    "a-shipper-of-logs-and-a-proxy": {"logs": ended(0, 20), "istio_proxy": RUNNING},
    "one-that-failed-and-one-that-runs": {"metrics": ended(2, 10), "logs": RUNNING},
    "one-without-image": {"logs": IMAGE_MISSING},
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE.keys())
@pytest.mark.parametrize(
    ("code", "phase", "told"),
    [
        (0, "Complete", "Completed"),
        (1, "Restarting", "TrainerFailed"),
        (2, "Failed", "InvalidConfiguration"),
        (3, "Restarting", "TrainerPreempted"),
        (4, "Restarting", "LedgerUnavailable"),
        (139, "Restarting", "TrainerFailed"),
    ],
)
def test_attempt_ends_with_its_trainer_whatever_runs_on_beside_it(beside: Json, code: int, phase: str, told: str) -> None:
    world = running_world(**OWN_MODEL)
    world.trainer_pod(containerStatuses=statuses(trainer=ended(code), **beside))
    world.settle()
    assert (phase_of(world), told in world.told()) == (phase, True)
    assert "demo-trainer-1" not in world.jobs(), "the pods would stay"
    if phase != "Restarting":
        assert (world.replicas(), world.replicas("scorer")) == (0, 0)


def test_trainer_killed_for_memory_beside_a_sidecar_is_known_for_it() -> None:
    world = running_world()
    world.trainer_pod(containerStatuses=statuses(trainer=ended(137, reason="OOMKilled"), proxy=RUNNING))
    world.settle()
    assert world.told()[-1] == "TrainerOOMKilled"
    assert "container trainer reached its memory limit of 4Gi" in world.events[-1].message


def test_last_words_of_a_trainer_beside_a_sidecar_are_read() -> None:
    world = running_world()
    words = TerminationMessage(
        result="Complete", reason="Completed", message="all done", exit_code=0, window=5, step=80, version=5, accuracy=0.75
    )
    world.trainer_pod(containerStatuses=statuses(proxy=RUNNING, trainer=ended(0, message=words.model_dump_json())))
    world.settle()
    status = world.run.status
    assert status is not None
    assert (status.window, status.step, status.version, status.metrics) == (5, 80, 5, Metrics(accuracy=0.75))
    assert world.events[-1].message == "all done"


def test_next_attempt_is_made_although_the_sidecar_of_the_last_has_not_ended() -> None:
    world = running_world()
    world.trainer_pod(containerStatuses=statuses(trainer=ended(1), proxy=RUNNING))
    world.settle()
    deleted = {"deletionTimestamp": times.to_text(world.now)}
    world.trainer_pod(metadata=deleted, containerStatuses=statuses(trainer=ended(1), proxy=RUNNING))
    world.pass_time(10)
    world.settle()
    assert world.jobs() == ["demo-trainer-2"]
    assert world.run.status is not None
    assert world.run.status.failed_attempts == 1
    world.trainer_pod(2)
    world.settle()
    assert phase_of(world) == "Running"


def test_end_beside_a_sidecar_is_judged_once() -> None:
    world = running_world()
    world.trainer_pod(containerStatuses=statuses(trainer=ended(0), proxy=RUNNING))
    world.settle()
    before = world.run.status
    world.pass_time(3600)
    plan = world.step()
    assert (plan.status, plan.delete, plan.events) == (before, [], [])


@pytest.mark.parametrize("code", [1, 2, 3, 4, 42, 137])
def test_exit_code_of_a_sidecar_is_not_the_trainers(code: int) -> None:
    rules = [{"exitCodes": [42, 137], "action": "Fail"}]
    for trainer, want in ((0, "Complete"), (3, "Restarting")):
        world = running_world(lifecycle={"failurePolicy": rules})
        world.trainer_pod(phase="Failed", containerStatuses=statuses(proxy=ended(code, 10), trainer=ended(trainer)))
        world.job(1, "FailureTarget", "Failed")
        world.settle()
        assert phase_of(world) == want, f"the trainer exited with {trainer}"


@pytest.mark.parametrize("code", [0, 2])
def test_sidecar_that_ends_before_the_trainer_ends_nothing(code: int) -> None:
    world = running_world()
    world.trainer_pod(containerStatuses=statuses(trainer=RUNNING, proxy=ended(code)))
    world.settle()
    assert (phase_of(world), world.jobs()) == ("Running", ["demo-trainer-1"])


@pytest.mark.parametrize("code", [0, 1])
def test_native_sidecar_ends_by_the_kubelet_and_the_job_stays_for_its_logs(code: int) -> None:
    world = running_world()
    beside: dict[str, Any] = {"initContainerStatuses": statuses(istio_proxy=RUNNING)}
    world.trainer_pod(containerStatuses=statuses(trainer=ended(code)), **beside)
    world.settle()
    assert (phase_of(world), world.jobs()) == ("Running", ["demo-trainer-1"])
    beside = {"initContainerStatuses": statuses(istio_proxy=ended(143, 31))}
    world.trainer_pod(phase="Failed" if code else "Succeeded", containerStatuses=statuses(trainer=ended(code)), **beside)
    world.job(1, "Failed" if code else "Complete")
    world.settle()
    assert (phase_of(world), world.jobs()) == ("Restarting" if code else "Complete", ["demo-trainer-1"])


def test_trainer_that_runs_beside_a_container_without_image_has_started() -> None:
    world = World(run_of())
    world.settle()
    world.trainer_pod(phase="Pending", containerStatuses=statuses(trainer=RUNNING, logs=IMAGE_MISSING))
    world.settle()
    assert world.run.status is not None
    assert world.run.status.attempt_start_time is not None
    condition = world.condition("Degraded")
    assert condition is not None
    assert (condition.reason, "container logs" in condition.message) == ("ImageNotPulled", True)


def test_run_is_suspended_once_the_sidecars_have_ended_too() -> None:
    world = running_world()
    world.change_spec(lifecycle={"suspend": True})
    world.step()
    deleted = {"deletionTimestamp": times.to_text(world.now)}
    world.trainer_pod(metadata=deleted, containerStatuses=statuses(trainer=ended(3), proxy=RUNNING))
    world.step()
    assert world.replicas() == 0, "the trainer needs them no more"
    condition = world.condition("Suspended")
    assert condition is not None
    assert condition.reason == "Suspending", "a pod is left"


# --- several nodes -------------------------------------------------------------------------------------------------


def two_nodes(first: list[Json], second: list[Json], phases: tuple[str, str] = ("Running", "Running"), **spec: Any) -> World:
    """A run of two nodes with these containers, after the operator has seen them."""
    world = running_world(trainer={"nodes": 2}, **spec)
    for index, containers in enumerate((first, second)):
        world.trainer_pod(1, index, phase=phases[index], metadata=node(index), containerStatuses=containers)
    world.settle()
    return world


COMPLETED = statuses(trainer=ended(0), proxy=RUNNING)


@pytest.mark.parametrize(
    ("second", "phases", "want"),
    [
        pytest.param(statuses(trainer=RUNNING, proxy=RUNNING), ("Running", "Running"), "Running", id="one-runs"),
        pytest.param(statuses(trainer=NOT_STARTED, proxy=NOT_STARTED), ("Running", "Pending"), "Running", id="one-comes"),
        pytest.param(COMPLETED, ("Running", "Running"), "Complete", id="both-have-completed"),
        pytest.param(statuses(trainer=ended(0), proxy=ended(0)), ("Running", "Succeeded"), "Complete", id="one-pod-is-over"),
        pytest.param(statuses(trainer=ended(0), proxy=ended(2)), ("Running", "Failed"), "Complete", id="one-sidecar-failed"),
        pytest.param(statuses(trainer=ended(1), proxy=RUNNING), ("Running", "Running"), "Restarting", id="one-failed"),
        pytest.param(statuses(trainer=ended(2), proxy=RUNNING), ("Running", "Running"), "Failed", id="one-failed-for-good"),
    ],
)
def test_run_completes_when_the_trainers_of_all_nodes_have(second: list[Json], phases: tuple[str, str], want: str) -> None:
    assert phase_of(two_nodes(COMPLETED, second, phases)) == want


def test_two_pods_of_one_node_are_not_two_nodes() -> None:
    world = running_world(trainer={"nodes": 2})
    for number in (0, 1):
        world.trainer_pod(1, number, metadata=node(0), containerStatuses=COMPLETED)
    world.settle()
    assert phase_of(world) == "Running"


def test_first_trainer_to_fail_decides_beside_sidecars_too() -> None:
    world = two_nodes(statuses(trainer=ended(1, 40), proxy=RUNNING), statuses(trainer=ended(2, 35), proxy=RUNNING))
    assert (phase_of(world), reason_of_failure(world)) == ("Failed", "InvalidConfiguration")


def test_attempt_that_failed_on_one_node_waits_for_the_trainer_of_the_other() -> None:
    world = two_nodes(statuses(trainer=ended(1), proxy=RUNNING), statuses(trainer=RUNNING, proxy=RUNNING))
    world.pass_time(30)
    world.settle()
    assert world.jobs() == []
    world.trainer_pod(1, 1, metadata=node(1), containerStatuses=statuses(trainer=ended(3), proxy=RUNNING))
    world.settle()
    assert world.jobs() == ["demo-trainer-2"]


def test_completed_trainer_whose_pod_the_job_takes_away_is_not_the_cause() -> None:
    world = running_world(trainer={"nodes": 2})
    deleted = {"deletionTimestamp": times.to_text(world.now)}
    world.trainer_pod(1, 0, metadata=node(0) | deleted, containerStatuses=statuses(trainer=ended(0, 10), proxy=RUNNING))
    world.trainer_pod(1, 1, phase="Failed", metadata=node(1), containerStatuses=statuses(trainer=ended(1, 20)))
    world.job(1, "FailureTarget", "Failed")
    world.settle()
    assert world.told()[-1] == "TrainerFailed"


def test_sidecar_that_fails_the_job_of_two_nodes_is_named_and_counted() -> None:
    world = running_world(trainer={"nodes": 2})
    deleted = {"deletionTimestamp": times.to_text(world.now)}
    proxy = ended(2, 20, message="starting\nupstream gone\n")
    world.trainer_pod(1, 0, phase="Failed", metadata=node(0), containerStatuses=statuses(trainer=ended(0, 10), proxy=proxy))
    world.trainer_pod(1, 1, phase="Failed", metadata=node(1) | deleted, containerStatuses=statuses(trainer=ended(3, 25)))
    world.job(1, "FailureTarget", "Failed")
    world.settle()
    assert phase_of(world) == "Restarting"
    assert world.events[-1].message.endswith("container proxy exited with code 2: upstream gone")
    assert world.run.status is not None
    assert world.run.status.failed_attempts == 1


# --- what comes before the trainer ---------------------------------------------------------------------------------


def init_failed(world: World, state: Json, **more: Any) -> None:
    """The trainer's pod failed before the trainer ran."""
    first = statuses(proxy=ended(143, 40), fetch=state)
    world.trainer_pod(phase="Failed", initContainerStatuses=first, containerStatuses=statuses(trainer=NOT_STARTED), **more)
    world.job(1, "FailureTarget", "Failed")
    world.settle()


@pytest.mark.parametrize("code", [1, 2, 3, 4, 128])
def test_init_container_that_fails_is_a_failure_that_counts_with_its_name_and_last_line(code: int) -> None:
    world = running_world(lifecycle={"failurePolicy": [{"exitCodes": [1, 128], "action": "Fail"}]})
    init_failed(world, ended(code, message="Cloning into 'data'\nfatal: repository not found\n"))
    assert (phase_of(world), world.told()[-1]) == ("Restarting", "TrainerFailed")
    want = f"init container fetch exited with code {code}: fatal: repository not found"
    assert world.events[-1].message.endswith(want)
    condition = world.condition("Progressing")
    assert condition is not None
    assert condition.message.endswith(want)
    assert world.run.status is not None
    assert world.run.status.failed_attempts == 1


def test_init_container_that_always_fails_uses_up_the_restarts() -> None:
    world = running_world(lifecycle={"backoffLimit": 0})
    init_failed(world, ended(1))
    assert (phase_of(world), reason_of_failure(world)) == ("Failed", "BackoffLimitExceeded")


@pytest.mark.parametrize(
    ("limits", "want"),
    [
        (
            {"memory": "1Gi"},
            "init container fetch reached its memory limit of 1Gi: raise "
            "spec.trainer.template.spec.initContainers[fetch].resources.limits.memory",
        ),
        ({}, "init container fetch was OOM-killed, as its node is out of memory: request memory"),
    ],
    ids=["at-its-limit", "without-one"],
)
def test_init_container_killed_for_memory_is_named_with_its_limit(limits: Json, want: str) -> None:
    world = running_world()
    spec = {"initContainers": [{"name": "fetch", "resources": {"limits": limits}}], "containers": [{"name": "trainer"}]}
    world.trainer_pod(
        phase="Failed",
        initContainerStatuses=statuses(fetch=ended(137, reason="OOMKilled")),
        containerStatuses=statuses(trainer=NOT_STARTED),
    )
    (pod,) = [pod for pod in world.observed.pods if pod["metadata"]["name"].startswith("demo-trainer")]
    pod["spec"] = spec
    world.job(1, "Failed")
    world.settle()
    assert world.told()[-1] == "TrainerOOMKilled"
    assert world.events[-1].message.endswith(want)


def test_failed_trainer_is_the_cause_whatever_else_failed_in_its_pod() -> None:
    world = running_world()
    fail(world, 1, 2)
    world.trainer_pod(
        phase="Failed",
        initContainerStatuses=statuses(proxy=ended(1, 10)),
        containerStatuses=statuses(logs=ended(1, 10), trainer=ended(2)),
    )
    world.settle()
    assert (phase_of(world), reason_of_failure(world)) == ("Failed", "InvalidConfiguration")
