"""The operator as the process that a cluster runs: `python -m spinrun_operator`, with kopf."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.operator.cluster import Cluster, spin_run

pytestmark = pytest.mark.cluster

START_SECONDS = 60


class Process:
    """An operator in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def ask(self, path: str) -> tuple[int, str]:
        """Status and text of an answer; status 0 while nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    async def until_ready(self) -> None:
        """Waits until it has seen what is there."""
        async with asyncio.timeout(START_SECONDS):
            while (await self.ask("/readyz"))[0] != 200:
                assert self.process.returncode is None, "the operator ended"
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def operator_process(kubeconfig: Path, namespace: str) -> AsyncIterator[Process]:
    """Starts an operator for one namespace, and kills it if it is still there at the end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = {
        "KUBECONFIG": str(kubeconfig),
        "SPINRUN_WATCH_NAMESPACES": namespace,
        "SPINRUN_ACCELERATOR": "cpu",
        "SPINRUN_HTTP_PORT": str(port),
        "SPINRUN_RESTART_DELAY_SECONDS": "0.2",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "spinrun_operator", env=os.environ | settings)
    try:
        operator = Process(process, port)
        await operator.until_ready()
        yield operator
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_process_runs_a_spinrun_answers_its_probes_and_ends_at_sigterm(
    cluster: Cluster, fake_kubelet: FakeKubelet, control_plane: ControlPlane
) -> None:
    async with operator_process(control_plane.kubeconfig, cluster.namespace) as operator:
        await cluster.create(spin_run())
        await cluster.until_phase("Running")
        run = await cluster.get("SpinRun", "demo") or {}
        assert "finalizers" not in run["metadata"]
        assert "annotations" not in run["metadata"]
        assert await operator.ask("/healthz") == (200, "ok")
        status, metrics = await operator.ask("/metrics")
        assert status == 200
        assert 'spinrun_operator_api_writes_total{resource="jobs",verb="PATCH"} 1.0' in metrics
        assert "spinrun_operator_queue_depth 0.0" in metrics
        operator.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await operator.process.wait() == 0


async def test_killed_process_is_followed_by_one_that_goes_on(
    cluster: Cluster, fake_kubelet: FakeKubelet, control_plane: ControlPlane
) -> None:
    async with operator_process(control_plane.kubeconfig, cluster.namespace) as first:
        await cluster.create(spin_run())
        await cluster.until_phase("Running")
        first.process.kill()
        await first.process.wait()
    (pod,) = await cluster.pods("trainer")
    await cluster.delete("Pod", pod["metadata"]["name"])
    await cluster.create(spin_run("second"))
    async with operator_process(control_plane.kubeconfig, cluster.namespace):
        assert "failedAttempts" not in await cluster.until_phase("Running", attempt=2)
        await cluster.until_phase("Running", "second", attempt=1)


async def test_wrong_setting_ends_the_process_with_its_name() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "spinrun_operator",
        env=os.environ | {"SPINRUN_WORKERS": "many"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"SPINRUN_WORKERS must be a number, got 'many'" in said
