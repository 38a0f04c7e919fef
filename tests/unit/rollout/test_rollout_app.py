"""The agent's HTTP interface, in front of a vLLM that can be told to fail."""

import asyncio
import json
from typing import Any

import pytest

from spinrun_worker.serving import HttpLimits
from support.fake_vllm import Body, FakeVllm, completion_of
from support.rollouts import AUTHORIZED, AgentUnderTest, Publisher

PROMPTS = {"a": [5, 6], "b": [7]}


async def error_of(response: Any) -> tuple[int, str]:
    return response.status, (await response.json())["reason"]


async def test_samples_are_streamed_with_their_version(agent: AgentUnderTest, publisher: Publisher) -> None:
    manifest = publisher.publish(3)
    await agent.serve(manifest)
    status, lines = await agent.samples(manifest, PROMPTS)
    assert status == 200
    assert lines[-1] == {"event": "end"}
    groups = sorted(lines[:-1], key=lambda line: line["id"])
    assert [(group["event"], group["id"], group["version"], group["digest"]) for group in groups] == [
        ("group", "a", 3, manifest.digest),
        ("group", "b", 3, manifest.digest),
    ]
    assert groups[1]["samples"] == [{"tokens": [7, 7, 7], "text": "text", "finishReason": "length"}] * 2


async def test_vllm_is_asked_for_the_bare_distribution(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    await agent.samples(manifest, {"a": [5, 6]}, n=4, temperature=0.7, topP=0.9, maxTokens=8)
    assert vllm.completions == [
        {
            "model": "policy",
            "prompt": [5, 6],
            "n": 4,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 8,
            "return_token_ids": True,
            "skip_special_tokens": True,
        }
    ]


@pytest.mark.parametrize("authorization", [None, "", "Bearer ", "Bearer wrong", "secret", "Bearer s\u00e9cret", "Bearer \udcff"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/version"), ("PUT", "/v1/version"), ("POST", "/v1/samples")])
async def test_the_token_is_required(agent: AgentUnderTest, method: str, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with agent.client.request(method, path, headers=headers, data=b"{}") as response:
        assert await error_of(response) == (401, "Unauthorized")


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/readyz", 503), ("/metrics", 200)])
async def test_kubernetes_and_prometheus_need_no_token(agent: AgentUnderTest, path: str, status: int) -> None:
    async with agent.client.get(path) as response:
        assert response.status == status


async def test_ready_means_that_the_wanted_version_is_served(agent: AgentUnderTest, publisher: Publisher) -> None:
    await agent.serve(publisher.publish(0))
    async with agent.client.get("/readyz") as response:
        assert (response.status, await response.text()) == (200, "serving version 0\n")


async def test_a_version_that_is_not_served_is_refused(agent: AgentUnderTest, publisher: Publisher) -> None:
    served, other = publisher.publish(3), publisher.publish(4)
    for request in (agent.request(served, PROMPTS), agent.request(other, PROMPTS)):
        async with agent.client.post("/v1/samples", json=request, headers=AUTHORIZED) as response:
            assert response.status == 409
            assert "serving" not in await response.json()
    await agent.serve(served)
    for change in ({"version": 4, "digest": other.digest}, {"version": 3, "digest": other.digest}, {"version": 2}):
        request = agent.request(served, PROMPTS) | change
        async with agent.client.post("/v1/samples", json=request, headers=AUTHORIZED) as response:
            body = await response.json()
            assert (response.status, body["reason"], body["serving"]) == (409, "StaleVersion", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"prompts": []}, "prompts", id="no prompts"),
        pytest.param({"prompts": [{"id": "a", "tokens": []}]}, "prompts.0.tokens", id="empty prompt"),
        pytest.param({"prompts": [{"id": "a", "tokens": ["x"]}]}, "prompts.0.tokens.0", id="no number"),
        pytest.param({"prompts": [{"id": "a", "tokens": [1]}] * 2}, "same id", id="one id twice"),
        pytest.param({"prompts": [{"id": str(i), "tokens": [1]} for i in range(5)]}, "at most 4", id="too many prompts"),
        pytest.param({"sampling": {"temperature": -1}}, "temperature", id="temperature below zero"),
        pytest.param({"sampling": {"n": 0}}, "sampling.n", id="no samples"),
        pytest.param({"version": None}, "version", id="no version"),
    ],
)
async def test_a_malformed_request_is_refused_with_what_is_wrong(
    start_agent: Any, publisher: Publisher, change: dict[str, Any], message: str
) -> None:
    agent, manifest = await start_agent(max_prompts=4), publisher.publish(0)
    request = agent.request(manifest, PROMPTS) | change
    async with agent.client.post("/v1/samples", json=request, headers=AUTHORIZED) as response:
        assert await error_of(response) == (400, "Invalid")
        assert message in (await response.json())["error"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.7", "NaN", "temperature"),
        ("0.7", "Infinity", "temperature"),
        ("0.7", "1e999", "temperature"),
        ("0.7", "[" * 5000, "recursion"),
        ('"maxTokens": 3', '"maxTokens": 1' + "0" * 4000, "maxTokens"),
        ('"maxTokens": 3', '"maxTokens": ' + "9" * 5000, ""),
        ('"maxTokens": 3', '"maxTokens": 3.5', "maxTokens"),
        ('"maxTokens": 3', '"maxTokens": -3', "maxTokens"),
        ('"n": 2', '"n": 1' + "0" * 4000, "sampling.n"),
        ('"n": 2', '"n": "two"', "sampling.n"),
        ('"version": 0', '"version": -1' + "0" * 400, "version"),
        ('"id": "a"', '"id": {"a": 1}', "prompts.0.id"),
        ('"id": "a"', '"id": "\\ud83d"', ""),
        ("[5, 6]", "[1e400]", "prompts.0.tokens.0"),
        ("[5, 6]", "5", "prompts.0.tokens"),
    ],
    ids=lambda value: value[:20],
)
async def test_what_json_numbers_and_texts_can_be_is_refused_in_words(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, old: str, new: str, message: str
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    text = json.dumps(agent.request(manifest, PROMPTS))
    assert old in text
    async with agent.client.post("/v1/samples", data=text.replace(old, new, 1), headers=AUTHORIZED) as response:
        assert await error_of(response) == (400, "Invalid")
        assert message in (await response.json())["error"]
    assert vllm.completions == []


async def test_token_that_no_model_has_fails_its_prompt_alone(agent: AgentUnderTest, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    _, lines = await agent.samples(manifest, {"huge": [10**4000], "below": [-1], "sound": [5]})
    assert {line.get("id"): line["event"] for line in lines} == {
        "huge": "failed",
        "below": "failed",
        "sound": "group",
        None: "end",
    }


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": 0'])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/version"), ("POST", "/v1/samples")])
async def test_a_body_that_is_no_document_is_refused(agent: AgentUnderTest, method: str, path: str, data: bytes) -> None:
    async with agent.client.request(method, path, headers=AUTHORIZED, data=data) as response:
        assert await error_of(response) == (400, "Invalid")


async def test_a_body_that_is_too_large_is_refused(start_agent: Any) -> None:
    agent = await start_agent(http=HttpLimits(max_body_bytes=1000))
    async with agent.client.post("/v1/samples", data=b" " * 1001, headers=AUTHORIZED) as response:
        assert await error_of(response) == (413, "TooLarge")


async def test_unknown_paths_and_methods_are_refused_as_documents(agent: AgentUnderTest) -> None:
    async with agent.client.get("/v2", headers=AUTHORIZED) as response:
        assert await error_of(response) == (404, "NotFound")
    async with agent.client.delete("/v1/version", headers=AUTHORIZED) as response:
        assert await error_of(response) == (405, "MethodNotAllowed")


async def test_more_calls_than_allowed_are_refused(start_agent: Any, vllm: FakeVllm, publisher: Publisher) -> None:
    agent, manifest = await start_agent(max_calls=1), publisher.publish(0)
    await agent.serve(manifest)
    vllm.may_answer.clear()
    first = asyncio.create_task(agent.samples(manifest, PROMPTS))
    await vllm.until_under_way(2)
    async with agent.client.post("/v1/samples", json=agent.request(manifest, PROMPTS), headers=AUTHORIZED) as response:
        assert await error_of(response) == (429, "TooManyRequests")
    vllm.may_answer.set()
    assert (await first)[0] == 200
    assert (await agent.samples(manifest, PROMPTS))[0] == 200


async def test_prompts_with_vllm_at_once_are_bounded(start_agent: Any, vllm: FakeVllm, publisher: Publisher) -> None:
    agent, manifest = await start_agent(max_sequences=8), publisher.publish(0)
    await agent.serve(manifest)
    vllm.may_answer.clear()
    call = asyncio.create_task(agent.samples(manifest, {str(i): [i] for i in range(20)}, n=4))
    await vllm.until_under_way(2)
    vllm.may_answer.set()
    status, lines = await call
    assert (status, len(lines)) == (200, 21)
    assert vllm.most_under_way == 2
    _, lines = await agent.samples(manifest, PROMPTS, n=100)
    assert [line["event"] for line in lines] == ["group", "group", "end"]


async def test_a_prompt_that_is_too_long_fails_alone_and_for_good(agent: AgentUnderTest, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    _, lines = await agent.samples(manifest, {"long": [1] * 62, "short": [1]})
    by_id = {line.get("id"): line for line in lines}
    assert by_id["short"]["event"] == "group"
    assert (by_id["long"]["event"], by_id["long"]["retryable"]) == ("failed", False)
    assert "65" in by_id["long"]["reason"]


async def test_a_wrong_answer_fails_its_prompt_only(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)

    def answer(request: Body) -> Body:
        body = completion_of(request)
        if request["prompt"] == [7]:
            body["choices"].append(body["choices"][0])
        return body

    vllm.answer = answer
    _, lines = await agent.samples(manifest, PROMPTS)
    by_id = {line.get("id"): line for line in lines}
    assert by_id["a"]["event"] == "group"
    assert by_id["b"] == {"event": "failed", "id": "b", "reason": "3 samples instead of 2", "retryable": True}


@pytest.mark.parametrize("body", [{}, {"choices": None}, {"choices": [{}]}, {"choices": [{"text": 5}]}, [], "text"])
async def test_an_answer_that_is_no_completion_fails_its_prompt(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, body: Any
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.answer = lambda _: body
    _, lines = await agent.samples(manifest, {"a": [5]})
    assert [line["event"] for line in lines] == ["failed", "end"]
    assert "is not valid" in lines[0]["reason"]


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (404, True), (500, True), (503, True)])
async def test_what_vllm_refuses_for_good_is_not_tried_again(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher, status: int, retryable: bool
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.fails_at["/v1/completions"] = status
    _, lines = await agent.samples(manifest, {"a": [5]})
    assert (lines[0]["event"], lines[0]["retryable"]) == ("failed", retryable)
    assert "told to fail" in lines[0]["reason"]


async def test_a_client_that_goes_away_takes_its_requests_along(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.may_answer.clear()
    call = asyncio.create_task(agent.samples(manifest, PROMPTS))
    await vllm.until_under_way(2)
    call.cancel()
    await vllm.until_under_way(0)
    await agent.serve(publisher.publish(1))


async def test_draining_ends_calls_under_way_and_takes_no_others(
    agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher
) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.may_answer.clear()
    call = asyncio.create_task(agent.samples(manifest, PROMPTS))
    await vllm.until_under_way(2)
    drained = asyncio.create_task(agent.agent.drain(10))
    await asyncio.sleep(0)
    async with agent.client.get("/readyz") as response:
        assert response.status == 503
    async with agent.client.post("/v1/samples", json=agent.request(manifest, PROMPTS), headers=AUTHORIZED) as response:
        assert await error_of(response) == (503, "Draining")
    assert not drained.done()
    vllm.may_answer.set()
    assert (await call)[1][-1] == {"event": "end"}
    await asyncio.wait_for(drained, 1)


async def test_draining_does_not_wait_for_ever(agent: AgentUnderTest, vllm: FakeVllm, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    await agent.serve(manifest)
    vllm.may_answer.clear()
    call = asyncio.create_task(agent.samples(manifest, PROMPTS))
    await vllm.until_under_way(2)
    await asyncio.wait_for(agent.agent.drain(0.01), 1)
    vllm.may_answer.set()
    await call


async def test_metrics_say_what_happened(agent: AgentUnderTest, publisher: Publisher) -> None:
    manifest = publisher.publish(3)
    await agent.serve(manifest)
    await agent.samples(manifest, PROMPTS)
    await agent.client.get("/v1/version")
    async with agent.client.get("/metrics") as response:
        text = await response.text()
    for line in (
        'spinrun_rollout_samples_total{finish_reason="length"} 4.0',
        "spinrun_rollout_tokens_total 12.0",
        "spinrun_rollout_requests_in_flight 0.0",
        "spinrun_rollout_version 3.0",
        f'spinrun_rollout_version_info{{digest="{manifest.digest}",version="3"}} 1.0',
        'spinrun_rollout_refused_total{reason="Unauthorized"} 1.0',
        "spinrun_rollout_staging_seconds_count 1.0",
        "spinrun_rollout_switch_seconds_count 1.0",
        "spinrun_rollout_pause_seconds_count 1.0",
        f"spinrun_rollout_staged_bytes_total {float(sum(entry.size for entry in manifest.files))}",
        "spinrun_rollout_staging_failures_total 0.0",
    ):
        assert line in text.splitlines(), line


async def test_vllms_own_metrics_are_passed_on_while_it_answers(agent: AgentUnderTest, vllm: FakeVllm) -> None:
    async with agent.client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    assert {"# TYPE vllm:num_requests_running gauge", 'vllm:num_requests_running{engine="0"} 2.0'} <= set(lines)
    assert not [line for line in lines if "cpu_seconds_total 99" in line], "the agent has a process of its own"
    await vllm.die()
    async with agent.client.get("/metrics") as response:
        assert response.status == 200
        assert "vllm:" not in await response.text()


async def test_put_is_refused_for_what_is_not_this_runs_weights(agent: AgentUnderTest, publisher: Publisher) -> None:
    manifest = publisher.publish(3)
    document = manifest.to_document()
    foreign = [
        ({"version": 4, "manifest": document}, "version 4"),
        ({"version": 3, "manifest": document | {"uid": "other"}}, "run other"),
        ({"version": 3, "manifest": document | {"kind": "window"}}, "window"),
        ({"version": 3, "manifest": document | {"digest": "0" * 32}}, "digest"),
        ({"version": 3, "manifest": document | {"files": document["files"][:1]}}, "digest"),
        ({"version": 3, "manifest": document | {"files": [document["files"][0] | {"path": "../x"}]}}, "path"),
    ]
    for body, message in foreign:
        async with agent.client.put("/v1/version", json=body, headers=AUTHORIZED) as response:
            assert await error_of(response) == (400, "Invalid"), json.dumps(body)
            assert message in (await response.json())["error"]
    assert (await agent.state())["state"] == "waiting"
