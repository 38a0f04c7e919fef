"""The live copy of the cluster's objects."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from spinrun_kube.api import ApiError
from spinrun_kube.kinds import CHILDREN, POD, SECRET
from spinrun_operator.informer import Informer, slim
from unit.operator.world import SETTINGS

Json = dict[str, Any]

KEY = ("team", "demo")
SERVICE = next(kind for kind in CHILDREN if kind.name == "Service")


def service(version: int, *, name: str = "s", uid: str = "u", **spec: Any) -> Json:
    """A Service of a run."""
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"spinrun.dev/run": "demo"},
    }
    return {"kind": "Service", "apiVersion": "v1", "metadata": metadata | {"managedFields": [{}]}, "spec": spec}


class FakeApi:
    """Lists and watches that a test scripts: what each list holds, and what follows it."""

    def __init__(self, *rounds: tuple[Sequence[Json], Sequence[Json | Exception]]) -> None:
        self.rounds = list(rounds)
        self.done = asyncio.Event()

    async def list(self, *_: Any, **__: Any) -> tuple[Sequence[Json], str]:
        if not self.rounds:
            self.done.set()
            await asyncio.get_running_loop().create_future()
        self.events = self.rounds[0][1]
        items = self.rounds.pop(0)[0]
        return items, "100"

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[Json]:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


def informer_of(api: Any, changed: list[Any]) -> Informer:
    """An informer that notes which runs have changed."""
    return Informer(api, SERVICE, None, SETTINGS, changed.append, lambda _: None)


async def follow(*rounds: tuple[Sequence[Json], Sequence[Json | Exception]]) -> tuple[Informer, list[Any]]:
    """Runs an informer until the rounds are over."""
    api, changed = FakeApi(*rounds), []
    informer = informer_of(api, changed)
    task = asyncio.create_task(informer.run())
    async with asyncio.timeout(10):
        await api.done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return informer, changed


def seen(informer: Informer) -> list[str]:
    """Name and version of what is known."""
    return sorted(f"{each['metadata']['name']}@{each['metadata']['resourceVersion']}" for each in informer.of_run(KEY))


async def test_list_and_watch_make_the_copy() -> None:
    events = [
        {"type": "ADDED", "object": service(101, name="b", uid="v")},
        {"type": "MODIFIED", "object": service(102)},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "103"}}},
        {"type": "DELETED", "object": service(104, name="b", uid="v")},
    ]
    informer, changed = await follow(([service(99)], events))
    assert seen(informer) == ["s@102"]
    assert changed == [KEY] * 4
    assert informer.synced.is_set()


async def test_older_and_doubled_events_are_no_news() -> None:
    events = [{"type": "MODIFIED", "object": service(version)} for version in (105, 103, 105)]
    informer, changed = await follow(([service(99)], events))
    assert seen(informer) == ["s@105"]
    assert len(changed) == 2


async def test_late_event_does_not_bring_back_what_is_deleted() -> None:
    events = [{"type": "DELETED", "object": service(103)}, {"type": "MODIFIED", "object": service(102)}]
    informer, _ = await follow(([service(99)], events))
    assert seen(informer) == []


async def test_next_list_finds_what_events_missed() -> None:
    gone = service(90, name="gone", uid="g")
    informer, changed = await follow(([service(80), gone], []), ([service(95)], []))
    assert seen(informer) == ["s@95"]
    assert len(changed) == 4


@pytest.mark.parametrize("error", [ApiError(410, "Expired", ""), ApiError(500, "", ""), TimeoutError(), ConnectionResetError()])
async def test_broken_watch_is_followed_by_another_list(error: Exception) -> None:
    informer, _ = await follow(([service(80)], [error]), ([service(99)], []))
    assert seen(informer) == ["s@99"]


async def test_own_write_is_known_at_once_and_a_list_from_before_does_not_forget_it() -> None:
    changed: list[Any] = []
    informer = informer_of(FakeApi(), changed)
    assert informer.put(service(150))
    assert not informer.put(service(150))
    assert changed == []
    assert seen(informer) == ["s@150"]


def test_what_is_in_a_secret_is_not_kept() -> None:
    secret = service(1) | {"data": {"token": "x"}}
    assert "data" not in slim(secret, SECRET)


def test_copy_keeps_of_a_pod_what_is_read() -> None:
    spec = {"nodeName": "n", "containers": [{"name": "a", "image": "i", "resources": {"limits": {}}}], "volumes": [{}]}
    pod = slim({"metadata": service(1)["metadata"], "spec": spec, "status": {"phase": "Running"}}, POD)
    assert pod["spec"] == {"nodeName": "n", "containers": [{"name": "a", "resources": {"limits": {}}}]}
    assert "managedFields" not in pod["metadata"]


def test_copy_keeps_the_limits_of_init_containers() -> None:
    limits = {"limits": {"memory": "1Gi"}}
    spec = {"initContainers": [{"name": "fetch", "image": "i", "resources": limits}], "containers": [{"name": "a"}]}
    pod = slim({"metadata": service(1)["metadata"], "spec": spec}, POD)
    assert pod["spec"]["initContainers"] == [{"name": "fetch", "resources": limits}]
