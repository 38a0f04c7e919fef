"""Versions that are adapters of the model that vLLM was started with."""

import asyncio
from pathlib import Path

import pytest

from spinrun_protocol.ledger import ADAPTER_WEIGHTS, Manifest
from spinrun_worker.rollout import activation
from spinrun_worker.rollout.staging import weights_label
from support.fake_vllm import FakeVllm
from support.rollouts import AgentUnderTest, Publisher, adapter_files, model_files

LOAD = "/v1/load_lora_adapter"
SWITCH = ["/pause", LOAD, "/reset_prefix_cache", "/update_weight_version", "/resume"]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "backoff_seconds", lambda _: 0.02)


def publish(publisher: Publisher, version: int) -> Manifest:
    return publisher.publish(version, adapter_files(fill=version))


def scratch_of(folder: Path, manifest: Manifest) -> str:
    return str(folder / "scratch" / f"v{manifest.version:06d}-{manifest.digest[:8]}")


async def test_an_adapter_is_loaded_under_a_name_of_its_own_and_nothing_is_reloaded(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    first = publish(publisher, 0)
    await agent.serve(first)
    assert vllm.calls == SWITCH
    assert (vllm.label, vllm.paused, vllm.loaded) == (weights_label(first), False, None)
    assert vllm.adapters == {weights_label(first): scratch_of(tmp_path, first)}


async def test_requests_name_the_version_and_never_the_base(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    for version in range(2):
        manifest = publish(publisher, version)
        await agent.serve(manifest)
        status, lines = await agent.samples(manifest, {"a": [1], "b": [2]})
        assert (status, {line.get("version") for line in lines[:-1]}) == (200, {version})
        assert {request["model"] for request in vllm.completions} == {weights_label(manifest)}
        vllm.completions.clear()


async def test_a_version_of_the_whole_model_is_asked_for_by_the_models_name(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    manifest = publisher.publish(0, model_files())
    await agent.serve(manifest)
    await agent.samples(manifest, {"a": [1]})
    assert [request["model"] for request in vllm.completions] == ["policy"]
    assert LOAD not in vllm.calls


async def test_the_adapter_before_the_last_is_unloaded(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    manifests = [publish(publisher, version) for version in range(4)]
    for manifest in manifests:
        await agent.serve(manifest)
    assert list(vllm.adapters) == [weights_label(manifest) for manifest in manifests[-2:]]


async def test_a_restarted_vllm_gets_the_adapter_before_the_rollout_is_ready_again(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    manifest = publish(publisher, 3)
    await agent.serve(manifest)
    await vllm.die()
    await agent.until(lambda state: "serving" not in state)
    vllm.calls.clear()
    await vllm.start()
    await agent.until_serving(manifest)
    assert vllm.calls == SWITCH
    assert list(vllm.adapters) == [weights_label(manifest)]


async def test_a_restarted_vllm_answers_no_request_with_its_base(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    """Not even in the moment in which the agent has not seen the restart yet."""
    manifest = publish(publisher, 0)
    await agent.serve(manifest)
    vllm.adapters.clear()
    status, lines = await agent.samples(manifest, {"a": [1]})
    assert status == 200
    (failed, _) = lines
    assert (failed["event"], failed["retryable"]) == ("failed", True)
    assert "does not exist" in failed["reason"]


async def test_an_adapter_that_vllm_refuses_leaves_the_old_one_serving(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    old, new = publish(publisher, 0), publish(publisher, 1)
    await agent.serve(old)
    vllm.fails_at[LOAD] = 400
    await agent.want(new)
    state = await agent.until(lambda state: state["state"] == "failed" and state.get("serving") == 0)
    assert f"vLLM refused POST {LOAD}: told to fail" in state["reason"]
    assert (await agent.samples(old, {"a": [1]}))[0] == 200
    assert (await agent.samples(new, {"a": [1]}))[0] == 409
    del vllm.fails_at[LOAD]
    await agent.until_serving(new)


@pytest.mark.parametrize("path", SWITCH)
async def test_vllm_that_dies_in_a_switch_comes_back_with_the_wanted_adapter(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, path: str
) -> None:
    await agent.serve(publish(publisher, 0))
    new = publish(publisher, 1)
    vllm.dies_after = path
    await agent.want(new)
    async with asyncio.timeout(5):
        while vllm.dies_after is not None:  # noqa: ASYNC110 - the agent is behind HTTP
            await asyncio.sleep(0.005)
    await vllm.start()
    await agent.until_serving(new)
    assert vllm.adapters.keys() == {weights_label(new)}
    assert vllm.label == weights_label(new)


async def test_an_adapter_that_a_dead_agent_has_left_is_replaced(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, tmp_path: Path
) -> None:
    old, new = publish(publisher, 0), publish(publisher, 1)
    await agent.serve(old)
    vllm.adapters[weights_label(new)] = "/left/behind"
    await agent.serve(new)
    assert vllm.adapters[weights_label(new)] == scratch_of(tmp_path, new)


async def test_an_adapter_with_a_changed_byte_is_refused_by_the_name_of_its_file(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    old, new = publish(publisher, 0), publish(publisher, 1)
    await agent.serve(old)
    file = publisher.path(1) / ADAPTER_WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\xff")
    await agent.want(new)
    state = await agent.until(lambda state: state["state"] == "failed")
    assert (state["serving"], f"{file} has different content" in state["reason"]) == (0, True)
    assert weights_label(new) not in vllm.adapters
