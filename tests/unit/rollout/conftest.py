"""An agent in this process, and a vLLM that can be told to fail."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from spinrun_worker.bearer import Bearer
from spinrun_worker.ledger.ledger import Ledger
from spinrun_worker.rollout.activation import Activator
from spinrun_worker.rollout.app import RolloutApp, ServingLimits
from spinrun_worker.rollout.gate import Gate
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.rollout.sampling import Sampler
from spinrun_worker.serving import Guard, HttpLimits
from spinrun_worker.vllm.engine import Engine
from support.fake_vllm import FakeVllm
from support.rollouts import TOKEN, UID, AgentUnderTest, Publisher

StartAgent = Callable[..., Awaitable[AgentUnderTest]]


@pytest.fixture
async def vllm() -> AsyncGenerator[FakeVllm]:
    fake = FakeVllm()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "ledger")


@pytest.fixture
async def start_agent(vllm: FakeVllm, publisher: Publisher, tmp_path: Path) -> AsyncGenerator[StartAgent]:
    """Starts agents that look at the fake vLLM; each start is a new life with the same scratch space."""
    async with AsyncExitStack() as stack:

        async def start(*, max_sequences: int = 512, http: HttpLimits | None = None, **limits: int) -> AgentUnderTest:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            engine, gate, metrics = Engine(vllm.url, session), Gate(), RolloutMetrics()
            ledger = Ledger(publisher.writer.root, UID)
            activation = Activator(ledger, tmp_path / "scratch", engine, gate, metrics, poll_seconds=0.02)
            sampler = Sampler(engine, gate, metrics, max_sequences=max_sequences, engine_failed=activation.wake)
            refused = metrics.refused
            guard = Guard(Bearer(TOKEN), http or HttpLimits(), on_refusal=lambda reason: refused.labels(reason).inc())
            agent = RolloutApp(activation, gate, sampler, metrics, engine, guard=guard, limits=ServingLimits(**limits))
            server = TestServer(agent.application())
            client = await stack.enter_async_context(TestClient(server))
            loop = asyncio.create_task(activation.run())
            stack.callback(loop.cancel)
            return AgentUnderTest(client, agent, loop)

        yield start


@pytest.fixture
async def agent(start_agent: StartAgent) -> AgentUnderTest:
    return await start_agent()
