"""The fake kubelet, seen through the controllers of a real control plane: it is as good as what they make of its pods."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import NEVER_READY, OOM_KILLED, Behaviour, Evicted, Exit, Running, Waiting

pytestmark = pytest.mark.cluster

Json = dict[str, Any]


class Cluster:
    """The control plane from inside one namespace, without blocking the fake kubelet."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._control_plane = control_plane
        self._namespace = namespace

    async def kubectl(self, *args: str, input: str | None = None) -> str:
        return await self._control_plane.kubectl_async("--namespace", self._namespace, *args, input=input)

    async def apply(self, manifest: Json) -> None:
        await self.kubectl("apply", "--filename=-", input=json.dumps(manifest))

    async def get(self, kind: str, name: str) -> Json:
        return json.loads(await self.kubectl("get", kind, name, "--output=json"))

    async def pods(self) -> list[Json]:
        return json.loads(await self.kubectl("get", "pods", "--output=json"))["items"]

    async def wait(self, kind: str, name: str, condition: str) -> None:
        await self.kubectl("wait", f"{kind}/{name}", f"--for={condition}", "--timeout=30s")


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str) -> Cluster:
    return Cluster(control_plane, namespace)


async def eventually(probe: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> Any:
    """What `probe` returns once it is wanted; fails with the last of it after 30 s."""
    seen: Any = None
    for _ in range(150):
        if wanted(seen := await probe()):
            return seen
        await asyncio.sleep(0.2)
    pytest.fail(f"still not as wanted: {json.dumps(seen, indent=1)}")


def pod_spec(**fields: Any) -> Json:
    """A pod that the restricted Pod Security level admits."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "main", "image": "example.test/image:1", "securityContext": security}
    pod_security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    # A script's end of the pod decides how long it takes, so grace may be long.
    return {"containers": [container], "securityContext": pod_security, "terminationGracePeriodSeconds": 60} | fields


def pod(name: str, **fields: Any) -> Json:
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(**fields)}


def replicated(kind: str, name: str, replicas: int, **fields: Any) -> Json:
    """A Deployment or a StatefulSet."""
    template = {"metadata": {"labels": {"app": name}}, "spec": pod_spec()}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template} | fields
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def job(name: str, rules: list[Json]) -> Json:
    template = {"spec": pod_spec(restartPolicy="Never")}
    spec = {"backoffLimit": 1, "podFailurePolicy": {"rules": rules}, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def container_status(pod: Json, name: str = "main") -> Json:
    return next(status for status in pod["status"]["containerStatuses"] if status["name"] == name)


def condition(resource: Json, kind: str) -> Json:
    return next(condition for condition in resource["status"]["conditions"] if condition["type"] == kind)


async def test_a_deployment_becomes_available_and_its_service_has_endpoints(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.apply(replicated("Deployment", "web", replicas=3))
    await cluster.kubectl("expose", "deployment/web", "--port=80")
    await cluster.wait("deployment", "web", "condition=Available")

    pods = await cluster.pods()
    assert (await cluster.get("deployment", "web"))["status"]["availableReplicas"] == 3
    assert {pod["spec"]["nodeName"] for pod in pods} <= set(fake_kubelet.nodes)
    addresses = {pod["status"]["podIP"] for pod in pods}
    assert len(addresses) == 3

    async def endpoints() -> set[str]:
        slices = json.loads(await cluster.kubectl("get", "endpointslices", "--output=json"))["items"]
        return {address for each in slices for endpoint in each["endpoints"] for address in endpoint["addresses"]}

    await eventually(endpoints, lambda seen: seen == addresses)


async def test_a_job_whose_pod_exits_with_3_fails_by_its_pod_failure_policy(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str
) -> None:
    fake_kubelet.script(Exit(3, message='{"reason": "Preempted"}'), namespace=namespace, labels={"job-name": "train"})
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}
    await cluster.apply(job("train", [rule]))
    await cluster.wait("job", "train", "condition=Failed")

    failed = condition(await cluster.get("job", "train"), "Failed")
    assert failed["reason"] == "PodFailurePolicy"
    assert "exit code 3" in failed["message"]
    (only,) = await cluster.pods()
    assert only["status"]["phase"] == "Failed"
    ended = container_status(only)["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", '{"reason": "Preempted"}')


async def test_a_job_whose_pod_exits_with_0_is_complete(cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str) -> None:
    fake_kubelet.script(Exit(message="done"), namespace=namespace)
    await cluster.apply(job("train", []))
    await cluster.wait("job", "train", "condition=Complete")
    (only,) = await cluster.pods()
    assert only["status"]["phase"] == "Succeeded"
    assert container_status(only)["state"]["terminated"]["message"] == "done"


async def test_an_evicted_pod_is_replaced_and_not_counted_as_a_failure(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str
) -> None:
    fake_kubelet.script(Exit(), namespace=namespace)
    fake_kubelet.script(Evicted(), namespace=namespace, limit=1)
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    await cluster.apply(job("train", [rule]) | {"spec": job("train", [rule])["spec"] | {"backoffLimit": 0}})
    await cluster.wait("job", "train", "condition=Complete")

    evicted, replacement = sorted(await cluster.pods(), key=lambda pod: pod["status"]["phase"])
    assert (evicted["status"]["phase"], evicted["status"]["reason"]) == ("Failed", "Evicted")
    disruption = condition(evicted, "DisruptionTarget")
    assert (disruption["status"], disruption["reason"]) == ("True", "TerminationByKubelet")
    assert replacement["status"]["phase"] == "Succeeded"


async def test_a_stateful_set_scales_up_and_down(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    async def names() -> set[str]:
        return {pod["metadata"]["name"] for pod in await cluster.pods()}

    await cluster.apply(replicated("StatefulSet", "rollout", replicas=1, serviceName="rollout"))
    await cluster.wait("statefulset", "rollout", "jsonpath={.status.readyReplicas}=1")
    await cluster.kubectl("scale", "statefulset/rollout", "--replicas=3")
    await cluster.wait("statefulset", "rollout", "jsonpath={.status.readyReplicas}=3")
    assert await names() == {"rollout-0", "rollout-1", "rollout-2"}
    await cluster.kubectl("scale", "statefulset/rollout", "--replicas=1")
    await eventually(names, lambda seen: seen == {"rollout-0"})


async def test_a_container_killed_for_memory_is_seen_and_restarted_once(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str
) -> None:
    await cluster.apply(replicated("StatefulSet", "rollout", replicas=1, serviceName="rollout"))
    await cluster.wait("pod", "rollout-0", "condition=Ready")
    fake_kubelet.script(OOM_KILLED, namespace=namespace, name="rollout-0")

    restarted = await eventually(lambda: cluster.get("pod", "rollout-0"), lambda pod: container_status(pod)["ready"]
                                 and container_status(pod)["restartCount"])  # fmt: skip
    status = container_status(restarted)
    assert status["restartCount"] == 1
    assert "running" in status["state"]
    assert (status["lastState"]["terminated"]["reason"], status["lastState"]["terminated"]["exitCode"]) == ("OOMKilled", 137)
    assert restarted["status"]["phase"] == "Running"


async def test_a_pod_killed_for_memory_that_may_not_restart_fails(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str
) -> None:
    fake_kubelet.script(OOM_KILLED, namespace=namespace)
    await cluster.apply(pod("once", restartPolicy="Never"))
    await cluster.wait("pod", "once", "jsonpath={.status.phase}=Failed")
    assert container_status(await cluster.get("pod", "once"))["state"]["terminated"]["reason"] == "OOMKilled"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
async def test_a_pod_that_cannot_start_is_pending_until_the_script_is_cancelled(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str, reason: str
) -> None:
    script = fake_kubelet.script(Waiting(reason, "why"), namespace=namespace)
    await cluster.apply(pod("stuck"))
    await cluster.wait("pod", "stuck", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=" + reason)
    assert (await cluster.get("pod", "stuck"))["status"]["phase"] == "Pending"
    script.cancel()
    await cluster.wait("pod", "stuck", "condition=Ready")


async def test_a_pod_can_run_and_never_be_ready(cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str) -> None:
    fake_kubelet.script(NEVER_READY, namespace=namespace)
    await cluster.apply(pod("slow"))
    await cluster.wait("pod", "slow", "jsonpath={.status.phase}=Running")
    assert condition(await cluster.get("pod", "slow"), "Ready")["status"] == "False"


@pytest.mark.parametrize(
    ("behaviour", "want"),
    [
        pytest.param(Running(), (3, "Error", "saved step 40"), id="running: as its script says"),
        pytest.param(Waiting("ErrImagePull"), (137, "ContainerStatusUnknown", None), id="never started: unknown"),
    ],
)
async def test_a_deleted_pod_says_how_it_ended(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str, behaviour: Behaviour, want: tuple[int, str, str | None]
) -> None:
    fake_kubelet.script(behaviour, namespace=namespace, on_delete=Exit(3, message="saved step 40"))
    # The finalizer keeps the pod for us to read.
    held = pod("trainer", restartPolicy="Never")
    held["metadata"]["finalizers"] = ["spinrun.dev/test"]
    await cluster.apply(held)
    await cluster.wait("pod", "trainer", "jsonpath={.status.phase}")
    await eventually(lambda: cluster.get("pod", "trainer"), lambda pod: "containerStatuses" in pod["status"])
    await cluster.kubectl("delete", "pod", "trainer", "--wait=false")

    await cluster.wait("pod", "trainer", "jsonpath={.status.phase}=Failed")
    ended = container_status(await cluster.get("pod", "trainer"))["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended.get("message")) == want
    await cluster.kubectl("patch", "pod", "trainer", "--type=merge", '--patch={"metadata": {"finalizers": null}}')
    await eventually(cluster.pods, lambda pods: not pods)


async def test_init_containers_end_and_sidecars_run_as_long_as_the_pod(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str
) -> None:
    (main,) = pod_spec()["containers"]
    inits = [main | {"name": "prepare"}, main | {"name": "agent", "restartPolicy": "Always"}]
    await cluster.apply(pod("trainer", restartPolicy="Never", initContainers=inits))
    await cluster.wait("pod", "trainer", "condition=Ready")

    async def states() -> dict[str, str]:
        statuses = (await cluster.get("pod", "trainer"))["status"]["initContainerStatuses"]
        return {status["name"]: next(iter(status["state"])) for status in statuses}

    assert await states() == {"prepare": "terminated", "agent": "running"}
    fake_kubelet.script(Exit(), namespace=namespace)
    await cluster.wait("pod", "trainer", "jsonpath={.status.phase}=Succeeded")
    assert await states() == {"prepare": "terminated", "agent": "terminated"}


async def test_one_container_of_two_can_end(cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str) -> None:
    (main,) = pod_spec()["containers"]
    fake_kubelet.script(replace(OOM_KILLED, container="vllm"), namespace=namespace)
    await cluster.apply(pod("rollout", containers=[main | {"name": "vllm"}, main | {"name": "agent"}]))
    restarted = await eventually(
        lambda: cluster.get("pod", "rollout"),
        lambda pod: "containerStatuses" in pod["status"] and container_status(pod, "vllm")["restartCount"] == 1,
    )
    assert container_status(restarted, "agent")["restartCount"] == 0


async def test_the_first_pods_that_match_follow_a_script_with_a_limit(
    cluster: Cluster, fake_kubelet: FakeKubelet, namespace: str
) -> None:
    fake_kubelet.script(Exit(1), namespace=namespace, name="try-*", limit=1)
    for name in ("try-0", "try-1"):
        await cluster.apply(pod(name, restartPolicy="Never"))
        await cluster.wait("pod", name, "condition=PodScheduled")
    await cluster.wait("pod", "try-0", "jsonpath={.status.phase}=Failed")
    await cluster.wait("pod", "try-1", "condition=Ready")


async def test_pods_get_the_addresses_that_a_test_gives_them(cluster: Cluster, control_plane: ControlPlane) -> None:
    async with FakeKubelet(control_plane.kubeconfig, pod_ip=lambda _: "127.0.0.1"):
        await cluster.apply(pod("local"))
        await cluster.wait("pod", "local", "condition=Ready")
        assert (await cluster.get("pod", "local"))["status"]["podIP"] == "127.0.0.1"


async def test_nothing_of_a_kubelet_is_left_when_it_ends(cluster: Cluster, control_plane: ControlPlane) -> None:
    async with FakeKubelet(control_plane.kubeconfig) as kubelet:
        await cluster.apply(pod("left"))
        await cluster.wait("pod", "left", "condition=Ready")
        (node,) = kubelet.nodes
        assert node in await cluster.kubectl("get", "nodes", "--output=name")
    assert await cluster.pods() == []
    assert node not in await cluster.kubectl("get", "nodes", "--output=name")
