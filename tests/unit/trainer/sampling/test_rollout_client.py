import asyncio
import threading

import pytest

from spinrun_protocol.wire import Sampling
from spinrun_worker.errors import ConfigurationError, Preempted
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.sampling.limits import SamplingLimits
from unit.trainer.sampling.fake_agent import FAST, TOKEN, FakeAgent, Stream, weights

PROMPTS = [PromptRecord(f"p{number}", (1, 2, number), "question") for number in range(50)]


def client_of(*agents: FakeAgent) -> RolloutClient:
    return RolloutClient(",".join(agent.url for agent in agents), TOKEN, limits=SamplingLimits(**FAST))


async def test_a_synchronous_trainer_gets_its_samples(start_agents):
    agents = await start_agents(2)

    def train() -> list[str]:
        with client_of(*agents) as client:
            assert client.activate(weights(3), minimum=2) == {agent.url for agent in agents}
            assert client.rollouts().ready == 2
            done: list[int] = []
            groups = client.start(
                PROMPTS, version=3, digest="digest-3", sampling=Sampling(n=2), on_progress=done.append, stop=lambda: False
            ).result()
            assert done[-1] == 50
            assert client.status_message == ""
            return [group.id for group in groups]

    assert await asyncio.to_thread(train) == [prompt.id for prompt in PROMPTS]
    assert not [thread for thread in threading.enumerate() if thread.name == "collector"]


async def test_a_stop_reaches_the_other_thread(start_agents):
    (agent,) = await start_agents(1)

    async def hang(stream: Stream) -> None:
        await asyncio.sleep(60)

    agent.behaviour = hang

    def train() -> None:
        with client_of(agent) as client:
            client.activate(weights(3))
            client.start(PROMPTS, version=3, digest="digest-3", sampling=Sampling(n=2), stop=lambda: agent.calls_now > 0).result()

    with pytest.raises(Preempted):
        await asyncio.to_thread(train)


async def test_closing_twice_is_not_an_error(start_agents):
    agents = await start_agents(1)
    client = await asyncio.to_thread(client_of, *agents)
    await asyncio.to_thread(client.close)
    await asyncio.to_thread(client.close)


def test_rollouts_that_are_not_addresses_are_refused_before_anything_starts():
    with pytest.raises(ConfigurationError, match="SPINRUN_ROLLOUTS"):
        RolloutClient("", TOKEN)
    assert not [thread for thread in threading.enumerate() if thread.name == "collector"]
