"""Rollouts and scorers that refuse their input: the run ends, and says why, instead of starting them again for ever."""

from typing import Any

import pytest

from spinrun_operator.children.rollout_statefulset import rollout_statefulset
from spinrun_operator.children.scorer_statefulset import scorer_statefulset
from spinrun_protocol.termination import TerminationMessage
from unit.operator.world import OWN_MODEL, SETTINGS, phase_of, run_of, running_world

Json = dict[str, Any]

SAID = TerminationMessage(result="Failed", reason="InvalidConfiguration", message="maxTokens is too large", exit_code=2)
CRASH_LOOP: Json = {"waiting": {"reason": "CrashLoopBackOff"}}
RUNNING: Json = {"running": {"startedAt": "2026-01-01T12:00:00Z"}}


def end(code: int, message: str = "") -> Json:
    return {"terminated": {"exitCode": code, "reason": "Error", "message": message, "finishedAt": "2026-01-01T12:00:30Z"}}


def status(name: str, state: Json, last: Json | None = None) -> Json:
    return {"name": name, "image": "i", "state": state, "lastState": last or {}}


@pytest.mark.parametrize(
    ("kind", "container", "want"),
    [
        pytest.param(
            "initContainerStatuses",
            status("model-check", end(2, SAID.model_dump_json(by_alias=True))),
            "pod demo-rollout-0, init container model-check exited with code 2: maxTokens is too large",
            id="the check, as it ends",
        ),
        pytest.param(
            "initContainerStatuses",
            status("model-check", CRASH_LOOP, end(2, SAID.model_dump_json(by_alias=True))),
            "init container model-check exited with code 2: maxTokens is too large",
            id="the check, between two starts",
        ),
        pytest.param(
            "containerStatuses",
            status("vllm", CRASH_LOOP, end(2, "usage: …\napi_server.py: error: unrecognized arguments: --nonsense")),
            "container vllm exited with code 2: api_server.py: error: unrecognized arguments: --nonsense",
            id="vllm's arguments",
        ),
        pytest.param("containerStatuses", status("agent", end(2)), "container agent exited with code 2: Error", id="the agent"),
    ],
)
def test_a_rollout_that_refuses_its_input_ends_the_run(kind: str, container: Json, want: str) -> None:
    world = running_world()
    statuses: Any = {kind: [container]}
    world.rollout_pod(phase="Pending", **statuses)
    world.settle()

    failed = world.condition("Failed")
    assert failed is not None
    assert (failed.status, failed.reason) == ("True", "InvalidConfiguration")
    assert want in failed.message
    assert phase_of(world) == "Failed"
    assert "InvalidConfiguration" in world.told()
    assert world.jobs() == [], "the trainer is told to end"
    world.no_pods()
    world.settle()
    assert world.replicas() == 0, "nothing is started again"
    assert phase_of(world) == "Failed"


def test_a_scorer_that_refuses_its_input_ends_the_run() -> None:
    world = running_world(**OWN_MODEL)
    world.scorer_pod(containerStatuses=[status("vllm", CRASH_LOOP, end(2, "error: no such flag"))])
    world.settle()
    assert phase_of(world) == "Failed"


@pytest.mark.parametrize(
    ("kind", "container"),
    [
        pytest.param("containerStatuses", status("vllm", CRASH_LOOP, end(1)), id="another exit code"),
        pytest.param("containerStatuses", status("proxy", CRASH_LOOP, end(2)), id="a container of the user's"),
        pytest.param("initContainerStatuses", status("vllm", CRASH_LOOP, end(2)), id="an init container of that name"),
        pytest.param("containerStatuses", status("vllm", RUNNING, end(2)), id="one that runs again"),
    ],
)
def test_other_ends_do_not_end_the_run(kind: str, container: Json) -> None:
    world = running_world()
    statuses: Any = {kind: [container]}
    world.rollout_pod(**statuses)
    world.settle()
    assert phase_of(world) == "Running"


def check_of(document: Json) -> Json:
    (check,) = document["spec"]["template"]["spec"]["initContainers"]
    return check


def test_the_check_sees_the_models_that_vllm_sees() -> None:
    theirs = {
        "name": "vllm",
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
        "envFrom": [{"configMapRef": {"name": "proxy"}}],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    template = {"spec": {"containers": [theirs], "volumes": [{"name": "models", "emptyDir": {}}]}}
    check = check_of(rollout_statefulset(run_of(rollout={"template": template}), SETTINGS, replicas=1))

    environment = {entry["name"]: entry for entry in check["env"]}
    assert environment["HF_TOKEN"] == theirs["env"][0]
    assert environment["SPINRUN_TERMINATION_LOG"]["value"] == "/dev/termination-log"
    assert "OMP_NUM_THREADS" not in environment, "which is of vLLM's own limit"
    assert check["envFrom"] == theirs["envFrom"]
    mounts = [mount["mountPath"] for mount in check["volumeMounts"]]
    assert "/models" in mounts
    assert len(mounts) == len(set(mounts))
    assert check["image"] == "worker:1"
    assert check["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}}
    assert check["securityContext"]["readOnlyRootFilesystem"]


def test_the_check_follows_what_fetches_the_model() -> None:
    template = {"spec": {"initContainers": [{"name": "fetch", "image": "mine:1"}]}}
    document = rollout_statefulset(run_of(rollout={"template": template}), SETTINGS, replicas=1)
    assert [each["name"] for each in document["spec"]["template"]["spec"]["initContainers"]] == ["fetch", "model-check"]


def test_vllm_reads_what_the_check_wrote() -> None:
    document = rollout_statefulset(run_of(), SETTINGS, replicas=1)
    (vllm,) = [each for each in document["spec"]["template"]["spec"]["containers"] if each["name"] == "vllm"]
    check = check_of(document)

    written = check["command"][check["command"].index("--lengths") + 1]
    assert vllm["command"][vllm["command"].index("--config") + 1] == written
    (of_check,), (of_vllm,) = (
        [mount for mount in each["volumeMounts"] if written.startswith(mount["mountPath"] + "/")] for each in (check, vllm)
    )
    assert of_vllm == of_check | {"readOnly": True}


def test_a_scorer_has_no_check_of_its_own() -> None:
    document = scorer_statefulset(run_of(**OWN_MODEL), SETTINGS, replicas=1)
    assert "initContainers" not in document["spec"]["template"]["spec"]
