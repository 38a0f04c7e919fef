import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from spinrun_api.status import RolloutStatus
from spinrun_protocol.wire import End, ErrorBody, SampleGroup, Sampling
from spinrun_worker.errors import Preempted, RunError
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling import agents as agents_module
from spinrun_worker.trainer.sampling.client import Collector
from unit.trainer.sampling.fake_agent import FakeEndpoints, Stream, answer_all, until, weights

WANTED = weights(7)


def prompts(count: int) -> list[PromptRecord]:
    return [PromptRecord(f"p{number}", (1, 2, number), f"question {number}") for number in range(count)]


async def generate(collector: Collector, wanted: Sequence[PromptRecord], *, n: int = 8, **options: Any) -> list[SampleGroup]:
    await collector.activate(WANTED)
    return await collector.generate(
        wanted, version=7, digest="digest-7", sampling=Sampling(n=n, temperature=0.7, max_tokens=16), **options
    )


def ids(groups: Sequence[SampleGroup]) -> list[str]:
    return [group.id for group in groups]


def names(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


async def hang(stream: Stream) -> None:
    await asyncio.sleep(60)


# Sharing out


async def test_many_prompts_are_shared_by_all_agents_and_come_back_in_order(start_agents, collect):
    agents = await start_agents(3)
    told: list[int] = []
    async with collect(*agents) as collector:
        await collector.activate(WANTED, minimum=3)
        groups = await generate(collector, prompts(500), on_progress=told.append)
    assert ids(groups) == names(500)
    assert all((group.version, group.digest, len(group.samples)) == (7, "digest-7", 8) for group in groups)
    assert min(len(agent.answered) for agent in agents) >= 50
    assert Counter(name for agent in agents for name in agent.answered) == Counter(names(500))
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 500)
    assert not collector.counts


async def test_few_prompts_are_shared_too(start_agents, collect):
    agents = await start_agents(3)
    async with collect(*agents) as collector:
        await collector.activate(WANTED, minimum=3)
        await generate(collector, prompts(9))
    assert [len(agent.answered) for agent in agents] == [3, 3, 3]


async def test_an_agents_batch_is_kept_full_by_few_calls(start_agents, collect):
    (agent,) = await start_agents(1)
    most_sequences = 0

    def sequences() -> int:
        return 8 * (sum(map(len, agent.asked)) - len(agent.answered))

    async def answer_only_when_full(stream: Stream) -> None:
        nonlocal most_sequences
        for prompt in stream.request.prompts:
            await until(lambda: sequences() >= 448 or sum(map(len, agent.asked)) == 400)
            most_sequences = max(most_sequences, sequences())
            await stream.group(prompt)
            await asyncio.sleep(0)
        await stream.line(End())

    agent.behaviour = answer_only_when_full
    async with collect(agent) as collector:
        await asyncio.wait_for(generate(collector, prompts(400)), 30)
    assert agent.most_calls <= 8
    assert 512 <= most_sequences <= 512 + 256


async def test_a_fast_agent_answers_more_than_a_slow_one(start_agents, collect):
    slow, fast = await start_agents(2)

    async def answer_slowly(stream: Stream) -> None:
        for prompt in stream.request.prompts:
            await asyncio.sleep(0.005)
            await stream.group(prompt)
        await stream.line(End())

    slow.behaviour = answer_slowly
    async with collect(slow, fast, sequences_in_flight=32, sequences_per_call=8) as collector:
        await collector.activate(WANTED, minimum=2)
        await generate(collector, prompts(200))
    assert 0 < len(slow.answered) < len(fast.answered)


async def test_nothing_to_ask_needs_no_agent(start_agents, collect):
    async with collect(*await start_agents(1)) as collector:
        assert await generate(collector, []) == []


async def test_groups_longer_than_a_read_buffer_arrive_whole(start_agents, collect):
    (agent,) = await start_agents(1)

    async def answer_at_length(stream: Stream) -> None:
        for prompt in stream.request.prompts:
            await stream.group(prompt, tokens=30_000)
        await stream.line(End())

    agent.behaviour = answer_at_length
    async with collect(agent) as collector:
        groups = await generate(collector, prompts(3))
    assert {len(sample.tokens) for group in groups for sample in group.samples} == {30_000}


async def test_prompts_with_the_same_id_are_refused(start_agents, collect):
    async with collect(*await start_agents(1)) as collector:
        with pytest.raises(ValueError, match="the same id"):
            await generate(collector, [*prompts(1), *prompts(1)])


async def test_only_the_activated_version_can_be_asked(start_agents, collect):
    async with collect(*await start_agents(1)) as collector:
        await collector.activate(WANTED)
        with pytest.raises(ValueError, match=r"version 7 \(other\) is not the one that was activated"):
            await collector.generate(prompts(1), version=7, digest="other", sampling=Sampling())


# Agents that fail


async def break_off_in_the_middle(stream: Stream) -> None:
    await stream.group(stream.request.prompts[0])
    await stream.raw(b'{"event": "group", "id": "p')
    stream.break_off()


async def end_without_an_end_line(stream: Stream) -> None:
    await stream.group(stream.request.prompts[0])


async def end_with_prompts_unanswered(stream: Stream) -> None:
    await stream.group(stream.request.prompts[0])
    await stream.line(End())


async def talk_nonsense(stream: Stream) -> None:
    await stream.group(stream.request.prompts[0])
    await stream.raw(b"<html>\n")


@pytest.mark.parametrize(
    "behaviour", [break_off_in_the_middle, end_without_an_end_line, end_with_prompts_unanswered, talk_nonsense]
)
async def test_prompts_of_an_agent_that_fails_go_to_others(start_agents, collect, behaviour):
    bad, good = await start_agents(2)
    bad.behaviour = behaviour
    async with collect(bad, good) as collector:
        await collector.activate(WANTED, minimum=2)
        groups = await generate(collector, prompts(40))
    assert ids(groups) == names(40)
    assert len(good.answered) > 20
    assert collector.counts["retried"] > 0


async def test_an_agent_that_dies_is_replaced_by_the_others(start_agents, collect):
    dying, good = await start_agents(2)

    async def die(stream: Stream) -> None:
        asyncio.get_running_loop().create_task(dying.stop())
        await asyncio.sleep(60)

    dying.behaviour = die
    async with collect(dying, good) as collector:
        await collector.activate(WANTED, minimum=2)
        groups = await generate(collector, prompts(40))
        assert ids(groups) == names(40)
        assert collector.rollouts() == RolloutStatus(ready=1, desired=2, version=7)


async def test_a_lone_agent_is_tried_again_after_a_cut(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.once = [break_off_in_the_middle, break_off_in_the_middle]
    async with collect(agent) as collector:
        groups = await generate(collector, prompts(20))
    assert ids(groups) == names(20)
    assert collector.counts["failed_calls"] == 2


async def test_an_agent_that_serves_another_version_is_told_again(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.refusals = [(409, ErrorBody(error="serving version 6", reason="StaleVersion", serving=6))]
    async with collect(agent) as collector:
        await collector.activate(WANTED)
        agent.forget()
        groups = await generate(collector, prompts(20))
    assert ids(groups) == names(20)
    assert agent.puts == 2
    assert collector.counts["retried"] == 0


async def test_a_busy_agent_gets_fewer_calls_and_no_blame(start_agents, collect):
    (agent,) = await start_agents(1)
    busy = ErrorBody(error="2 calls are in flight", reason="TooManyRequests")

    async def answer_two_at_a_time(stream: Stream) -> None:
        if agent.calls_now >= 2 and not agent.refusals:
            agent.refusals.append((429, busy))
        await asyncio.sleep(0.01)
        await answer_all(stream)

    agent.behaviour = answer_two_at_a_time
    async with collect(agent, sequences_in_flight=64, sequences_per_call=8) as collector:
        groups = await generate(collector, prompts(60))
    assert ids(groups) == names(60)
    assert collector.counts["retried"] == 0


async def test_a_draining_agent_costs_its_prompts_no_try(start_agents, collect):
    draining, good = await start_agents(2)
    draining.refusals = [(503, ErrorBody(error="this rollout is about to end", reason="Draining"))] * 1000
    async with collect(draining, good) as collector:
        await collector.activate(WANTED, minimum=2)
        groups = await generate(collector, prompts(40))
    assert ids(groups) == names(40)
    assert collector.counts["retried"] == 0


async def test_a_proxy_without_an_agent_behind_it_costs_prompts_no_try(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.refusals = [(502, ErrorBody.model_construct(nonsense="bad gateway"))] * 10
    async with collect(agent) as collector:
        assert ids(await generate(collector, prompts(5))) == names(5)
    assert collector.counts["retried"] == 0


async def test_prompts_of_an_agent_that_fell_silent_are_hedged_and_the_first_answer_counts(start_agents, collect, caplog):
    silent, good = await start_agents(2)
    silent.behaviour = hang
    async with collect(silent, good, stall_seconds=0.05) as collector:
        await collector.activate(WANTED, minimum=2)
        groups = await generate(collector, prompts(40))
    assert ids(groups) == names(40)
    assert {sample.text.split()[0] for group in groups for sample in group.samples} == {"agent-1"}
    assert collector.counts["hedged"] == sum(map(len, silent.asked))
    assert collector.counts["retried"] == 0
    assert "others get its" in caplog.text


async def test_the_late_answer_to_a_hedged_prompt_is_ignored(start_agents, collect):
    late, early = await start_agents(2)
    answered_late = asyncio.Event()

    async def answer_twice_and_late(stream: Stream) -> None:
        await until(lambda: bool(early.answered))
        for prompt in stream.request.prompts:
            await stream.group(prompt)
        answered_late.set()
        await asyncio.sleep(60)

    async def answer_the_first_at_once(stream: Stream) -> None:
        await stream.group(stream.request.prompts[0])
        await answered_late.wait()
        await answer_all(stream)

    late.behaviour, early.behaviour = answer_twice_and_late, answer_the_first_at_once
    async with collect(late, early, stall_seconds=0.05) as collector:
        await collector.activate(WANTED, minimum=2)
        groups = await generate(collector, prompts(8))
    assert ids(groups) == names(8)
    assert collector.counts["duplicates"] > 0


async def test_an_agent_that_no_longer_says_how_it_stands_loses_its_calls(start_agents, collect):
    lost, good = await start_agents(2)

    async def fall_silent(stream: Stream) -> None:
        lost.deaf = True
        await asyncio.sleep(60)

    lost.behaviour = fall_silent
    async with collect(lost, good, request_seconds=0.3, lost_seconds=0.3) as collector:
        await collector.activate(WANTED, minimum=2)
        groups = await generate(collector, prompts(40))
    assert ids(groups) == names(40)


async def test_a_prompt_that_failed_here_does_not_wait_for_an_agent_that_fell_silent(start_agents, collect):
    silent, good = await start_agents(2)
    silent.behaviour = hang
    good.once = [fail("vLLM does not answer", retryable=True)]
    async with collect(silent, good, stall_seconds=0.05, calls_in_flight=1) as collector:
        await collector.activate(WANTED, minimum=2)
        assert ids(await generate(collector, prompts(8))) == names(8)


async def test_an_endless_line_is_not_kept(start_agents, collect, monkeypatch):
    monkeypatch.setattr(agents_module, "MAX_LINE_BYTES", 100_000)
    (agent,) = await start_agents(1)

    async def never_end_a_line(stream: Stream) -> None:
        while True:
            await stream.raw(b"x" * 10_000)

    agent.once = [never_end_a_line]
    async with collect(agent) as collector:
        assert ids(await generate(collector, prompts(5))) == names(5)
    assert collector.counts["failed_calls"] == 1


async def test_an_agent_that_appears_later_gets_its_share(start_agents, collect):
    first, second = await start_agents(2)
    endpoints = FakeEndpoints(first)

    async def answer_once_there_are_two(stream: Stream) -> None:
        endpoints.agents = [first, second]
        await until(lambda: bool(second.answered))
        await answer_all(stream)

    first.behaviour = answer_once_there_are_two
    async with collect(endpoints=endpoints) as collector:
        groups = await generate(collector, prompts(200))
    assert ids(groups) == names(200)
    assert second.answered


async def test_an_agent_that_is_gone_is_forgotten(start_agents, collect):
    first, second = await start_agents(2)
    endpoints = FakeEndpoints(first, second)
    async with collect(endpoints=endpoints) as collector:
        await collector.activate(WANTED, minimum=2)
        endpoints.agents = [second]
        await until(lambda: collector.rollouts().desired == 1)
        assert collector.rollouts() == RolloutStatus(ready=1, desired=1, version=7)
        assert ids(await generate(collector, prompts(10))) == names(10)
        assert not first.answered


# Answers that may not reach a loss


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 6},
        {"digest": "digest-6"},
        {"num_samples": 7},
        {"num_samples": 9},
        {"id": "somebody-elses"},
        {"token_logprobs": (-1.0, -2.0)},
    ],
    ids=str,
)
async def test_an_answer_that_is_not_what_was_asked_for_is_refused_and_asked_for_again(start_agents, collect, changes):
    (agent,) = await start_agents(1)

    async def answer_wrongly(stream: Stream) -> None:
        for prompt in stream.request.prompts:
            await stream.group(prompt, tokens=1, **changes)
        await stream.line(End())

    agent.once = [answer_wrongly]
    async with collect(agent) as collector:
        groups = await generate(collector, prompts(5))
    assert ids(groups) == names(5)
    assert all((group.version, group.digest, len(group.samples)) == (7, "digest-7", 8) for group in groups)
    assert {len(sample.tokens) for group in groups for sample in group.samples} == {3}
    assert collector.counts["refused"] == 5


# Prompts that fail


def fail(reason: str, *, retryable: bool, only: str = "") -> Callable[[Stream], Any]:
    async def behaviour(stream: Stream) -> None:
        for prompt in stream.request.prompts:
            if only in ("", prompt.id):
                await stream.failed(prompt, reason, retryable=retryable)
            else:
                await stream.group(prompt)
        await stream.line(End())

    return behaviour


async def test_a_prompt_at_fault_is_left_out_and_named(start_agents, collect, caplog):
    agents = await start_agents(2)
    for agent in agents:
        agent.behaviour = fail("too long for the model", retryable=False, only="p3")
    async with collect(*agents) as collector:
        groups = await generate(collector, prompts(5))
    assert ids(groups) == ["p0", "p1", "p2", "p4"]
    assert collector.counts["dropped"] == 1
    assert "1 of 5 prompts cannot be answered; 1 of them, such as p3: too long for the model" in caplog.text


async def test_a_run_whose_prompts_are_all_at_fault_ends_with_the_reason(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.behaviour = fail("too long for the model", retryable=False)
    async with collect(agent) as collector:
        with pytest.raises(RunError, match=r"5 of 5 prompts cannot be answered; 5 of them, such as p\d: too long for the model"):
            await generate(collector, prompts(5))


async def test_a_prompt_that_fails_here_is_answered_there(start_agents, collect):
    bad, good = await start_agents(2)
    bad.behaviour = fail("vLLM does not answer", retryable=True)
    async with collect(bad, good) as collector:
        await collector.activate(WANTED, minimum=2)
        assert ids(await generate(collector, prompts(40))) == names(40)
    assert sorted(good.answered) == sorted(names(40))


async def test_a_prompt_that_fails_everywhere_ends_the_run_by_name(start_agents, collect):
    agents = await start_agents(2)
    for agent in agents:
        agent.behaviour = fail("vLLM crashed", retryable=True, only="p3")
    async with collect(*agents) as collector:
        await collector.activate(WANTED, minimum=2)
        with pytest.raises(RunError, match=r"prompt p3 failed 5 times on 2 agents; the last time on http://.*: vLLM crashed"):
            await generate(collector, prompts(5))


async def test_an_agent_whose_engine_is_down_for_a_while_costs_its_prompts_one_try(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.once = [fail("vLLM does not answer", retryable=True)] * 12
    async with collect(agent, outage_seconds=60.0) as collector:
        assert ids(await generate(collector, prompts(3))) == names(3)
    assert collector.counts["retried"] >= 12


# Nobody there


async def test_without_any_agent_it_waits_says_so_and_then_gives_up(start_agents, collect):
    (agent,) = await start_agents(1)
    told: list[str] = []
    async with collect(agent, on_wait=told.append, wait_seconds=0.3) as collector:
        await collector.activate(WANTED)
        await agent.stop()
        with pytest.raises(
            RunError, match=r"no agent answered for 0 s, with 0 of 5 prompts done: no rollout serves version 7: .*"
        ):
            await collector.generate(prompts(5), version=7, digest="digest-7", sampling=Sampling(n=2))
    assert any(agent.url in message and "Unreachable" in message for message in told)
    assert told[-1] == ""


async def test_it_continues_when_an_agent_comes_back(start_agents, collect):
    (agent,) = await start_agents(1)
    told: list[str] = []
    async with collect(agent, on_wait=told.append) as collector:
        await collector.activate(WANTED)
        await agent.stop()
        agent.forget()
        work = asyncio.create_task(generate(collector, prompts(5)))
        await until(lambda: bool(collector.status_message))
        await agent.start()
        assert ids(await work) == names(5)
        assert collector.status_message == ""


# Activation


async def test_a_version_is_brought_to_every_agent_even_those_that_come_later(start_agents, collect):
    first, second, third = await start_agents(3)
    endpoints = FakeEndpoints(first, second)
    async with collect(endpoints=endpoints) as collector:
        assert await collector.activate(WANTED, minimum=2) == {first.url, second.url}
        endpoints.agents.append(third)
        await until(lambda: third.serving is not None)
    assert third.serving == WANTED


async def test_the_same_number_with_another_digest_is_another_version(start_agents, collect):
    (agent,) = await start_agents(1)
    async with collect(agent) as collector:
        await collector.activate(weights(7, "old"))
        assert await collector.activate(weights(7, "new")) == {agent.url}
    assert agent.serving == weights(7, "new")


async def test_a_rollout_that_cannot_serve_is_named_once_and_holds_up_nobody(start_agents, collect, caplog):
    bad, good = await start_agents(2)
    bad.cannot_serve = "model-00001.safetensors differs from its manifest"
    with caplog.at_level(logging.INFO):
        async with collect(bad, good) as collector:
            assert await collector.activate(WANTED) == {good.url}
            await until(lambda: "failed: " in caplog.text)
            await asyncio.sleep(0.1)
            assert collector.rollouts() == RolloutStatus(ready=1, desired=2, version=7)
    lines = [record.getMessage() for record in caplog.records if "failed: " in record.getMessage()]
    assert lines == [f"rollout {bad.url}: failed: model-00001.safetensors differs from its manifest"]


async def test_an_activation_that_takes_too_long_names_every_agent_and_its_reason(start_agents, collect):
    failed, dead = await start_agents(2)
    failed.cannot_serve = "no such directory"
    await dead.stop()
    told: list[str] = []
    async with collect(failed, dead, on_wait=told.append, activation_seconds=0.2) as collector:
        with pytest.raises(RunError) as caught:
            await collector.activate(WANTED)
    message = str(caught.value)
    assert message.startswith("after 0 s no rollout serves version 7: ")
    assert f"{failed.url}: failed: no such directory" in message
    assert f"{dead.url}: Unreachable: " in message
    assert any("no such directory" in words for words in told)


async def test_an_activation_without_any_agent_says_where_it_looked(collect):
    async with collect(activation_seconds=0.1) as collector:
        with pytest.raises(RunError, match="there is none at the test's endpoints"):
            await collector.activate(WANTED)


# Token


async def test_a_wrong_token_ends_the_run_at_once_and_names_the_file(start_agents, collect, monkeypatch):
    monkeypatch.setenv("SPINRUN_TOKEN_FILE", "/run/secrets/token")
    (agent,) = await start_agents(1)
    agent.token = "another"
    started = time.monotonic()
    async with collect(agent) as collector:
        with pytest.raises(
            RunError, match=rf"{agent.url} does not accept the token of SPINRUN_TOKEN_FILE \(/run/secrets/token\)"
        ):
            await collector.activate(WANTED)
    assert time.monotonic() - started < 2


async def test_an_agent_of_another_run_at_an_old_address_ends_nothing(start_agents, collect):
    ours, foreign = await start_agents(2)
    endpoints = FakeEndpoints(ours)
    async with collect(endpoints=endpoints) as collector:
        await collector.activate(WANTED)
        foreign.token = "another"
        endpoints.agents.append(foreign)
        await until(lambda: collector.rollouts().desired == 2)
        assert ids(await generate(collector, prompts(20))) == names(20)


# Stopping


async def test_a_stop_ends_a_generation_within_a_second_and_its_calls_with_it(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.behaviour = hang
    stopped = False
    async with collect(agent) as collector:
        work = asyncio.create_task(generate(collector, prompts(20), stop=lambda: stopped))
        await until(lambda: agent.calls_now > 0)
        stopped, since = True, time.monotonic()
        with pytest.raises(Preempted):
            await work
        assert time.monotonic() - since < 1
        await until(lambda: agent.calls_now == 0)
    assert agent.cancelled_calls == len(agent.asked)


async def test_a_stop_ends_an_activation(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.cannot_serve = "not yet"
    async with collect(agent) as collector:
        with pytest.raises(Preempted):
            await collector.activate(WANTED, stop=lambda: True)


async def test_a_generation_after_a_stopped_one_is_none_the_worse(start_agents, collect):
    (agent,) = await start_agents(1)
    agent.once = [hang] * 8
    async with collect(agent) as collector:
        with pytest.raises(Preempted):
            await generate(collector, prompts(100), stop=lambda: bool(agent.calls_now))
        agent.once = []
        assert ids(await generate(collector, prompts(100))) == names(100)


async def test_a_fault_of_our_own_in_the_background_is_not_waited_for(collect):
    class BrokenEndpoints(FakeEndpoints):
        async def urls(self) -> set[str]:
            raise ZeroDivisionError

    async with collect(endpoints=BrokenEndpoints()) as collector:
        with pytest.raises(ZeroDivisionError):
            await collector.activate(WANTED)
