"""The way to the wanted version, past everything that can go wrong on it."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from spinrun_protocol.ledger import Manifest
from spinrun_worker.rollout import activation
from spinrun_worker.rollout.staging import Weights, stage, weights_label
from spinrun_worker.vllm.engine import LOADING
from support.fake_vllm import FakeVllm
from support.rollouts import AgentUnderTest, Publisher, model_files, tensors

SWITCH = [
    "/pause",
    "/update_weight_version",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/update_weight_version",
    "/resume",
]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "backoff_seconds", lambda _: 0.02)


def assert_serves(vllm: FakeVllm, manifest: Manifest, scratch: Path) -> None:
    assert (vllm.label, vllm.paused) == (weights_label(manifest), False)
    assert vllm.loaded == str(scratch / f"v{manifest.version:06d}-{manifest.digest[:8]}")


async def test_an_agent_waits_until_it_is_asked(agent: AgentUnderTest, vllm: FakeVllm) -> None:
    state = await agent.until(lambda _: True)
    assert state == {"state": "waiting", "reason": "no version has been requested"}
    assert vllm.calls == []


async def test_versions_are_switched_in_the_order_that_loses_nothing(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    manifest = None
    for version in range(3):
        vllm.calls.clear()
        manifest = publisher.publish(version)
        await agent.serve(manifest)
        assert vllm.calls == SWITCH
        assert_serves(vllm, manifest, tmp_path / "scratch")
    assert manifest is not None
    assert await agent.state() == {
        "serving": 2,
        "servingDigest": manifest.digest,
        "staged": 2,
        "wanted": 2,
        "wantedDigest": manifest.digest,
        "state": "serving",
        "reason": "",
    }


async def test_asking_again_changes_nothing(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.calls.clear()
    for _ in range(3):
        status, state = await agent.want(manifest)
        assert (status, state["state"]) == (202, "serving")
    await agent.samples(manifest, {"a": [1]})
    assert vllm.calls == ["/v1/completions"]


async def test_an_older_version_is_taken_back(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    older, newer = publisher.publish(0), publisher.publish(1)
    for manifest in (older, newer, older):
        await agent.serve(manifest)
    assert_serves(vllm, older, tmp_path / "scratch")


async def test_other_weights_of_the_same_number_are_loaded(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    await agent.serve(publisher.publish(1, fill=1))
    manifest = publisher.publish(1, fill=2)
    await agent.serve(manifest)
    assert_serves(vllm, manifest, tmp_path / "scratch")


async def test_two_versions_at_most_are_kept(agent: AgentUnderTest, publisher: Publisher, tmp_path: Path) -> None:
    for version in range(4):
        await agent.serve(publisher.publish(version))
    names = {path.name.split("-")[0] for path in (tmp_path / "scratch").iterdir()}
    assert names == {"v000002", "v000003", "wanted.json"}


async def test_the_version_before_is_removed_once_its_successor_has_served_for_a_while(
    agent: AgentUnderTest, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "_KEEP_SECONDS", 0.1)
    first, second = publisher.publish(0), publisher.publish(1)
    await agent.serve(first)
    await agent.serve(second)
    await agent.until(lambda _: not list((tmp_path / "scratch").glob("v000000-*")))
    assert (await agent.samples(second, {"a": [1]}))[1][0]["event"] == "group"
    await agent.serve(first)


async def test_a_refused_version_leaves_the_old_one_serving_until_it_is_repaired(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    old, new = publisher.publish(0), publisher.publish(1)
    await agent.serve(old)
    shard = publisher.path(1) / "model.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"\xff")
    await agent.want(new)
    state = await agent.until(lambda state: state["state"] == "failed")
    assert "model.safetensors has different content" in state["reason"]
    assert state["serving"] == 0
    assert (await agent.samples(old, {"a": [1]}))[1][0]["event"] == "group"
    async with agent.client.get("/readyz") as response:
        assert response.status == 503
    shard.write_bytes(content)
    await agent.until(lambda state: state["state"] == "serving")
    assert_serves(vllm, new, tmp_path / "scratch")


async def test_weights_of_another_shape_never_reach_vllm(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    await agent.serve(publisher.publish(0))
    vllm.calls.clear()
    other = save(tensors(1) | {"norm.weight": np.zeros(5, np.float32)})
    await agent.want(publisher.publish(1, model_files() | {"model.safetensors": other}))
    state = await agent.until(lambda state: state["state"] == "failed")
    assert "norm.weight has shape (5,) instead of (4,)" in state["reason"]
    assert vllm.calls == []


async def test_files_that_vanish_between_staging_and_loading_never_reach_vllm(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    first, second = publisher.publish(0), publisher.publish(1)
    await agent.serve(first)
    await agent.serve(second)
    staged = tmp_path / "scratch" / f"v000000-{first.digest[:8]}" / "model.safetensors"
    staged.unlink()
    await agent.serve(first)
    assert staged.exists()
    assert_serves(vllm, first, tmp_path / "scratch")


async def test_staging_does_not_wait_for_vllm(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    await vllm.die()
    await agent.want(publisher.publish(0))
    state = await agent.until(lambda state: state.get("staged") == 0)
    assert (state["state"], "serving" in state) == ("waiting", False)
    assert "vLLM does not answer" in state["reason"]
    await vllm.start()
    await agent.until(lambda state: state["state"] == "serving")


async def test_another_wish_stops_staging(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, begun, stopped = publisher.publish(1), threading.Event(), threading.Event()

    def staged_slowly(manifest: Manifest, *arguments: Any, cancelled: Callable[[], bool], **options: Any) -> Weights:
        if manifest == slow:
            begun.set()
            while not cancelled():
                time.sleep(0.001)
            stopped.set()
        return stage(manifest, *arguments, cancelled=cancelled, **options)

    monkeypatch.setattr(activation, "stage", staged_slowly)
    await agent.want(slow)
    assert await asyncio.to_thread(begun.wait, 10)
    wanted = publisher.publish(2)
    await agent.serve(wanted)
    assert stopped.is_set()
    assert_serves(vllm, wanted, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").glob("v000001-*"))


@pytest.mark.parametrize("path", sorted(set(SWITCH)))
async def test_a_switch_survives_an_error_at_every_call(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path, path: str
) -> None:
    old, new = publisher.publish(0), publisher.publish(1)
    await agent.serve(old)
    vllm.fails_at[path] = 500
    await agent.want(new)
    state = await agent.until(lambda state: state["state"] == "failed")
    assert "told to fail" in state["reason"]
    assert state.get("serving") in (0, None)
    del vllm.fails_at[path]
    await agent.until(lambda state: state["state"] == "serving")
    assert_serves(vllm, new, tmp_path / "scratch")


@pytest.mark.parametrize("when", ["dies_at", "dies_after"])
@pytest.mark.parametrize("path", sorted(set(SWITCH)))
async def test_a_switch_survives_the_death_of_vllm_at_every_call(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path, path: str, when: str
) -> None:
    old, new = publisher.publish(0), publisher.publish(1)
    await agent.serve(old)
    setattr(vllm, when, path)
    await agent.want(new)
    state = await agent.until(lambda state: state["state"] == "waiting")
    assert "vLLM does not answer" in state["reason"]
    assert "serving" not in state
    async with agent.client.get("/readyz") as response:
        assert response.status == 503
    await vllm.start()
    await agent.until(lambda state: state["state"] == "serving")
    assert_serves(vllm, new, tmp_path / "scratch")


async def test_weights_half_loaded_have_no_name(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    old, new = publisher.publish(0), publisher.publish(1)
    await agent.serve(old)
    vllm.fails_at["/reset_prefix_cache"] = 500
    await agent.want(new)
    await agent.until(lambda state: state["state"] == "failed")
    # The new weights are in vLLM by now. Neither version may be sampled, not even after the old one is wanted again.
    assert vllm.label == LOADING
    for manifest in (old, new):
        assert (await agent.samples(manifest, {"a": [1]}))[0] == 409
    del vllm.fails_at["/reset_prefix_cache"]
    vllm.calls.clear()
    await agent.serve(old)
    assert "/collective_rpc" in vllm.calls


async def test_vllm_that_dies_while_it_generates_fails_its_prompts_and_is_switched_before_it_serves(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.may_answer.clear()
    call = asyncio.create_task(agent.samples(manifest, {"a": [1], "b": [2]}))
    await vllm.until_under_way(2)
    await vllm.die()
    status, lines = await call
    assert status == 200
    assert [(line["event"], line.get("retryable")) for line in lines] == [("failed", True), ("failed", True), ("end", None)]
    await agent.until(lambda state: state["state"] == "waiting")
    vllm.may_answer.set()
    await vllm.start()
    await agent.until(lambda state: state["state"] == "serving")
    assert_serves(vllm, manifest, tmp_path / "scratch")


async def test_a_sample_that_a_restarted_vllm_made_is_refused(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        # Between two looks of the agent, vLLM was restarted and has the base weights again.
        vllm.label = "default"
        return {"choices": [{"text": "", "finish_reason": "stop", "token_ids": [1], "prompt_token_ids": request["prompt"]}]}

    vllm.answer = answer
    _, lines = await agent.samples(manifest, {"a": [1]}, n=1)
    assert (lines[0]["event"], lines[0]["retryable"]) == ("failed", True)
    assert "was restarted" in lines[0]["reason"]
    await agent.until(lambda state: vllm.label == weights_label(manifest) and state["state"] == "serving")


async def test_a_switch_waits_for_samples_under_way_and_sends_no_others(
    start_agent: Any, vllm: FakeVllm, publisher: Publisher
) -> None:
    agent: AgentUnderTest = await start_agent(max_sequences=2)
    old, new = publisher.publish(0), publisher.publish(1)
    await agent.serve(old)
    vllm.calls.clear()
    vllm.may_answer.clear()
    call = asyncio.create_task(agent.samples(old, {"first": [1], "second": [2], "third": [3]}, n=2))
    await vllm.until_under_way(1)
    await agent.want(new)
    await agent.until(lambda state: state["state"] == "switching")
    assert (await agent.samples(new, {"a": [1]}))[0] == 409
    assert vllm.calls == ["/v1/completions"]
    vllm.may_answer.set()
    _, lines = await call
    answered = [line for line in lines if line["event"] == "group"]
    failed = [line for line in lines if line["event"] == "failed"]
    assert [(line["id"], line["version"]) for line in answered] == [("first", 0)]
    assert [(line["id"], line["retryable"]) for line in failed] == [("second", True), ("third", True)]
    assert all("version 0 is not served" in line["reason"] for line in failed)
    await agent.until(lambda state: state["state"] == "serving")
    assert vllm.calls == ["/v1/completions", *SWITCH]


async def test_versions_never_mix_while_they_change_under_load(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    versions = [publisher.publish(version) for version in range(4)]
    await agent.serve(versions[0])

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        tokens = [int(vllm.label.split("-")[0])]
        choice = {"text": "", "finish_reason": "stop", "token_ids": tokens, "prompt_token_ids": request["prompt"]}
        return {"choices": [choice] * request["n"]}

    vllm.answer = answer
    groups = list[dict[str, Any]]()
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            for manifest in versions:
                _, lines = await agent.samples(manifest, {"a": [1], "b": [2]})
                groups.extend(line for line in lines if line.get("event") == "group")

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(ask())
        for manifest in (*versions[1:], *reversed(versions)):
            await agent.serve(manifest)
            expected = len(groups) + 4
            async with asyncio.timeout(5):
                while len(groups) < expected:  # noqa: ASYNC110 - the requests continue
                    await asyncio.sleep(0.001)
        done.set()
    assert {group["version"] for group in groups} == {0, 1, 2, 3}
    assert all(sample["tokens"] == [group["version"]] for group in groups for sample in group["samples"])


async def test_a_restarted_agent_resumes_automatically(
    start_agent: Any, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    first: AgentUnderTest = await start_agent()
    manifest = publisher.publish(3)
    await first.serve(manifest)
    first.loop.cancel()
    (tmp_path / "scratch" / "v000001-aaaaaaaa.partial").mkdir()
    vllm.calls.clear()
    second: AgentUnderTest = await start_agent()
    await second.until(lambda state: state["state"] == "serving")
    assert vllm.calls == []
    assert not (tmp_path / "scratch" / "v000001-aaaaaaaa.partial").exists()


async def test_a_restarted_agent_loads_what_was_wanted_into_a_restarted_vllm(
    start_agent: Any, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    first: AgentUnderTest = await start_agent()
    manifest = publisher.publish(3)
    await first.serve(manifest)
    first.loop.cancel()
    await vllm.die()
    await vllm.start()
    second: AgentUnderTest = await start_agent()
    await second.until(lambda state: state["state"] == "serving")
    assert_serves(vllm, manifest, tmp_path / "scratch")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100, b'{"kind": "weights"}'])
async def test_a_memory_that_makes_no_sense_is_forgotten(start_agent: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "wanted.json").write_bytes(content)
    agent: AgentUnderTest = await start_agent()
    assert (await agent.until(lambda _: True))["reason"] == "no version has been requested"


async def test_an_agent_that_died_in_a_switch_leaves_nothing_wrong(
    start_agent: Any, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    first: AgentUnderTest = await start_agent()
    old, new = publisher.publish(0), publisher.publish(1)
    await first.serve(old)
    first.loop.cancel()
    # As after /collective_rpc: paused, the new weights in it, and no name for them.
    vllm.paused, vllm.label = True, LOADING
    second: AgentUnderTest = await start_agent()
    await second.serve(new)
    assert_serves(vllm, new, tmp_path / "scratch")


async def test_a_vllm_left_paused_is_resumed(start_agent: Any, vllm: FakeVllm, publisher: Publisher) -> None:
    first: AgentUnderTest = await start_agent()
    await first.serve(publisher.publish(0))
    first.loop.cancel()
    vllm.paused = True
    vllm.calls.clear()
    second: AgentUnderTest = await start_agent()
    await second.until(lambda state: state["state"] == "serving")
    assert vllm.calls == ["/resume"]


async def test_foreign_weights_in_vllm_are_replaced(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.label, vllm.loaded = "somebody else's", "/elsewhere"
    await agent.until(lambda state: vllm.label == weights_label(manifest) and state["state"] == "serving")
    assert_serves(vllm, manifest, tmp_path / "scratch")


async def test_a_vllm_without_the_development_endpoints_is_named(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    vllm.fails_at["/weight_info"] = 404
    await agent.want(publisher.publish(0))
    state = await agent.until(lambda state: "VLLM_SERVER_DEV_MODE=1" in state["reason"])
    assert state["state"] == "waiting"


async def test_a_bug_in_a_pass_is_shown_and_the_next_pass_follows(
    agent: AgentUnderTest, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(activation, "next_action", broken)
        await agent.want(publisher.publish(0))
        state = await agent.until(lambda state: state["state"] == "failed")
        assert "ZeroDivisionError" in state["reason"]
        assert any(record.exc_info for record in caplog.records)
    await agent.until(lambda state: state["state"] == "serving")
