"""A kubelet for tests: nodes without machines, whose pods start, run and end as a test scripts them.

    from integration.fake_pod import OOM_KILLED, Exit, Waiting
    async with FakeKubelet(control_plane.kubeconfig, nodes=2) as kubelet:
        kubelet.script(Exit(3), name="demo-trainer-*", limit=1)     # the first such pod ends with exit code 3
        kubelet.script(OOM_KILLED, name="demo-rollout-0")           # at once, when that pod already runs
        stuck = kubelet.script(Waiting("ErrImagePull"), labels={"app": "vllm"})
        stuck.cancel()                                              # and now these pods start

A pod that no script matches becomes Running and Ready, and ends with SIGTERM's exit code when it is deleted. What a pod
does next follows from its scripts alone: a new one takes effect on pods that run, a cancelled one gives way to the one
before it.

Everything is done by one asyncio task a pod and one watch for all of them. Do not block the event loop beside it
(`ControlPlane.kubectl_async`).
"""

import asyncio
import contextlib
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from kubernetes.aio import client, config

from integration.fake_pod import (
    KILLED,
    NEVER_STARTED,
    TERMINATED,
    Behaviour,
    Evicted,
    Exit,
    Json,
    Running,
    Script,
    Waiting,
    condition,
    containers_of,
    now,
    phase_of,
)

HEARTBEAT_SECONDS = 10
"""As a kubelet's; the node controller gives up on a node after 50 s."""
RETRY_SECONDS = 0.2
RESTART_SECONDS = 0.1
"""How long a container that ended stays in CrashLoopBackOff: seconds to minutes on a real node."""
WATCH_SECONDS = 240
"""The API client gives up on any request after 300 s, so the server ends the watch before that."""
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
"""What a kubelet sends: conditions are merged by type, so the scheduler's and the evictor's stay."""
CAPACITY = {"cpu": "100k", "memory": "1Pi", "pods": "1M", "ephemeral-storage": "1Pi", "nvidia.com/gpu": "10k"}


def node_manifest(name: str) -> Any:
    """A node that is ready and has room for everything."""
    pressures = ("MemoryPressure", "DiskPressure", "PIDPressure")
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    return {
        "metadata": {"name": name, "labels": labels | {"spinrun.dev/fake-kubelet": "true"}},
        "status": {
            "capacity": CAPACITY,
            "allocatable": CAPACITY,
            "addresses": [{"type": "Hostname", "address": name}],
            "conditions": [
                condition("Ready", True, "KubeletReady"),
                *(condition(pressure, False, "KubeletHasNoPressure") for pressure in pressures),
            ],
        },
    }


def lease_manifest(node: str, node_uid: str) -> Any:
    """The heartbeat of a node; it goes with the node."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}
    return {"metadata": {"name": node, "ownerReferences": [owner]}, "spec": lease_spec(node)}


def lease_spec(node: str) -> Json:
    """A lease renewed now."""
    renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": renewed}


def force_delete(pod: Json) -> client.V1DeleteOptions:
    """Removes the pod now, and no younger one of its name."""
    return client.V1DeleteOptions(grace_period_seconds=0, preconditions=client.V1Preconditions(uid=pod["metadata"]["uid"]))


def numbered_ip() -> Callable[[Json], str]:
    """A source of pod addresses, each another one. Nothing answers there.

    Loopback addresses would not do for every test: the API refuses them as endpoints of a Service.
    """
    numbers = itertools.count(1)
    return lambda _pod: "10.88.{}.{}".format(*divmod(next(numbers) % 65536, 256))


class PodGoneError(Exception):
    """The pod is not there any more, or another has its name."""


async def answer(call: Awaitable[aiohttp.ClientResponse]) -> Json:
    """The JSON that a `…_without_preload_content` call gets: without the client's models, which cost several times as much."""
    async with await call as response:
        body = await response.read()
    if response.status >= 400:
        raise client.ApiException(status=response.status, reason=body.decode())
    return json.loads(body)


async def persist(call: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> Json:
    """The answer to a call that is repeated for as long as the API server is away or busy, as a kubelet does."""
    while True:
        try:
            return await answer(call())
        except (aiohttp.ClientError, TimeoutError):
            pass
        except client.ApiException as error:
            if error.status is None or (error.status not in (409, 429) and error.status < 500):
                raise
        await asyncio.sleep(RETRY_SECONDS)


class PodWorker:
    """The life of one pod: what its containers do, and what the API is told of it."""

    def __init__(self, api: client.CoreV1Api, pod: Json, ip: str, choose: Callable[[Json], Script]) -> None:
        self.pod = pod
        self._api = api
        self._ip = ip
        self._choose = choose
        self._start_time = now()
        self._containers = containers_of(pod["spec"]["containers"], pod["spec"]["restartPolicy"])
        # An init container runs once, unless it has a restart policy of its own: then it is a sidecar.
        self._init_containers = containers_of(pod["spec"].get("initContainers", []), "Never")
        self._conditions: dict[str, Json] = {}
        self._woken = asyncio.Event()

    def wake(self, pod: Json | None = None) -> None:
        """Looks at the scripts again, and at the pod where it has changed."""
        self.pod = pod or self.pod
        self._woken.set()

    async def run(self) -> None:
        """Follows the scripts until the pod is deleted, and then ends it."""
        script = self._choose(self.pod)
        while not self._is_deleted():
            async with asyncio.TaskGroup() as group:
                life = group.create_task(self._live(script.behaviour))
                script = await self._next_script(script)
                life.cancel()
        with contextlib.suppress(PodGoneError):
            await self._terminate(script.on_delete)

    def _is_deleted(self) -> bool:
        return "deletionTimestamp" in self.pod["metadata"]

    async def _next_script(self, current: Script) -> Script:
        """Waits until another script takes over, or the pod is deleted."""
        while (script := self._choose(self.pod)) is current and not self._is_deleted():
            await self._woken.wait()
            self._woken.clear()
        return script

    async def _live(self, behaviour: Behaviour) -> None:
        with contextlib.suppress(PodGoneError):
            match behaviour:
                case Running():
                    await self._run(ready=behaviour.ready)
                case Waiting():
                    await self._hold(behaviour)
                case Exit():
                    await self._exit(behaviour)
                case Evicted():
                    await self._evict(behaviour)

    async def _run(self, *, ready: bool = True) -> None:
        self._start_init_containers()
        for container in self._containers:
            container.start(ready=ready)
        await self._report()

    async def _hold(self, behaviour: Waiting) -> None:
        self._start_init_containers()
        for container in self._containers:
            if behaviour.container in (None, container.name):
                container.hold(behaviour.reason, behaviour.message)
            else:
                container.start()
        await self._report()

    async def _exit(self, behaviour: Exit) -> None:
        for _ in range(behaviour.times):
            await self._run()
            await asyncio.sleep(behaviour.after)
            ending = [each for each in self._containers if behaviour.container in (None, each.name)]
            for container in ending:
                container.end(behaviour)
            restarting = [container for container in ending if container.back_off()]
            await self._report()
            if not restarting:
                return
            await asyncio.sleep(RESTART_SECONDS)
        await self._run()

    async def _evict(self, behaviour: Evicted) -> None:
        await self._run()
        await asyncio.sleep(behaviour.after)
        for container in self._containers:
            container.end(KILLED)
        self._set_condition("DisruptionTarget", True, "TerminationByKubelet", behaviour.message)
        await self._report(reason="Evicted", message=behaviour.message)

    async def _terminate(self, how: Exit) -> None:
        """What a kubelet does with a deleted pod: ends its containers, says how they ended, removes it."""
        if any("running" in container.state for container in self._containers):
            await asyncio.sleep(how.after)
        if any("terminated" not in container.state for container in self._containers):
            for container in self._containers:
                container.end(how if "running" in container.state else NEVER_STARTED)
            await self._report()
        await self._call(self._api.delete_namespaced_pod_without_preload_content, body=force_delete(self.pod))

    def _start_init_containers(self) -> None:
        for container in self._init_containers:
            container.start()
            if container.restarts_on == "Never":
                container.end(Exit())

    async def _report(self, **extra: str) -> None:
        """Writes the pod's status as its containers make it."""
        phase = phase_of(self._containers)
        if phase in ("Succeeded", "Failed"):
            for sidecar in self._init_containers:
                sidecar.end(TERMINATED)
        self._set_conditions(phase)
        status = {
            "phase": phase,
            "startTime": self._start_time,
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
            "podIP": self._ip,
            "podIPs": [{"ip": self._ip}],
            "conditions": list(self._conditions.values()),
            "initContainerStatuses": [container.status() for container in self._init_containers],
            "containerStatuses": [container.status() for container in self._containers],
        }
        # The uid makes the API refuse it for a younger pod of the same name.
        body = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": status | extra}
        patch = self._api.patch_namespaced_pod_status_without_preload_content
        await self._call(patch, body=body, _content_type=STRATEGIC_MERGE)

    def _set_conditions(self, phase: str) -> None:
        ready = phase == "Running" and all(container.ready for container in self._containers)
        not_ready = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase, "ContainersNotReady")
        self._set_condition("PodReadyToStartContainers", phase in ("Pending", "Running"))
        self._set_condition("Initialized", True)
        self._set_condition("ContainersReady", ready, "" if ready else not_ready)
        self._set_condition("Ready", ready, "" if ready else not_ready)

    def _set_condition(self, kind: str, holds: bool, reason: str = "", message: str = "") -> None:
        """Sets a condition; its time stays while its status does."""
        new = condition(kind, holds, reason, message)
        old = self._conditions.get(kind, new)
        if old["status"] == new["status"]:
            new["lastTransitionTime"] = old["lastTransitionTime"]
        self._conditions[kind] = new

    async def _call(self, method: Callable[..., Awaitable[aiohttp.ClientResponse]], **arguments: Any) -> None:
        metadata = self.pod["metadata"]
        try:
            await persist(lambda: method(metadata["name"], metadata["namespace"], **arguments))
        except client.ApiException as error:
            if error.status != 404:
                raise
            raise PodGoneError(f"{metadata['namespace']}/{metadata['name']}") from error


class FakeKubelet:
    """Fake nodes, and the lives of the pods that the scheduler binds to them. See the module's text."""

    def __init__(self, kubeconfig: Path, *, nodes: int = 1, pod_ip: Callable[[Json], str] | None = None) -> None:
        """`pod_ip` gives a new pod its address, for example `lambda pod: "127.0.0.1"`; by default see `numbered_ip`."""
        unique = uuid.uuid4().hex[:6]
        self.nodes = [f"fake-{unique}-{number}" for number in range(nodes)]
        self._kubeconfig = kubeconfig
        self._pod_ip = pod_ip or numbered_ip()
        self._scripts = [Script(Running())]
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._errors: list[Exception] = []

    def script(
        self,
        behaviour: Behaviour,
        *,
        name: str = "*",
        namespace: str = "*",
        labels: Mapping[str, str] | None = None,
        on_delete: Exit = TERMINATED,
        limit: int | None = None,
    ) -> Script:
        """Scripts pods, those that run already included; see `Script` for the arguments."""
        script = Script(behaviour, name, namespace, labels or {}, on_delete, limit, lambda: self._drop(script))
        self._scripts.append(script)
        self._wake_all()
        return script

    def _drop(self, script: Script) -> None:
        if script in self._scripts:
            self._scripts.remove(script)
        self._wake_all()

    def _wake_all(self) -> None:
        for worker in self._workers.values():
            worker.wake()

    def _choose(self, pod: Json) -> Script:
        return next(script for script in reversed(self._scripts) if script.takes(pod))

    # Coming and going.

    async def __aenter__(self) -> Self:
        settings = client.Configuration()
        await config.load_kube_config(str(self._kubeconfig), client_configuration=settings)
        self._client = client.ApiClient(settings)
        self._api = client.CoreV1Api(self._client)
        self._leases = client.CoordinationV1Api(self._client)
        try:
            await asyncio.gather(*(self._register(node) for node in self.nodes))
        except BaseException:
            await self._client.close()
            raise
        self._spawn("pods", self._follow_pods())
        self._spawn("heartbeat", self._heartbeat())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            # The nodes first, so that what controllers make again is not bound to them.
            await asyncio.gather(*(self._discard(self._api.delete_node, node) for node in self.nodes))
            pods = [worker.pod for worker in self._workers.values()]
            await asyncio.gather(*(self._remove(pod) for pod in pods))
        finally:
            await self._client.close()
        if self._errors and error is None:
            raise ExceptionGroup("in the fake kubelet", self._errors)

    async def _register(self, name: str) -> None:
        """Makes the node and its lease, and waits until the scheduler may use it."""
        node = await answer(self._api.create_node_without_preload_content(node_manifest(name)))
        lease = lease_manifest(name, node["metadata"]["uid"])
        await answer(self._leases.create_namespaced_lease_without_preload_content("kube-node-lease", lease))
        while node["spec"].get("taints"):
            await asyncio.sleep(0.05)
            node = await answer(self._api.read_node_without_preload_content(name))

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await asyncio.gather(*(persist(partial(self._renew, node)) for node in self.nodes))

    def _renew(self, node: str) -> Awaitable[aiohttp.ClientResponse]:
        patch = self._leases.patch_namespaced_lease_without_preload_content
        return patch(node, "kube-node-lease", {"spec": lease_spec(node)}, _content_type=STRATEGIC_MERGE)

    async def _remove(self, pod: Json) -> None:
        metadata = pod["metadata"]
        delete = self._api.delete_namespaced_pod
        await self._discard(delete, metadata["name"], metadata["namespace"], body=force_delete(pod))

    @staticmethod
    async def _discard(delete: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> None:
        """Deletes what may be gone already, on an API server that may be gone too."""
        with contextlib.suppress(client.ApiException, aiohttp.ClientError, TimeoutError):
            await delete(*arguments, **options)

    def _spawn(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Starts a task whose failure the end of the test reports."""

        def ended(task: asyncio.Task[None]) -> None:
            if self._tasks.get(key) is task:
                del self._tasks[key]
            if not task.cancelled() and isinstance(error := task.exception(), Exception):
                self._errors.append(error)

        self._tasks[key] = asyncio.create_task(work)
        self._tasks[key].add_done_callback(ended)

    # The pods of the nodes.

    async def _follow_pods(self) -> None:
        """Lists the pods and watches them, again and again: a watch ends now and then, and may end with an error."""
        while True:
            pods = await persist(self._list_pods)
            known = {pod["metadata"]["uid"] for pod in pods["items"]}
            for uid in self._workers.keys() - known:
                self._forget(uid)
            for pod in pods["items"]:
                self._observe(pod)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async for pod, is_gone in self._watch_pods(pods["metadata"]["resourceVersion"]):
                    self._forget(pod["metadata"]["uid"]) if is_gone else self._observe(pod)

    def _list_pods(self, **options: Any) -> Awaitable[aiohttp.ClientResponse]:
        call = self._api.list_pod_for_all_namespaces_without_preload_content
        return call(field_selector="spec.nodeName!=", **options)

    async def _watch_pods(self, version: str) -> AsyncIterator[tuple[Json, bool]]:
        """Each pod that changes, and whether it is gone."""
        async with await self._list_pods(resource_version=version, watch=True, timeout_seconds=WATCH_SECONDS) as response:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
                    return
                yield event["object"], event["type"] == "DELETED"

    def _observe(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if worker := self._workers.get(uid):
            worker.wake(pod)
        elif pod["spec"]["nodeName"] in self.nodes:
            worker = PodWorker(self._api, pod, self._pod_ip(pod), self._choose)
            self._workers[uid] = worker
            self._spawn(uid, worker.run())

    def _forget(self, uid: str) -> None:
        self._workers.pop(uid, None)
        if task := self._tasks.get(uid):
            task.cancel()
