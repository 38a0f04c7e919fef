"""What the operator's tests do to a cluster, and an operator that a test can start, count, disturb and kill."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from kubernetes.aio import client

from spinrun_kube.api import MERGE_PATCH, Api, ApiError, connect
from spinrun_kube.kinds import CHILDREN, EVENT, POD, SPIN_RUN, kind_of
from spinrun_kube.names import RUN_LABEL
from spinrun_operator.controller import Controller
from spinrun_operator.metrics import Metrics
from spinrun_operator.settings import Settings

Json = dict[str, Any]

WRITES = ("POST", "PUT", "PATCH", "DELETE")
FAST = Settings(
    accelerator="cpu",
    worker_image="worker:test",
    coalesce_seconds=0.02,
    starting_seconds=0.05,
    restart_delay_seconds=0.2,
    progress_seconds=0.05,
    progress_write_seconds=0.2,
    trouble_seconds=0.3,
    unscheduled_seconds=0,
    request_timeout_seconds=5,
    pod_monitor=False,
)
"""Settings that make the operator as impatient as a test."""
PATIENCE_SECONDS = 30.0

KINDS = {kind.name: kind for kind in (SPIN_RUN, POD, EVENT, *CHILDREN)}


def spin_run(name: str = "demo", **spec: Any) -> Json:
    """A small valid run; `spec` replaces whole blocks."""
    blocks = {
        "model": {"source": "/models/tiny"},
        "data": {"prompts": {"source": "arithmetic"}},
        "preference": {"rule": {"kind": "lastNumber"}},
        "storage": {"size": "1Gi"},
    }
    metadata = {"name": name}
    return {"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": metadata, "spec": blocks | spec}


def children_of(name: str, *, attempts: Sequence[int] = (1,)) -> list[str]:
    """What the operator makes for a run, in order. attempts: those whose Jobs are there."""
    return [
        f"ConfigMap/{name}-run",
        *(f"Job/{name}-trainer-{attempt}" for attempt in attempts),
        f"NetworkPolicy/{name}-spinrun",
        f"PersistentVolumeClaim/{name}-ledger",
        f"Secret/{name}-token",
        f"Service/{name}-rollout",
        f"ServiceAccount/{name}-spinrun",
        f"StatefulSet/{name}-rollout",
    ]


class Cluster:
    """One namespace of a cluster, seen by a user."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    async def create(self, document: Json) -> Json:
        """Makes an object."""
        document = copy.deepcopy(document)
        document["metadata"]["namespace"] = self.namespace
        return await self.api.request("POST", kind_of(document).path(self.namespace), body=document)

    async def get(self, kind: str, name: str) -> Json | None:
        """The object, or None."""
        return await self.api.get(KINDS[kind], self.namespace, name)

    async def find(self, kind: str, labels: str = "") -> list[Json]:
        """All objects of a kind."""
        return (await self.api.list(KINDS[kind], self.namespace, labels=labels))[0]

    async def patch(self, kind: str, name: str, patch: Json, **query: str) -> Json:
        """A merge patch."""
        path = KINDS[kind].path(self.namespace, name)
        return await self.api.request("PATCH", path, query=query, body=patch, content_type=MERGE_PATCH)

    async def change_spec(self, name: str, **blocks: Any) -> Json:
        """Merges into the spec of a run."""
        return await self.patch("SpinRun", name, {"spec": blocks})

    async def delete(self, kind: str, name: str) -> None:
        """Deletes an object as kubectl does."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        await self.api.request("DELETE", KINDS[kind].path(self.namespace, name), body=body)

    async def status(self, name: str = "demo") -> Json:
        """The status of a run."""
        run = await self.get("SpinRun", name)
        return (run or {}).get("status", {})

    async def condition(self, kind: str, name: str = "demo") -> Json:
        """A condition of a run; empty while it is not there."""
        conditions = (await self.status(name)).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    async def events(self, name: str = "demo") -> list[Json]:
        """Events about a run."""
        return [event for event in await self.find("Event") if event["involvedObject"]["name"] == name]

    async def pods(self, component: str) -> list[Json]:
        """Pods of the runs' trainers or rollouts."""
        return await self.find("Pod", f"{RUN_LABEL},app.kubernetes.io/component={component}")

    async def children(self) -> dict[str, Json]:
        """Every object with a run's label, pods apart, by kind and name."""
        found: dict[str, Json] = {}
        for kind in CHILDREN:
            found |= {f"{kind.name}/{each['metadata']['name']}": each for each in await self.find(kind.name, RUN_LABEL)}
        return found

    async def until(self, what: str, holds: Callable[[], Awaitable[Any]], seconds: float = PATIENCE_SECONDS) -> Any:
        """Waits until it holds, and returns what it returned; fails with the runs' statuses when it does not in time."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (result := await holds()):
            if asyncio.get_running_loop().time() > deadline:
                runs = {run["metadata"]["name"]: run.get("status") for run in await self.find("SpinRun")}
                raise AssertionError(f"not in {seconds} s: {what}; {runs}")
            await asyncio.sleep(0.05)
        return result

    async def until_phase(self, phase: str, name: str = "demo", **wanted: Any) -> Json:
        """Waits for a phase, and for fields of the status beside it; returns the status."""

        async def reached() -> Json | None:
            status = await self.status(name)
            return status if {"phase": phase, **wanted}.items() <= status.items() else None

        return await self.until(f"{name} is {phase} {wanted or ''}", reached)

    async def until_condition(self, kind: str, status: str, reason: str, name: str = "demo") -> Json:
        """Waits for a condition; returns it."""

        async def reached() -> Json | None:
            found = await self.condition(kind, name)
            return found if (found.get("status"), found.get("reason")) == (status, reason) else None

        return await self.until(f"{name} has {kind}={status} by {reason}", reached)

    async def until_gone(self, kind: str, name: str) -> None:
        """Waits until an object is not there any more."""

        async def gone() -> bool:
            return await self.get(kind, name) is None

        await self.until(f"{kind} {name} is gone", gone)


def no_error(_verb: str, _path: str) -> None:
    """No disturbance."""


@dataclass
class WatchedApi(Api):
    """The operator's API with every request seen, and some refused, lost or followed by the operator's death."""

    api_client: client.ApiClient
    settings: Settings
    metrics: Metrics
    writes: list[tuple[str, str]] = field(default_factory=list)
    """Verb and path of every write that was sent."""
    reads: list[str] = field(default_factory=list)
    """Paths of all reads."""
    fault: Callable[[str, str], Exception | None] = no_error
    """An error that the operator gets instead of an answer; the request is not sent."""
    lost_answer: Callable[[str, str], Exception | None] = no_error
    """An error that the operator gets instead of the answer to a request that was sent."""
    die_after_write: int | None = None
    on_death: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        super().__init__(
            self.api_client,
            request_timeout_seconds=self.settings.request_timeout_seconds,
            watch_silence_seconds=self.settings.watch_silence_seconds,
            observe=self.metrics.api_request,
        )

    async def request(self, verb: str, path: str, **arguments: Any) -> Json:
        """Sends, as far as the test lets it."""
        if error := self.fault(verb, path):
            raise error
        if verb not in WRITES:
            self.reads.append(path)
            return await super().request(verb, path, **arguments)
        self.writes.append((verb, path))
        answer = await super().request(verb, path, **arguments)
        if len(self.writes) == self.die_after_write:
            self.on_death()
            # Dead: it never learns of the answer.
            await asyncio.get_running_loop().create_future()
        if error := self.lost_answer(verb, path):
            raise error
        return answer


class RunningOperator:
    """An operator in this process. `die` ends it at once, as SIGKILL does: nothing in it gets to say goodbye."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.died = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, **disturbance: Any) -> None:
        """Starts it; see WatchedApi for how to disturb it."""
        self.metrics = Metrics()
        self._client = await connect()
        self.api = WatchedApi(self._client, self.settings, self.metrics, on_death=self.die, **disturbance)
        self.controller = Controller(self.api, self.settings, self.metrics)
        self._tasks = [asyncio.create_task(self.controller.run())]

    def die(self) -> None:
        """Ends every task of the operator, the calling one too at its next step."""
        self.died.set()
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Ends it and waits for that."""
        self.die()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def until_idle(self, quiet_seconds: float = 0.5) -> None:
        """Waits until it has written nothing and had nothing to do for a while."""
        loop = asyncio.get_running_loop()
        deadline, quiet_since, written = loop.time() + PATIENCE_SECONDS, loop.time(), len(self.api.writes)
        while loop.time() - quiet_since < quiet_seconds:
            await asyncio.sleep(0.05)
            if len(self.api.writes) != written or self.controller.queue.depth():
                quiet_since, written = loop.time(), len(self.api.writes)
            assert loop.time() < deadline, f"still busy: {self.api.writes[-10:]}"


@contextlib.asynccontextmanager
async def running_operator(
    namespace: str, *, settings: Settings = FAST, **disturbance: Any
) -> AsyncGenerator[RunningOperator, None]:
    """An operator for one namespace."""
    operator = RunningOperator(replace(settings, watch_namespaces=(namespace,)))
    await operator.start(**disturbance)
    try:
        yield operator
    finally:
        await operator.stop()


def api_error(status: int, reason: str = "Injected") -> ApiError:
    """An error as the API server answers it."""
    return ApiError(status, reason, "injected by the test")


TIMEOUT = aiohttp.ServerTimeoutError("injected by the test")
