"""The agent with a real vLLM and a tiny random model."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForCausalLM

from spinrun_protocol.ledger import Manifest
from spinrun_worker.trainer.model.policy import plain_logprob
from support.engines import VllmServer
from support.models import tiny_llama, tiny_tokenizer
from support.rollouts import AgentClient, Publisher

pytestmark = pytest.mark.engine

Change = Callable[[Any], None]

LOAD_SECONDS = 120
END = tiny_tokenizer().convert_tokens_to_ids("<|im_end|>")


def publish(publisher: Publisher, version: int, folder: Path, *, seed: int, change: Change | None = None) -> Manifest:
    """Publish a random model of this seed, by default one whose answers depend on all of its weights."""
    path = tiny_llama(folder / f"seed{seed}", seed=seed)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        (change or strengthen_layers)(model)
    model.save_pretrained(path)
    return publisher.publish(version, {file.name: file.read_bytes() for file in path.iterdir()})


def strengthen_layers(model: Any) -> None:
    """Without it a random model with tied embeddings repeats its last token, whatever the weights."""
    for name, parameter in model.named_parameters():
        if "layers" in name and parameter.dim() == 2:
            parameter.mul_(5)


def prefer_the_end(model: Any) -> None:
    """Make the end token likeliest after everything: every hidden state points along its embedding."""
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.zero_()
    embedding = model.get_input_embeddings().weight
    embedding.fill_(0.01)
    embedding[END] = 1.0


def prompts(count: int) -> dict[str, list[int]]:
    tokenizer = tiny_tokenizer()
    return {f"p{index}": tokenizer.encode(f"What is {index} + {index * 3}?") for index in range(count)}


def by_id(lines: list[dict[str, Any]]) -> dict[str, list[list[int]]]:
    """Token ids of every sample; all prompts must have been answered."""
    assert lines[-1] == {"event": "end"}
    assert {line["event"] for line in lines[:-1]} == {"group"}, lines
    return {line["id"]: [sample["tokens"] for sample in line["samples"]] for line in lines[:-1]}


async def greedy(agent: AgentClient, manifest: Manifest, count: int = 4, max_tokens: int = 8) -> dict[str, list[list[int]]]:
    status, lines = await agent.samples(manifest, prompts(count), n=1, temperature=0, maxTokens=max_tokens)
    assert status == 200
    return by_id(lines)


async def test_each_version_answers_with_its_own_weights(agent: AgentClient, publisher: Publisher, tmp_path: Path) -> None:
    first = publish(publisher, 0, tmp_path, seed=1)
    second = publish(publisher, 1, tmp_path, seed=2)
    same_as_first = publish(publisher, 2, tmp_path, seed=1)
    answers = list[dict[str, list[list[int]]]]()
    for manifest in (first, second, same_as_first, second):
        await agent.serve(manifest, LOAD_SECONDS)
        answers.append(await greedy(agent, manifest))
    assert all(answers[0][name] != answers[1][name] for name in answers[0])
    assert answers[2] == answers[0]
    assert answers[3] == answers[1]


def margin_and_token(model: Any, tokens: list[int]) -> tuple[float, int]:
    """Likeliest next token, and how far its logit is above the second one."""
    with torch.no_grad():
        top = model(torch.tensor([tokens])).logits[0, -1].float().topk(2)
    return float(top.values[0] - top.values[1]), int(top.indices[0])


def compared_tokens(model: Any, answers: dict[str, list[list[int]]]) -> int:
    """How many tokens of greedy answers were compared with the likeliest ones of a model; all must be the same."""
    count = 0
    for name, prompt in prompts(4).items():
        tokens = list(prompt)
        for token in answers[name][0]:
            margin, expected = margin_and_token(model, tokens)
            if margin < 5e-4:
                # A tie within rounding: from here on the two may go different ways.
                break
            assert token == expected
            count += 1
            tokens.append(token)
    return count


async def test_greedy_answers_equal_those_of_transformers(agent: AgentClient, publisher: Publisher, tmp_path: Path) -> None:
    """So the whole of the published weights is loaded: vLLM's own CPU worker keeps a tied output layer when it reloads."""
    manifest = publish(publisher, 0, tmp_path, seed=3)
    await agent.serve(manifest, LOAD_SECONDS)
    answers = await greedy(agent, manifest)
    model = AutoModelForCausalLM.from_pretrained(publisher.path(0), dtype=torch.float32)
    assert compared_tokens(model, answers) >= 16


async def test_log_probs_are_the_models_own_whatever_it_is_sampled_with(
    agent: AgentClient, publisher: Publisher, tmp_path: Path
) -> None:
    manifest = publish(publisher, 0, tmp_path, seed=5)
    await agent.serve(manifest, LOAD_SECONDS)
    sampling = {"n": 2, "temperature": 0.5, "topP": 0.9, "maxTokens": 8, "logprobs": True, "tokenLogprobs": True}
    status, lines = await agent.samples(manifest, prompts(4), **sampling)
    assert status == 200
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "seed5", dtype=torch.float32)
    samples = [(prompts(4)[line["id"]], sample) for line in lines[:-1] for sample in line["samples"]]
    assert len(samples) == 8
    with torch.no_grad():
        for prompt, sample in samples:
            want = plain_logprob(model, prompt, sample["tokens"]).item()
            assert want < -1, "an answer that is certain would say nothing"
            assert sample["logprob"] == pytest.approx(want, abs=1e-3 * len(sample["tokens"]))
            assert len(sample["tokenLogprobs"]) == len(sample["tokens"])
            assert sum(sample["tokenLogprobs"]) == pytest.approx(sample["logprob"], abs=1e-9)


async def test_the_end_token_is_part_of_a_sample(agent: AgentClient, publisher: Publisher, tmp_path: Path) -> None:
    manifest = publish(publisher, 0, tmp_path, seed=4, change=prefer_the_end)
    await agent.serve(manifest, LOAD_SECONDS)
    _, lines = await agent.samples(manifest, prompts(2), n=3, temperature=0.7, maxTokens=8)
    samples = [sample for line in lines[:-1] for sample in line["samples"]]
    ended = [sample for sample in samples if sample["finishReason"] == "stop"]
    assert len(samples) == 6
    assert ended
    for sample in ended:
        assert sample["tokens"][-1] == END
        assert END not in sample["tokens"][:-1]
        assert "<|im_end|>" not in sample["text"]


async def test_samples_differ_and_are_cut_at_max_tokens(agent: AgentClient, publisher: Publisher, tmp_path: Path) -> None:
    manifest = publish(publisher, 0, tmp_path, seed=5)
    await agent.serve(manifest, LOAD_SECONDS)
    _, lines = await agent.samples(manifest, prompts(2), n=4, temperature=1.0, maxTokens=6)
    for line in lines[:-1]:
        tokens = [tuple(sample["tokens"]) for sample in line["samples"]]
        assert len(set(tokens)) > 1
        assert all(len(sample["tokens"]) == 6 for sample in line["samples"] if sample["finishReason"] == "length")


async def test_prompts_that_the_model_cannot_take_fail_alone(agent: AgentClient, publisher: Publisher, tmp_path: Path) -> None:
    manifest = publish(publisher, 0, tmp_path, seed=5)
    await agent.serve(manifest, LOAD_SECONDS)
    requests = {"long": [5] * 125, "unknown": [512], "fits": [5] * 120}
    _, lines = await agent.samples(manifest, requests, n=1, maxTokens=8)
    events = {line["id"]: (line["event"], line.get("retryable")) for line in lines[:-1]}
    assert events == {"long": ("failed", False), "unknown": ("failed", False), "fits": ("group", None)}


async def test_a_version_is_staged_and_switched_to_while_samples_are_made(
    agent: AgentClient, publisher: Publisher, tmp_path: Path
) -> None:
    """No group mixes versions: greedy answers under load equal those of each version alone."""
    versions = [publish(publisher, version, tmp_path, seed=10 + version) for version in range(3)]
    alone = {}
    for manifest in versions:
        await agent.serve(manifest, LOAD_SECONDS)
        alone[manifest.version] = await greedy(agent, manifest, count=8)
    for one, other in ((0, 1), (1, 2), (2, 0)):
        assert all(alone[one][name] != alone[other][name] for name in alone[one])

    done, groups = asyncio.Event(), list[dict[str, Any]]()

    async def ask() -> None:
        while not done.is_set():
            for manifest in versions:
                _, lines = await agent.samples(manifest, prompts(8), n=1, temperature=0, maxTokens=8)
                groups.extend(line for line in lines if line.get("event") == "group")

    async with asyncio.TaskGroup() as group:
        askers = [group.create_task(ask()) for _ in range(3)]
        for manifest in (versions[0], versions[1], versions[2], versions[0]):
            before = len(groups)
            await agent.serve(manifest, LOAD_SECONDS)
            while len(groups) <= before + 8 and not all(asker.done() for asker in askers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        done.set()
    assert {line["version"] for line in groups} == {0, 1, 2}
    for line in groups:
        assert [sample["tokens"] for sample in line["samples"]] == alone[line["version"]][line["id"]]


async def test_vllm_killed_while_it_generates_comes_back_with_the_wanted_version(
    agent: AgentClient, vllm: VllmServer, publisher: Publisher, tmp_path: Path
) -> None:
    manifest = publish(publisher, 0, tmp_path, seed=20)
    await agent.serve(manifest, LOAD_SECONDS)
    before = await greedy(agent, manifest)
    call = asyncio.create_task(agent.samples(manifest, prompts(64), n=8, temperature=1.0, maxTokens=60))
    await until_in_flight(agent)
    vllm.kill()
    _, lines = await call
    assert lines[-1] == {"event": "end"}
    failed = [line for line in lines if line["event"] == "failed"]
    assert failed
    assert all(line["retryable"] for line in failed)
    state = await agent.until(lambda state: state["state"] == "waiting", 60)
    assert "serving" not in state
    await restart(vllm)
    await agent.until_serving(manifest, LOAD_SECONDS)
    assert await greedy(agent, manifest) == before


async def test_vllm_killed_in_a_switch_comes_back_with_the_wanted_version(
    agent: AgentClient, vllm: VllmServer, publisher: Publisher, tmp_path: Path
) -> None:
    old = publish(publisher, 0, tmp_path, seed=21)
    new = publish(publisher, 1, tmp_path, seed=22)
    await agent.serve(old, LOAD_SECONDS)
    of_old = await greedy(agent, old)
    await agent.want(new)
    await agent.until(lambda state: state["state"] == "switching", 60)
    vllm.kill()
    await agent.until(lambda state: state["state"] == "waiting", 60)
    await restart(vllm)
    await agent.until_serving(new, LOAD_SECONDS)
    of_new = await greedy(agent, new)
    assert all(of_new[name] != of_old[name] for name in of_new)
    assert (await agent.samples(old, prompts(1)))[0] == 409


async def test_vllms_own_metrics_come_through_the_agent(agent: AgentClient, publisher: Publisher, tmp_path: Path) -> None:
    weights = publish(publisher, 0, tmp_path, seed=31)
    await agent.serve(weights, LOAD_SECONDS)
    assert (await agent.samples(weights, prompts(1)))[0] == 200
    async with agent.client.get("/metrics") as response:
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    (tokens,) = (each.value for each in families["vllm:generation_tokens"].samples if each.name.endswith("_total"))
    assert tokens > 0
    assert "spinrun_rollout_tokens" in families


async def until_in_flight(agent: AgentClient) -> None:
    async with asyncio.timeout(60):
        while True:
            async with agent.client.get("/metrics") as response:
                lines = (await response.text()).splitlines()
            if any(float(line.split()[-1]) > 0 for line in lines if line.startswith("spinrun_rollout_requests_in_flight ")):
                return
            await asyncio.sleep(0.01)


async def restart(vllm: VllmServer) -> None:
    """What a kubelet does with a container that has ended."""
    vllm.start()
    await asyncio.to_thread(vllm.wait_until_up)
