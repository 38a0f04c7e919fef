"""Samples: what vLLM returns is taken whole and right, or not at all."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from spinrun_protocol.wire import Prompt, Sample, Sampling
from spinrun_worker.rollout.gate import Served
from spinrun_worker.rollout.sampling import InvalidOutputError, PromptError, Slots, check_prompt, samples_of
from spinrun_worker.rollout.staging import Weights
from spinrun_worker.vllm.engine import Completion
from support.rollouts import Publisher

PROMPT = Prompt(id="p", tokens=(5, 6))
SAMPLING = Sampling(n=2, max_tokens=3)
VOCABULARY = 100


def choice(**changed: Any) -> dict[str, Any]:
    return {"text": "four", "finish_reason": "stop", "token_ids": [7, 2], "prompt_token_ids": [5, 6]} | changed


def completion(*choices: dict[str, Any]) -> Completion:
    return Completion.model_validate({"choices": list(choices)})


def test_samples_keep_order_end_token_and_reason() -> None:
    found = samples_of(
        completion(choice(), choice(text="", token_ids=[2]), choice(token_ids=[7, 7, 7], finish_reason="length")),
        PROMPT,
        Sampling(n=3, max_tokens=3),
        VOCABULARY,
    )
    assert found == (
        Sample(tokens=(7, 2), text="four", finish_reason="stop"),
        Sample(tokens=(2,), text="", finish_reason="stop"),
        Sample(tokens=(7, 7, 7), text="four", finish_reason="length"),
    )


def test_the_log_prob_of_a_sample_is_the_sum_of_its_tokens_where_it_is_asked_for() -> None:
    answered = completion(choice(logprobs={"token_logprobs": [-0.25, -1.5]}))
    sampling = Sampling(n=1, max_tokens=3)
    assert [sample.logprob for sample in samples_of(answered, PROMPT, sampling, VOCABULARY)] == [None]
    asked = sampling.model_copy(update={"logprobs": True})
    assert [sample.logprob for sample in samples_of(answered, PROMPT, asked, VOCABULARY)] == [-1.75]
    (by_token,) = samples_of(answered, PROMPT, sampling.model_copy(update={"token_logprobs": True}), VOCABULARY)
    assert (by_token.logprob, by_token.token_logprobs) == (None, (-0.25, -1.5))


@pytest.mark.parametrize(
    "logprobs",
    [None, {"token_logprobs": [-0.25]}, {"token_logprobs": [-0.25, None]}, {"token_logprobs": [-0.25, float("-inf")]}],
    ids=["none", "one too few", "one that is missing", "one that is not finite"],
)
def test_a_sample_without_the_log_probs_that_were_asked_for_is_refused(logprobs: dict[str, Any] | None) -> None:
    with pytest.raises(InvalidOutputError, match="log-probs"):
        samples_of(completion(choice(logprobs=logprobs)), PROMPT, Sampling(max_tokens=3, logprobs=True), VOCABULARY)
    with pytest.raises(InvalidOutputError, match="log-probs"):
        samples_of(completion(choice(logprobs=logprobs)), PROMPT, Sampling(max_tokens=3, token_logprobs=True), VOCABULARY)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        pytest.param([], "0 samples instead of 2", id="none"),
        pytest.param([choice()], "1 samples instead of 2", id="one too few"),
        pytest.param([choice()] * 3, "3 samples instead of 2", id="one too many"),
        pytest.param([choice(), choice(token_ids=None)], "no token ids", id="no tokens"),
        pytest.param([choice(), choice(token_ids=[])], "no token ids", id="empty"),
        pytest.param([choice(), choice(token_ids=[1] * 4)], "more than maxTokens 3", id="too long"),
        pytest.param([choice(), choice(token_ids=[100])], "has token 100", id="beyond the vocabulary"),
        pytest.param([choice(), choice(token_ids=[-1])], "has token -1", id="negative"),
        pytest.param([choice(), choice(finish_reason="abort")], "'abort'", id="aborted"),
        pytest.param([choice(), choice(finish_reason=None)], "None", id="unfinished"),
        pytest.param([choice(), choice(prompt_token_ids=[5, 7])], "other prompt tokens", id="another prompt"),
        pytest.param([choice(), choice(prompt_token_ids=None)], "other prompt tokens", id="no prompt"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(choices: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidOutputError, match=message):
        samples_of(completion(*choices), PROMPT, SAMPLING, VOCABULARY)


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "message"),
    [
        pytest.param((1,) * 61, 3, None, id="fits exactly"),
        pytest.param((1,) * 62, 3, "62 tokens, which with maxTokens 3 make 65: vLLM accepts 64", id="too long"),
        pytest.param((0, 99), 3, None, id="whole vocabulary"),
        pytest.param((0, 100), 3, "token 100", id="beyond the vocabulary"),
        pytest.param((-1,), 3, "token -1", id="negative"),
    ],
)
def test_a_prompt_that_no_rollout_can_answer_is_named(
    publisher: Publisher, tokens: tuple[int, ...], max_tokens: int, message: str | None
) -> None:
    served = Served(Weights(publisher.publish(0), Path("/scratch"), {}, VOCABULARY), max_model_len=64)
    prompt, sampling = Prompt(id="p", tokens=tokens), Sampling(max_tokens=max_tokens)
    if message is None:
        check_prompt(prompt, sampling, served)
    else:
        with pytest.raises(PromptError, match=message):
            check_prompt(prompt, sampling, served)


async def test_slots_are_bounded_and_served_in_order() -> None:
    slots, order = Slots(4), list[str]()
    release = asyncio.Event()

    async def hold(name: str, count: int) -> None:
        async with slots.take(count):
            order.append(name)
            await release.wait()

    async with asyncio.TaskGroup() as group:
        # `small` would fit beside `first`, but `large` came before it.
        for name, count in (("first", 3), ("large", 9), ("small", 1)):
            group.create_task(hold(name, count))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["first"]
        release.set()
    assert order == ["first", "large", "small"]


async def test_a_cancelled_taker_gives_back_what_it_had() -> None:
    slots = Slots(4)
    async with slots.take(2):
        waiting = asyncio.create_task(_take(slots, 4))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(_take(slots, 4), 1)


async def _take(slots: Slots, count: int) -> None:
    async with slots.take(count):
        pass
