"""Which children a run has, step by step, without a cluster."""

from dataclasses import replace
from typing import Any

import pytest

from spinrun_api.status import ScorerStatus
from spinrun_kube import names
from unit.operator.world import OWN_MODEL, World, fail, phase_of, run_of, running_world

Json = dict[str, Any]


def test_new_run_gets_all_children_with_what_they_mount_before_its_pods(world: World) -> None:
    plan = world.step()
    made = [f"{child['kind']}/{child['metadata']['name']}" for child in plan.apply]
    assert made == [
        "PersistentVolumeClaim/demo-ledger",
        "Secret/demo-token",
        "ServiceAccount/demo-spinrun",
        "ConfigMap/demo-run",
        "Service/demo-rollout",
        "NetworkPolicy/demo-spinrun",
        "StatefulSet/demo-rollout",
        "Job/demo-trainer-1",
    ]
    assert (phase_of(world), plan.status.attempt, plan.requeue_seconds) == ("Pending", 1, 15.0)


def test_nodes_of_a_trainer_have_a_service_and_a_network_policy_of_their_own() -> None:
    made = [f"{child['kind']}/{child['metadata']['name']}" for child in World(run_of(trainer={"nodes": 2})).step().apply]
    assert [each for each in made if each.startswith(("Service/", "NetworkPolicy/"))] == [
        "Service/demo-rollout",
        "NetworkPolicy/demo-spinrun",
        "Service/demo-trainer",
        "NetworkPolicy/demo-trainer",
    ]


@pytest.mark.parametrize("name", ["demo-rollout", "demo-scorer", "demo-trainer"])
def test_network_policy_of_an_older_operator_allows_what_the_run_allows_now(world: World, name: str) -> None:
    world.settle()
    assert ("NetworkPolicy", name) not in world.observed.children
    spec = {"podSelector": {}, "ingress": [{}]}
    world.observed.children["NetworkPolicy", name] = names.child(
        world.run, "networking.k8s.io/v1", "NetworkPolicy", name, "x", spec=spec
    )
    world.change_spec(network={"egress": []})
    world.settle()
    ours, theirs = (world.observed.children["NetworkPolicy", each]["spec"] for each in ("demo-spinrun", name))
    assert theirs["egress"][0] == ours["egress"][0]
    assert len(theirs["egress"]) == 2, "name servers and the run's own pods"
    assert (theirs == ours) is (name != "demo-trainer")


def test_what_is_made_once_is_not_made_again(world: World) -> None:
    world.settle()
    kinds = {child["kind"] for child in world.step().apply}
    assert not kinds & {"Job", "Secret", "PersistentVolumeClaim"}


def test_pod_monitor_is_made_where_the_cluster_knows_the_kind(world: World) -> None:
    world.observed = replace(world.observed, has_pod_monitors=True)
    world.settle()
    assert ("PodMonitor", "demo") in world.observed.children


def test_scorers_are_made_for_a_run_that_serves_the_model_of_its_preference() -> None:
    plan = World(run_of(**OWN_MODEL)).step()
    made = [f"{child['kind']}/{child['metadata']['name']}" for child in plan.apply]
    assert made[-3:] == ["Service/demo-scorer", "StatefulSet/demo-scorer", "Job/demo-trainer-1"]
    assert plan.status.scorers == ScorerStatus(ready=0, desired=1)


def test_suspension_takes_the_scorers_with_the_rollouts() -> None:
    world = running_world(**OWN_MODEL)
    world.change_spec(lifecycle={"suspend": True})
    world.step()
    assert world.replicas(names.SCORER) == 1, "the trainer may still need them"
    world.trainer_pod(phase="Failed", ended={"exitCode": 3})
    world.step()
    assert (world.replicas(), world.replicas(names.SCORER)) == (0, 0)
    world.no_pods()
    world.scorer_pod()
    world.step()
    condition = world.condition("Suspended")
    assert condition is not None
    assert condition.status == "False", "a pod is left"
    world.no_pods()
    world.step()
    condition = world.condition("Suspended")
    assert condition is not None
    assert condition.status == "True"


def test_scorers_leave_when_the_run_is_over() -> None:
    world = running_world(**OWN_MODEL)
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    world.settle()
    assert (phase_of(world), world.replicas(names.SCORER)) == ("Complete", 0)


def test_scorers_of_a_preference_that_was_changed_before_the_start_have_no_pods() -> None:
    world = World(run_of(**OWN_MODEL))
    world.settle()
    world.change_spec(preference={"rule": {"kind": "lastNumber"}})
    plan = world.settle()
    assert world.replicas(names.SCORER) == 0
    assert plan.status.scorers is None
    (left,) = [child for child in plan.apply if child["metadata"]["name"] == "demo-scorer"]
    assert left["metadata"].keys() == {"name", "namespace", "labels", "ownerReferences", "annotations"}
    assert left["metadata"]["annotations"].keys() == {names.HASH_ANNOTATION}


def test_job_that_is_gone_before_its_start_is_made_again(world: World) -> None:
    world.settle()
    del world.observed.children["Job", "demo-trainer-1"]
    world.settle()
    assert world.jobs() == ["demo-trainer-1"]


def test_only_the_last_failed_job_is_kept() -> None:
    world = running_world(lifecycle={"backoffLimit": 9})
    for attempt in (1, 2, 3):
        fail(world, attempt, 1)
        world.pass_time(1)
        world.settle()
        world.pass_time(300)
        world.settle()
        world.trainer_pod(attempt + 1)
        world.settle()
    assert world.jobs() == ["demo-trainer-3", "demo-trainer-4"]


def test_job_of_a_later_attempt_is_another_operators_and_left_alone(world: World) -> None:
    world.settle()
    later = {**world.observed.children["Job", "demo-trainer-1"]}
    later["metadata"] = later["metadata"] | {"name": "demo-trainer-2", "labels": {"spinrun.dev/attempt": "2"}}
    world.observed.children["Job", "demo-trainer-2"] = later
    assert world.step().delete == []


@pytest.mark.parametrize(
    ("changed", "restarts"),
    [
        ({"duration": {"windows": 3}}, True),
        ({"trainer": {"learningRate": 1e-6}}, True),
        ({"rollout": {"temperature": 1.0}}, True),
        ({"rollout": {"replicas": 4}}, False),
        ({"rollout": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}, False),
        ({"rollout": {"engineArgs": {"max-num-seqs": 64}}}, False),
        ({"scorer": {"replicas": 2, "engineArgs": {"max-num-seqs": 64}}}, False),
        ({"lifecycle": {"backoffLimit": 1}}, False),
    ],
    ids=str,
)
def test_trainer_restarts_only_for_what_it_reads(changed: Json, restarts: bool) -> None:
    world = running_world(**OWN_MODEL)
    world.change_spec(**changed)
    world.step()
    assert world.jobs() == ([] if restarts else ["demo-trainer-1"])


def test_newer_operator_does_not_disturb_a_running_trainer() -> None:
    world = running_world()
    world.settings = type(world.settings)(accelerator="cpu", worker_image="worker:2", trainer_grace_seconds=60)
    world.settle()
    assert world.jobs() == ["demo-trainer-1"]
    assert world.run.status is not None
    assert world.run.status.attempt == 1


def test_suspended_run_that_never_started_keeps_its_number() -> None:
    world = World(run_of(lifecycle={"suspend": True}))
    world.settle()
    assert (world.jobs(), world.replicas()) == ([], 0)
    world.change_spec(lifecycle={"suspend": False})
    world.settle()
    assert world.jobs() == ["demo-trainer-1"]
