"""The agent as a process: what it needs to start, and how it ends."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from spinrun_protocol.environment import TOKEN_FILE
from support.engines import AgentProcess, tiny_run
from support.fake_vllm import FakeVllm
from support.ports import free_port
from support.rollouts import AgentClient, Publisher


@pytest.fixture
async def process(vllm: FakeVllm, publisher: Publisher, tmp_path: Path) -> AsyncGenerator[AgentProcess]:
    run = tiny_run(tmp_path / "model")
    process = AgentProcess(run, ledger=publisher.writer.root, vllm=vllm.url, folder=tmp_path / "agent")
    process.start()
    await asyncio.to_thread(process.wait_until_up, 60)
    yield process
    process.stop()


async def test_sigterm_lets_calls_end_and_exits_with_zero(process: AgentProcess, vllm: FakeVllm, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    async with aiohttp.ClientSession(process.url) as session:
        client = AgentClient(session)
        await client.serve(manifest)
        vllm.may_answer.clear()
        call = asyncio.create_task(client.samples(manifest, {"a": [1]}))
        await vllm.until_under_way(1)
        process.terminate()
        async with asyncio.timeout(10):
            while await ready(session):  # noqa: ASYNC110 - the state is behind HTTP
                await asyncio.sleep(0.01)
        vllm.may_answer.set()
        assert [line["event"] for line in (await call)[1]] == ["group", "end"]
    assert await asyncio.to_thread(process.wait) == 0


async def ready(session: aiohttp.ClientSession) -> bool:
    async with session.get("/readyz") as response:
        return response.status == 200


async def test_a_killed_agent_resumes_where_it_was(process: AgentProcess, vllm: FakeVllm, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    async with aiohttp.ClientSession(process.url) as session:
        await AgentClient(session).serve(manifest)
    process.kill()
    await vllm.die()
    await vllm.start()
    process.start()
    await asyncio.to_thread(process.wait_until_up, 60)
    async with aiohttp.ClientSession(process.url) as session:
        await AgentClient(session).until_serving(manifest)


@pytest.mark.parametrize(
    ("run", "token", "message"),
    [
        pytest.param(None, "secret", "run.json: cannot be read", id="no run file"),
        pytest.param("{}", "secret", "is required", id="no run in it"),
        pytest.param("", "secret", "is empty", id="empty run file"),
        pytest.param("with uid", None, f"{TOKEN_FILE}=", id="no token file"),
        pytest.param("with uid", " \n", "is empty", id="empty token"),
        pytest.param("without uid", "secret", "metadata.uid is missing", id="run without uid"),
    ],
)
def test_bad_configuration_ends_it_with_code_2(tmp_path: Path, run: str | None, token: str | None, message: str) -> None:
    document = tiny_run(tmp_path)
    if run == "without uid":
        document.metadata.uid = None
    if run is not None:
        text = document.model_dump_json(by_alias=True, exclude_none=True) if run.endswith("uid") else run
        (tmp_path / "run.json").write_text(text)
    if token is not None:
        (tmp_path / "token").write_text(token)
    command = [sys.executable, "-m", "spinrun_worker.rollout", "--run", "run.json", "--ledger", ".", "--scratch", "scratch"]
    environment = os.environ | {TOKEN_FILE: "token"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr


async def test_probes_are_answered_on_the_health_port_alone(vllm: FakeVllm, publisher: Publisher, tmp_path: Path) -> None:
    port = free_port()
    options = ("--health-port", str(port))
    run = tiny_run(tmp_path / "model")
    process = AgentProcess(run, ledger=publisher.writer.root, vllm=vllm.url, folder=tmp_path / "agent", options=options)
    process.start()
    try:
        await asyncio.to_thread(process.wait_until_up, 60)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            for path, status in (("/healthz", 200), ("/readyz", 503), ("/metrics", 404), ("/v1/version", 401)):
                async with session.get(path) as response:
                    assert response.status == status
    finally:
        process.stop()
