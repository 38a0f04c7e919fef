from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from spinrun_worker.trainer.sampling.client import Collector
from spinrun_worker.trainer.sampling.limits import SamplingLimits
from unit.trainer.sampling.fake_agent import FAST, TOKEN, FakeAgent, FakeEndpoints


@pytest.fixture
async def start_agents() -> AsyncIterator[Callable[[int], Awaitable[list[FakeAgent]]]]:
    """Starts so many fake agents."""
    async with AsyncExitStack() as stack:

        async def start(count: int) -> list[FakeAgent]:
            agents = [FakeAgent(f"agent-{number}") for number in range(count)]
            for agent in agents:
                await agent.start()
                stack.push_async_callback(agent.stop)
            return agents

        yield start


@pytest.fixture
def collect() -> Callable[..., Any]:
    """A collector of some agents: `async with collect(*agents, stall_seconds=1)`; options that are not limits go to Collector."""

    @asynccontextmanager
    async def make(
        *agents: FakeAgent, endpoints: Any = None, on_wait: Any = None, **limits: Any
    ) -> AsyncGenerator[Collector, None]:
        options = {"on_wait": on_wait} if on_wait else {}
        known: Any = endpoints or FakeEndpoints(*agents)
        async with Collector(known, TOKEN, limits=SamplingLimits(**{**FAST, **limits}), **options) as collector:
            yield collector

    return make
