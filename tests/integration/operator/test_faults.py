"""The operator killed, its requests refused or lost, its events dropped: the run ends in the same state."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit, Waiting
from integration.operator.cluster import (
    FAST,
    TIMEOUT,
    WRITES,
    Cluster,
    RunningOperator,
    api_error,
    children_of,
    running_operator,
    spin_run,
)
from spinrun_kube.api import Api
from spinrun_kube.kinds import Kind

pytestmark = pytest.mark.cluster

Json = dict[str, Any]


async def live_through(cluster: Cluster, kubelet: FakeKubelet, name: str) -> None:
    """What every run of this file goes through, whatever befalls its operator: two failed attempts, and completion."""
    kubelet.script(Exit(1), name=f"{name}-trainer-1-*", namespace=cluster.namespace)
    kubelet.script(Exit(3), name=f"{name}-trainer-2-*", namespace=cluster.namespace)
    kubelet.script(Exit(0), name=f"{name}-trainer-3-*", namespace=cluster.namespace)
    await cluster.create(spin_run(name))


async def end_state(cluster: Cluster, name: str) -> Json:
    """What must be the same at the end, without times."""
    status = await cluster.until_phase("Complete", name, rollouts={"ready": 0, "desired": 0})
    wanted = ("phase", "attempt", "failedAttempts", "rollouts")
    children = sorted(child for child in await cluster.children() if child.split("/")[1].startswith(f"{name}-"))
    conditions = {condition["type"]: (condition["status"], condition["reason"]) for condition in status["conditions"]}
    return {key: status[key] for key in wanted} | {"children": [child.replace(name, "demo") for child in children], **conditions}


WANT: Json = {
    "phase": "Complete",
    "attempt": 3,
    "failedAttempts": 1,
    "rollouts": {"ready": 0, "desired": 0},
    "children": children_of("demo", attempts=(2, 3)),
    "Complete": ("True", "Completed"),
    "Ready": ("False", "Completed"),
    "Progressing": ("False", "Completed"),
    "Suspended": ("False", "NotSuspended"),
    "Degraded": ("False", "AsExpected"),
}
"""The end state of that life, with an operator that nothing befalls."""


@pytest.mark.timeout(600)
async def test_operator_killed_after_each_of_its_writes(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    async with running_operator(cluster.namespace) as operator:
        await live_through(cluster, fake_kubelet, "calm")
        assert await end_state(cluster, "calm") == WANT
        await operator.until_idle()
        writes = len(operator.api.writes)
    for number in range(1, writes + 1):
        name = f"killed-{number}"
        async with running_operator(cluster.namespace, die_after_write=number) as first:
            await live_through(cluster, fake_kubelet, name)
            done = asyncio.create_task(cluster.until_phase("Complete", name))
            died = asyncio.create_task(first.died.wait())
            await asyncio.wait((done, died), return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            died.cancel()
        async with running_operator(cluster.namespace):
            assert await end_state(cluster, name) == WANT, f"killed after write {number}"
            await cluster.delete("SpinRun", name)


@pytest.mark.parametrize(
    "error", [api_error(409), api_error(429), api_error(500), TIMEOUT], ids=["409", "429", "500", "time-out"]
)
@pytest.mark.parametrize("lost", [False, True], ids=["refused", "done-but-answer-lost"])
async def test_every_third_write_fails(cluster: Cluster, fake_kubelet: FakeKubelet, error: Exception, lost: bool) -> None:
    count = itertools.count(1)

    def fault(verb: str, path: str) -> Exception | None:
        return error if verb in WRITES and next(count) % 3 == 0 else None

    disturbance: dict[str, Any] = {"lost_answer" if lost else "fault": fault}
    async with running_operator(cluster.namespace, **disturbance):
        await live_through(cluster, fake_kubelet, "demo")
        assert await end_state(cluster, "demo") == WANT


@pytest.mark.parametrize("error", [api_error(410, "Expired"), api_error(500), TIMEOUT], ids=["410", "500", "time-out"])
async def test_every_fifth_read_fails(cluster: Cluster, fake_kubelet: FakeKubelet, error: Exception) -> None:
    count = itertools.count(1)
    async with running_operator(
        cluster.namespace, fault=lambda verb, _: error if verb == "GET" and next(count) % 5 == 0 else None
    ):
        await live_through(cluster, fake_kubelet, "demo")
        assert await end_state(cluster, "demo") == WANT


@pytest.mark.parametrize("disturb", ["dropped", "doubled", "swapped"])
async def test_watch_events_are_dropped_doubled_and_swapped(
    cluster: Cluster,
    fake_kubelet: FakeKubelet,
    disturb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, count = Api.watch, itertools.count(1)

    async def disturbed(api: Api, kind: Kind, namespace: str | None, **arguments: Any) -> AsyncIterator[Json]:
        """Every fourth event of all watches comes never, twice, or after the next one."""
        late: list[Json] = []
        async for event in watch(api, kind, namespace, **arguments):
            is_chosen = next(count) % 4 == 0
            now = [] if is_chosen and disturb != "doubled" else [event]
            for each in (*now, *(now if is_chosen else ()), *late):
                yield each
            late = [event] if is_chosen and disturb == "swapped" else []

    monkeypatch.setattr(Api, "watch", disturbed)
    # What a dropped event said is found by the next list.
    settings = replace(FAST, resync_seconds=2)
    async with running_operator(cluster.namespace, settings=settings):
        await live_through(cluster, fake_kubelet, "demo")
        assert await end_state(cluster, "demo") == WANT


async def test_operator_and_trainer_killed_together(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    async with running_operator(cluster.namespace):
        await cluster.create(spin_run(lifecycle={"backoffLimit": 1}))
        await cluster.until_phase("Running")
    fake_kubelet.script(Exit(1, message="killed with its operator"), name="demo-trainer-1-*")

    async def failed() -> bool:
        job = await cluster.get("Job", "demo-trainer-1") or {}
        return any(each["type"] == "Failed" for each in job.get("status", {}).get("conditions", []))

    await cluster.until("the Job has failed", failed)
    async with running_operator(cluster.namespace):
        assert (await cluster.until_phase("Running", attempt=2))["failedAttempts"] == 1


async def test_restart_counter_survives_restarts(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    fake_kubelet.script(Exit(1), name="demo-trainer-*")
    await cluster.create(spin_run(lifecycle={"backoffLimit": 3}))
    for wanted in range(1, 4):
        async with running_operator(cluster.namespace):

            async def counted(wanted: int = wanted) -> bool:
                return (await cluster.status()).get("failedAttempts", 0) >= wanted

            await cluster.until(f"{wanted} attempts have failed", counted)
    async with running_operator(cluster.namespace):
        assert (await cluster.until_phase("Failed"))["failedAttempts"] == 4


@pytest.mark.parametrize("phase", ["Pending", "Running", "Restarting", "Complete"])
async def test_suspend_and_resume_in_every_phase(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, phase: str
) -> None:
    hold = {
        "Pending": fake_kubelet.script(Waiting("ContainerCreating"), name="demo-trainer-*"),
        "Running": fake_kubelet.script(Exit(0, after=3600), name="demo-trainer-*"),
        "Restarting": fake_kubelet.script(Exit(1), name="demo-trainer-*", limit=2),
        "Complete": fake_kubelet.script(Exit(0), name="demo-trainer-*"),
    }
    for other, script in hold.items():
        if other != phase:
            script.cancel()
    await cluster.create(spin_run())
    await cluster.until_phase(phase)
    await cluster.change_spec("demo", lifecycle={"suspend": True})
    if phase == "Complete":
        await operator.until_idle()
        assert (await cluster.status())["phase"] == "Complete"
        return
    await cluster.until_condition("Suspended", "True", "Suspended")
    hold[phase].cancel()
    await cluster.change_spec("demo", lifecycle={"suspend": False})
    await cluster.until_phase("Running")
