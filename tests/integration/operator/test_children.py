"""What the operator writes: only what differs, only its own, and again what somebody spoilt."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit, Waiting
from integration.operator.cluster import FAST, Cluster, RunningOperator, children_of, running_operator, spin_run
from spinrun_api.documents import parse_run
from spinrun_kube import names
from spinrun_kube.kinds import CHILDREN, POD, SPIN_RUN
from spinrun_kube.names import OPERATOR

pytestmark = pytest.mark.cluster

Json = dict[str, Any]


async def test_start_of_a_run_costs_nine_writes_beyond_events_and_three_reads(
    cluster: Cluster, fake_kubelet: FakeKubelet
) -> None:
    # As with the default settings, a burst of changes makes one reconcile; here bursts, and starts, take longer.
    settings = replace(FAST, coalesce_seconds=1.0, starting_seconds=10.0, trouble_seconds=30.0)
    async with running_operator(cluster.namespace, settings=settings) as operator:
        await operator.until_idle()
        read = len(operator.api.reads)
        await cluster.create(spin_run())
        await cluster.until_phase("Running")
        await operator.until_idle()
        assert sorted(await cluster.children()) == children_of("demo")
        about_events = [path for _, path in operator.api.writes if path.endswith("/events")]
        assert len(about_events) <= 1
        assert len(operator.api.writes) - len(about_events) <= 9, operator.api.writes
        # What follows the kinds asks for lists of all objects, however many runs there are.
        lists = {kind.path(cluster.namespace) for kind in (SPIN_RUN, POD, *CHILDREN)}
        assert len([path for path in operator.api.reads[read:] if path not in lists]) <= 3, operator.api.reads[read:]


async def test_status_of_a_slow_start_is_told_all_the_same(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    fake_kubelet.script(Waiting("ContainerCreating"), name="demo-*")
    async with running_operator(cluster.namespace, settings=replace(FAST, starting_seconds=0.5)):
        await cluster.create(spin_run())
        status = await cluster.until_phase("Pending", attempt=1)
        assert status["rollouts"] == {"ready": 0, "desired": 1}


async def test_steady_runs_cost_no_write(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, control_plane: ControlPlane
) -> None:
    for number in range(10):
        await cluster.create(spin_run(f"run-{number}"))
    for number in range(10):
        await cluster.until_phase("Running", f"run-{number}")
    await operator.until_idle()
    before = len(operator.api.writes)
    for key in operator.controller.runs():
        operator.controller.queue.add(key)
    await operator.until_idle()
    assert operator.api.writes[before:] == []


async def test_restarted_operator_writes_nothing_about_steady_runs(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    async with running_operator(cluster.namespace) as first:
        await cluster.create(spin_run(rollout={"template": {"spec": {"containers": [resources("1000m", "0.5Gi")]}}}))
        await cluster.until_phase("Running")
        await first.until_idle()
    async with running_operator(cluster.namespace) as second:
        await cluster.until("the run is seen", lambda: was_reconciled(second))
        await second.until_idle()
        assert second.api.writes == []


def resources(cpu: str, memory: str) -> Json:
    """A container of the rollouts' pod template, with amounts that the API server writes in another way."""
    return {"name": "vllm", "resources": {"requests": {"cpu": cpu, "memory": memory}}}


async def was_reconciled(operator: RunningOperator) -> bool:
    """Whether the operator has had a look at a run."""
    return not operator.controller.not_ready() and bool(operator.controller.runs()) and not operator.controller.queue.depth()


async def test_spec_changed_there_and_back_leaves_the_children_as_they_were(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await operator.until_idle()
    before = await contents(cluster)
    await cluster.change_spec("demo", rollout={"replicas": 2, "template": {"spec": {"nodeSelector": {"disk": "fast"}}}})
    await cluster.until_phase("Starting")
    await operator.until_idle()
    assert await contents(cluster) != before
    await cluster.change_spec("demo", rollout={"replicas": 1, "template": None})
    await cluster.until_phase("Running", rollouts={"ready": 1, "desired": 1})
    await operator.until_idle()
    assert await contents(cluster) == before
    written = len(operator.api.writes)
    await cluster.patch("SpinRun", "demo", {"metadata": {"labels": {"example.com/touched": "yes"}}})
    await operator.until_idle()
    assert len(operator.api.writes) == written


async def test_what_a_run_began_with_is_taken_away_from_its_children_when_the_run_loses_it(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    hub = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    placed = {"spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}, "metadata": {"annotations": {"a": "b"}}}
    await cluster.create(spin_run(rollout={"template": placed}, network={"egress": [hub]}))
    await cluster.until_phase("Running")
    await cluster.change_spec("demo", rollout={"template": None}, network=None)

    async def is_as_one_without() -> bool:
        statefulset, policy = await cluster.get("StatefulSet", "demo-rollout"), await cluster.get("NetworkPolicy", "demo-spinrun")
        assert statefulset is not None
        assert policy is not None
        template = statefulset["spec"]["template"]
        return (
            "tolerations" not in template["spec"] and "annotations" not in template["metadata"] and "egress" not in policy["spec"]
        )

    await cluster.until("nothing is left of it", is_as_one_without)
    statefulset = await cluster.get("StatefulSet", "demo-rollout") or {}
    ours = [each for each in statefulset["metadata"]["managedFields"] if each["manager"] == OPERATOR]
    assert [each["operation"] for each in ours] == ["Apply"]


async def test_label_of_the_run_reaches_its_objects_and_restarts_nothing(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await operator.until_idle()
    pods = {pod["metadata"]["uid"] for pod in await cluster.find("Pod")}
    await cluster.patch("SpinRun", "demo", {"metadata": {"labels": {"team": "a"}}})

    async def is_labelled() -> bool:
        statefulset = await cluster.get("StatefulSet", "demo-rollout") or {}
        return statefulset["metadata"]["labels"].get("team") == "a"

    await cluster.until("the rollouts' StatefulSet has the label", is_labelled)
    await operator.until_idle()
    assert {pod["metadata"]["uid"] for pod in await cluster.find("Pod")} == pods
    assert (await cluster.status())["attempt"] == 1
    written = len(operator.api.writes)
    operator.controller.queue.add((cluster.namespace, "demo"))
    await operator.until_idle()
    assert len(operator.api.writes) == written


async def contents(cluster: Cluster) -> dict[str, Json]:
    """The children without what Kubernetes changes."""
    found = await cluster.children()
    fleeting = ("managedFields", "resourceVersion", "generation")
    return {
        name: {
            **{key: value for key, value in child.items() if key != "status"},
            "metadata": {key: value for key, value in child["metadata"].items() if key not in fleeting},
        }
        for name, child in found.items()
    }


@pytest.mark.parametrize(
    ("kind", "name", "patch"),
    [
        ("StatefulSet", "demo-rollout", {"spec": {"replicas": 5}}),
        ("StatefulSet", "demo-rollout", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}),
        ("ConfigMap", "demo-run", {"data": {"run.yaml": "{}"}}),
        ("Service", "demo-rollout", {"spec": {"publishNotReadyAddresses": False}}),
        ("NetworkPolicy", "demo-spinrun", {"spec": {"ingress": [{}]}}),
        ("Service", "demo-rollout", {"metadata": {"labels": {"spinrun.dev/run": None}}}),
        ("ServiceAccount", "demo-spinrun", {"automountServiceAccountToken": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:40],
)
async def test_child_edited_by_hand_is_repaired(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, kind: str, name: str, patch: Json
) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await operator.until_idle()
    before = (await contents(cluster))[f"{kind}/{name}"]
    await cluster.patch(kind, name, patch)

    async def repaired() -> bool:
        return (await contents(cluster)).get(f"{kind}/{name}") == before

    await cluster.until(f"{kind} {name} is as before", repaired)


@pytest.mark.parametrize("child", [child for child in children_of("demo") if not child.startswith(("Job", "PersistentVolume"))])
async def test_deleted_child_is_made_again(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, child: str
) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await operator.until_idle()
    kind, name = child.split("/")
    old = (await cluster.get(kind, name) or {})["metadata"]["uid"]
    await cluster.delete(kind, name)

    async def is_new() -> bool:
        found = await cluster.get(kind, name)
        return found is not None and found["metadata"]["uid"] != old

    await cluster.until(f"{child} is there again", is_new)


async def test_deleted_job_is_followed_by_the_next_attempt(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await cluster.delete("Job", "demo-trainer-1")
    assert "failedAttempts" not in await cluster.until_phase("Running", attempt=2)


@pytest.mark.parametrize(
    "foreign",
    [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-token"}, "stringData": {"token": "theirs"}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "demo-run", "labels": {"spinrun.dev/run": "demo"}},
            "data": {"a": "b"},
        },
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "demo-spinrun"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo-rollout"}, "spec": {"ports": [{"port": 80}]}},
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "demo-spinrun"},
            "spec": {"podSelector": {"matchLabels": {"app": "theirs"}}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "demo-ledger"},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        },
    ],
    ids=lambda document: document["kind"],
)
async def test_foreign_object_with_a_childs_name_is_reported_and_never_touched(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, foreign: Json
) -> None:
    created = await cluster.create(foreign)
    kind, name = foreign["kind"], foreign["metadata"]["name"]
    await cluster.create(spin_run())
    condition = await cluster.until_condition("Degraded", "True", "ChildConflict")
    assert f"{kind} {name} exists and is not this run's" in condition["message"]
    await operator.until_idle()
    found = await cluster.get(kind, name) or {}
    assert found["metadata"].get("labels") == created["metadata"].get("labels")
    assert "ownerReferences" not in found["metadata"]
    assert found.get("data") == created.get("data")
    await cluster.delete(kind, name)
    await cluster.until_phase("Running")
    await cluster.until_condition("Degraded", "False", "AsExpected")


async def test_objects_that_an_older_operator_made_are_kept_and_allow_no_more_than_the_run(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    run = parse_run(await cluster.create(spin_run()))
    await cluster.until_phase("Running")
    spec = {"podSelector": {"matchLabels": names.selector(run, "rollout")}, "ingress": [{}]}
    for name in ("demo-rollout", "demo-trainer"):
        await operator.api.apply(names.child(run, "networking.k8s.io/v1", "NetworkPolicy", name, "rollout", spec=spec))
    await operator.api.apply(names.child(run, "v1", "Service", "demo-trainer", "trainer", spec={"clusterIP": "None"}))
    await cluster.change_spec("demo", network={"egress": []})

    async def all_limit_egress() -> bool:
        policies = await cluster.find("NetworkPolicy")
        return [policy["spec"]["policyTypes"] for policy in policies] == [["Ingress", "Egress"]] * 3

    await cluster.until("all policies limit whom the pods connect to", all_limit_egress)
    await operator.until_idle()
    rules = [rule for policy in await cluster.find("NetworkPolicy") for rule in policy["spec"]["ingress"]]
    assert {} not in rules, "nobody else may connect"
    assert await cluster.get("Service", "demo-trainer"), "it harms nobody, and goes with the run"
    written = len(operator.api.writes)
    operator.controller.queue.add((cluster.namespace, "demo"))
    await operator.until_idle()
    assert operator.api.writes[written:] == []


async def test_forged_pod_of_the_trainer_counts_for_nothing_and_is_left_alone(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    (real,) = await cluster.pods("trainer")
    fake_kubelet.script(Exit(2, message="forged"), name="a-forged")
    labels = {name: value for name, value in real["metadata"]["labels"].items() if name.startswith(("spinrun.dev/", "app."))}
    metadata: Json = {"name": "a-forged", "labels": labels, "annotations": real["metadata"]["annotations"]}
    security = {
        name: real["spec"]["containers"][0]["securityContext"][name] for name in ("allowPrivilegeEscalation", "capabilities")
    }
    spec: Json = {
        "containers": [{"name": "trainer", "image": "any", "securityContext": security}],
        "restartPolicy": "Never",
        "securityContext": real["spec"]["securityContext"],
    }
    await cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    async def has_failed() -> bool:
        return (await cluster.get("Pod", "a-forged") or {}).get("status", {}).get("phase") == "Failed"

    await cluster.until("the forged pod has failed", has_failed)
    await operator.until_idle()
    status = await cluster.status()
    assert (status["phase"], status["attempt"], "failedAttempts" in status) == ("Running", 1, False)
    fake_kubelet.script(Exit(1, message="boom"), name=real["metadata"]["name"])
    await cluster.until_phase("Running", attempt=2, failedAttempts=1)
    assert await has_failed(), "it is there as it was"


async def test_run_limits_whom_its_pods_connect_to(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run(network={"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]}))
    condition = await cluster.until_condition("Degraded", "True", "ChildRefused")
    assert "spec.egress[2].to[0].ipBlock.cidr" in condition["message"]
    hub = {"ports": [{"port": 443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}
    await cluster.change_spec("demo", network={"egress": [hub]})
    await cluster.until_condition("Degraded", "False", "AsExpected")
    policy = await cluster.get("NetworkPolicy", "demo-spinrun") or {}
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"][-1] == hub
    await operator.until_idle()
    written = len(operator.api.writes)
    operator.controller.queue.add((cluster.namespace, "demo"))
    await operator.until_idle()
    assert len(operator.api.writes) == written
    await cluster.change_spec("demo", network=None)

    async def is_open() -> bool:
        return (await cluster.get("NetworkPolicy", "demo-spinrun") or {})["spec"]["policyTypes"] == ["Ingress"]

    await cluster.until("the limit is gone", is_open)


@pytest.mark.parametrize("levels", [1, 300])
async def test_run_that_is_too_large_is_told_so_and_others_are_served(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, levels: int
) -> None:
    template: Json = {"a": "x" * 1_200_000} if levels == 1 else {}
    for _ in range(levels - 1):
        template = {"a": template}
    await cluster.create(spin_run("large", trainer={"template": template}))
    condition = await cluster.until_condition("Degraded", "True", "InvalidSpec", "large")
    assert "spec" in condition["message"]
    await cluster.create(spin_run())
    await cluster.until_phase("Running")


async def test_two_operators_do_no_harm(cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet) -> None:
    async with running_operator(cluster.namespace) as other:
        for number in range(5):
            await cluster.create(spin_run(f"run-{number}"))
        for number in range(5):
            await cluster.until_phase("Running", f"run-{number}", attempt=1)
        await cluster.delete("Job", "run-0-trainer-1")
        assert "failedAttempts" not in await cluster.until_phase("Running", "run-0", attempt=2)
        await asyncio.gather(operator.until_idle(), other.until_idle())
        children = await cluster.children()
        jobs = [name for name in children if name.startswith("Job/")]
        assert sorted(jobs) == ["Job/run-0-trainer-2", *(f"Job/run-{number}-trainer-1" for number in range(1, 5))]
