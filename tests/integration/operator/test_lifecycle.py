"""A run from its creation to its end, with the real controllers of Kubernetes and scripted pods."""

import asyncio

import pytest

from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import OOM_KILLED, Evicted, Exit, Script
from integration.operator.cluster import Cluster, RunningOperator, spin_run
from spinrun_protocol.termination import TerminationMessage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]

TRAINER = "demo-trainer-*"


def termination_message(**fields: object) -> str:
    """A termination message as the trainer writes it."""
    base = {"result": "Complete", "reason": "Completed", "message": "12 windows done", "exit_code": 0}
    return TerminationMessage.model_validate(base | fields).model_dump_json()


def end_trainer(kubelet: FakeKubelet, how: Exit | Evicted, *, attempt: int) -> Script:
    """Ends the trainer of one attempt."""
    return kubelet.script(how, name=f"demo-trainer-{attempt}-*")


async def test_run_goes_from_pending_over_running_to_complete(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run())
    running = await cluster.until_phase("Running", attempt=1)
    assert running["rollouts"] == {"ready": 1, "desired": 1}
    assert "failedAttempts" not in running
    message = termination_message(window=12, step=48, version=12, accuracy=0.83333333)
    end_trainer(fake_kubelet, Exit(0, message=message), attempt=1)
    done = await cluster.until_phase("Complete")
    assert (done["window"], done["step"], done["version"], done["metrics"]["accuracy"]) == (12, 48, 12, 0.8333)
    assert (await cluster.condition("Complete"))["message"] == "12 windows done"
    assert done["startTime"] <= done["completionTime"]
    await cluster.until("the rollouts are gone", lambda: no_pods(cluster, "rollout"))
    assert {event["reason"] for event in await cluster.events()} >= {"TrainerStarted", "Completed"}


async def no_pods(cluster: Cluster, component: str) -> bool:
    """Whether no pod of the component is there."""
    return not await cluster.pods(component)


async def test_invalid_configuration_fails_at_once_with_the_trainers_words(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    words = termination_message(
        result="Failed", reason="InvalidConfiguration", message="no such model: /models/tiny", exit_code=2
    )
    end_trainer(fake_kubelet, Exit(2, message=words), attempt=1)
    await cluster.create(spin_run())
    failed = await cluster.until_phase("Failed", attempt=1)
    assert "failedAttempts" not in failed
    condition = await cluster.condition("Failed")
    assert condition["reason"] == "InvalidConfiguration"
    assert "no such model: /models/tiny" in condition["message"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        pytest.param(Exit(3), "TrainerPreempted", id="exit-3"),
        pytest.param(Evicted(after=0.2), "TrainerDisrupted", id="eviction"),
    ],
)
async def test_what_the_trainer_did_not_cause_is_tried_again_and_not_counted(
    cluster: Cluster, fake_kubelet: FakeKubelet, how: Exit | Evicted, reason: str
) -> None:
    end_trainer(fake_kubelet, how, attempt=1)
    await cluster.create(spin_run(lifecycle={"backoffLimit": 0}))
    running = await cluster.until_phase("Running", attempt=2)
    assert "failedAttempts" not in running
    assert reason in {event["reason"] for event in await cluster.events()}


async def test_pod_deleted_by_hand_is_not_counted(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(lifecycle={"backoffLimit": 0}))
    await cluster.until_phase("Running", attempt=1)
    (pod,) = await cluster.pods("trainer")
    await cluster.delete("Pod", pod["metadata"]["name"])
    assert "failedAttempts" not in await cluster.until_phase("Running", attempt=2)


async def test_failures_are_counted_up_to_the_limit(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    fake_kubelet.script(Exit(1, message="boom"), name=TRAINER)
    await cluster.create(spin_run(lifecycle={"backoffLimit": 2}))
    failed = await cluster.until_phase("Failed", attempt=3)
    assert failed["failedAttempts"] == 3
    condition = await cluster.condition("Failed")
    assert condition["reason"] == "BackoffLimitExceeded"
    assert "boom" in condition["message"]


async def test_out_of_memory_counts_and_names_the_limit(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    end_trainer(fake_kubelet, OOM_KILLED, attempt=1)
    limit = {"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "3Gi"}}}]}}
    await cluster.create(spin_run(trainer={"template": limit}))
    running = await cluster.until_phase("Running", attempt=2)
    assert running["failedAttempts"] == 1
    (event,) = [event for event in await cluster.events() if event["reason"] == "TrainerOOMKilled"]
    assert "memory limit of 3Gi" in event["message"]


async def test_ledger_that_cannot_be_written_is_waited_for(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    full = fake_kubelet.script(Exit(4, message="no space left on device"), name=TRAINER)
    await cluster.create(spin_run(lifecycle={"backoffLimit": 0}))
    condition = await cluster.until_condition("LedgerUnavailable", "True", "LedgerUnavailable")
    assert "no space left on device" in condition["message"]
    full.cancel()
    assert "failedAttempts" not in await cluster.until_phase("Running")


async def test_lost_rollout_does_not_disturb_the_trainer(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(rollout={"replicas": 2}))
    await cluster.until_phase("Running")
    (trainer,) = await cluster.pods("trainer")
    crash = fake_kubelet.script(Exit(1, container="vllm", times=1000), name="demo-rollout-1")
    await cluster.until_phase("Starting", rollouts={"ready": 1, "desired": 2})
    crash.cancel()
    assert (await cluster.until_phase("Running"))["attempt"] == 1
    (same,) = await cluster.pods("trainer")
    assert same["metadata"]["uid"] == trainer["metadata"]["uid"]


async def test_suspended_run_keeps_its_ledger_and_resumes_as_next_attempt(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    fake_kubelet.script(Exit(0, after=3600), name=TRAINER, on_delete=Exit(3))
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await cluster.change_spec("demo", lifecycle={"suspend": True})
    await cluster.until_condition("Suspended", "True", "Suspended")
    assert not await cluster.pods("trainer")
    assert not await cluster.pods("rollout")
    assert await cluster.get("PersistentVolumeClaim", "demo-ledger")
    await cluster.change_spec("demo", lifecycle={"suspend": False})
    resumed = await cluster.until_phase("Running", attempt=2)
    assert "failedAttempts" not in resumed
    assert resumed["pausedSeconds"] >= 0
    assert {event["reason"] for event in await cluster.events()} >= {"Suspended", "Resumed"}


async def test_run_that_is_created_suspended_starts_nothing_until_it_is_resumed(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run(lifecycle={"suspend": True}))
    await cluster.until_phase("Suspended")
    await operator.until_idle()
    assert not await cluster.find("Job")
    assert not await cluster.find("Pod")
    await cluster.change_spec("demo", lifecycle={"suspend": False})
    await cluster.until_phase("Running", attempt=1)


async def test_rollouts_are_scaled_in_place(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await cluster.change_spec("demo", rollout={"replicas": 3})
    assert (await cluster.until_phase("Running", rollouts={"ready": 3, "desired": 3}))["attempt"] == 1
    await cluster.change_spec("demo", rollout={"replicas": 1})
    assert (await cluster.until_phase("Running", rollouts={"ready": 1, "desired": 1}))["attempt"] == 1


async def test_changed_duration_reaches_the_trainer_as_next_attempt(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(duration={"windows": 2}))
    await cluster.until_phase("Running")
    await cluster.change_spec("demo", duration={"windows": 4})
    assert "failedAttempts" not in await cluster.until_phase("Running", attempt=2)
    config = await cluster.get("ConfigMap", "demo-run")
    assert config is not None
    assert '"windows": 4' in config["data"]["run.yaml"]


async def test_finished_run_is_deleted_after_its_time_and_only_the_retained_claim_stays(
    cluster: Cluster, fake_kubelet: FakeKubelet
) -> None:
    end_trainer(fake_kubelet, Exit(0), attempt=1)
    await cluster.create(spin_run(lifecycle={"ttlSecondsAfterFinished": 1}))
    await cluster.until_gone("SpinRun", "demo")
    await cluster.until("the children are gone", lambda: only_the_claim(cluster))


async def only_the_claim(cluster: Cluster) -> bool:
    """Whether the ledger's claim is all that there is."""
    return not await cluster.find("Pod") and list(await cluster.children()) == ["PersistentVolumeClaim/demo-ledger"]


async def test_run_that_takes_too_long_fails(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(lifecycle={"activeDeadlineSeconds": 1}))
    await cluster.until_phase("Failed")
    assert (await cluster.condition("Failed"))["reason"] == "DeadlineExceeded"
    await cluster.until("the trainer is gone", lambda: no_pods(cluster, "trainer"))
    await cluster.until("the rollouts are gone", lambda: no_pods(cluster, "rollout"))


async def test_deletion_needs_no_operator_and_leaves_the_retained_claim(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await operator.stop()
    await cluster.delete("SpinRun", "demo")
    await cluster.until_gone("SpinRun", "demo")
    await cluster.until("the children are gone", lambda: only_the_claim(cluster))


async def test_claim_that_is_not_retained_goes_with_the_run(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(storage={"size": "1Gi", "retain": False}))
    await cluster.until_phase("Running")
    await cluster.delete("SpinRun", "demo")
    await cluster.until_gone("PersistentVolumeClaim", "demo-ledger")


async def test_run_of_the_same_name_reuses_the_retained_claim(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await cluster.delete("SpinRun", "demo")
    await cluster.until_gone("SpinRun", "demo")
    await cluster.create(spin_run())
    await cluster.until_phase("Running", attempt=1)


async def test_run_that_another_controller_manages_is_left_alone(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run("theirs", lifecycle={"managedBy": "kueue.x-k8s.io/multikueue"}))
    await cluster.create(spin_run("ours", lifecycle={"managedBy": "spinrun.dev/operator"}))
    await cluster.until_phase("Running", "ours")
    await operator.until_idle()
    assert await cluster.status("theirs") == {}
    assert not [path for _, path in operator.api.writes if "theirs" in path]


async def test_trainer_of_several_nodes_completes_when_all_do(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(trainer={"nodes": 3}))
    await cluster.until_phase("Running")
    pods = sorted(await cluster.pods("trainer"), key=lambda pod: pod["metadata"]["name"])
    assert len(pods) == 3
    for pod in pods[:2]:
        fake_kubelet.script(Exit(0), name=pod["metadata"]["name"])
    await asyncio.sleep(0.3)
    assert (await cluster.status())["phase"] == "Running"
    fake_kubelet.script(Exit(0), name=pods[2]["metadata"]["name"])
    await cluster.until_phase("Complete")


async def test_first_node_to_fail_decides(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    fake_kubelet.script(Exit(0, after=3600), name=TRAINER, on_delete=Exit(3))
    await cluster.create(spin_run(trainer={"nodes": 2}))
    await cluster.until_phase("Running")
    (second,) = [pod for pod in await cluster.pods("trainer") if "-1-1-" in pod["metadata"]["name"]]
    fake_kubelet.script(Exit(1, message="loss is not finite"), name=second["metadata"]["name"])
    running = await cluster.until_phase("Running", attempt=2)
    assert running["failedAttempts"] == 1
    (event,) = [event for event in await cluster.events() if event["reason"] == "TrainerFailed"]
    assert "loss is not finite" in event["message"]
