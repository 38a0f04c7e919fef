"""Scorers come and go with the run that serves the model of its preference, and their trouble is the run's."""

import asyncio
from typing import Any

import pytest

from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit, Waiting
from integration.operator.cluster import Cluster, RunningOperator, children_of, spin_run

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

SCORER_CHILDREN = ("Service/demo-scorer", "StatefulSet/demo-scorer")
REWARD_MODEL: Json = {"rewardModel": {"source": "org/stern"}}


async def test_scorers_live_with_the_run_and_say_what_keeps_them_from_it(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    stuck = fake_kubelet.script(Waiting("ImagePullBackOff"), name="demo-scorer-0")
    await cluster.create(spin_run(preference=REWARD_MODEL, scorer={"image": "no.such/vllm:1"}))
    condition = await cluster.until_condition("Degraded", "True", "ImageNotPulled")
    assert "pod demo-scorer-0, container vllm: image no.such/vllm:1 cannot be pulled" in condition["message"]
    stuck.cancel()
    await cluster.until_phase("Running", scorers={"ready": 1, "desired": 1})
    await cluster.until_condition("Degraded", "False", "AsExpected")
    assert sorted(await cluster.children()) == sorted([*children_of("demo"), *SCORER_CHILDREN])

    await cluster.change_spec("demo", scorer={"replicas": 2})
    assert (await cluster.until_phase("Running", scorers={"ready": 2, "desired": 2}))["attempt"] == 1
    await operator.until_idle()
    written = len(operator.api.writes)
    for key in operator.controller.runs():
        operator.controller.queue.add(key)
    await operator.until_idle()
    assert operator.api.writes[written:] == []

    await cluster.change_spec("demo", lifecycle={"suspend": True})
    await cluster.until_condition("Suspended", "True", "Suspended")
    assert await cluster.pods("scorer") == []
    await cluster.change_spec("demo", lifecycle={"suspend": False})
    await cluster.until_phase("Running", scorers={"ready": 2, "desired": 2})


async def test_scorer_that_keeps_ending_is_named_with_its_termination_message(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    words = "loading\nRuntimeError: Unsupported task: 'classify' Supported tasks: ['embed']\n"
    fake_kubelet.script(Exit(1, message=words, container="vllm", times=9), name="demo-scorer-0")
    await cluster.create(spin_run(preference=REWARD_MODEL))
    condition = await cluster.until_condition("Degraded", "True", "ContainerCrashing")
    assert (
        "demo-scorer-0, container vllm is crash-looping (Error, exit code 1): RuntimeError: Unsupported" in condition["message"]
    )


async def test_preference_that_is_changed_before_the_start_leaves_no_pod_of_a_scorer(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet
) -> None:
    fake_kubelet.script(Waiting("ImagePullBackOff"), name="demo-trainer-*")
    await cluster.create(spin_run(preference=REWARD_MODEL))
    await cluster.until("a scorer is there", lambda: cluster.pods("scorer"))
    await cluster.change_spec("demo", preference={"rewardModel": None, "rule": {"kind": "lastNumber"}})

    async def is_empty() -> bool:
        statefulset = await cluster.get("StatefulSet", "demo-scorer") or {}
        return statefulset["spec"]["replicas"] == 0 and not await cluster.pods("scorer")

    await cluster.until("no scorer is left", is_empty)
    assert "scorers" not in await cluster.status()
    await operator.until_idle()
    written = len(operator.api.writes)
    await asyncio.sleep(1)
    assert operator.api.writes[written:] == [], "and that is all"
