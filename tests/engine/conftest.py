"""One real vLLM for the whole session: it takes most of a minute to start."""

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import aiohttp
import pytest

from support.engines import AgentProcess, VllmServer, running_vllm, tiny_run
from support.models import tiny_llama
from support.rollouts import AgentClient, Publisher


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "base", seed=0)


@pytest.fixture(scope="session")
def vllm(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[VllmServer]:
    with running_vllm(tiny_run(base_model), tmp_path_factory.mktemp("vllm") / "log") as server:
        yield server


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "ledger")


@pytest.fixture
def agent_process(vllm: VllmServer, base_model: Path, publisher: Publisher, tmp_path: Path) -> Generator[AgentProcess]:
    process = AgentProcess(tiny_run(base_model), ledger=publisher.writer.root, vllm=vllm.url, folder=tmp_path / "agent")
    process.start()
    try:
        process.wait_until_up(60)
        yield process
    finally:
        process.stop()


@pytest.fixture
async def agent(agent_process: AgentProcess) -> AsyncGenerator[AgentClient]:
    # A call for samples may take minutes on a busy machine.
    async with aiohttp.ClientSession(agent_process.url, timeout=aiohttp.ClientTimeout(total=300)) as session:
        yield AgentClient(session)
