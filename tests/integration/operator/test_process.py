"""The operator as the process that a cluster runs: `python -m spinrun_operator`."""

import asyncio
import os
import signal
import sys

import pytest

from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.operator.cluster import Cluster, spin_run
from integration.operator.process import operator_process

pytestmark = pytest.mark.cluster


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

        async def nothing_waits() -> bool:
            return "spinrun_operator_queue_depth 0.0" in (await operator.ask("/metrics"))[1]

        await cluster.until("the queue is empty", nothing_waits)
        status, metrics = await operator.ask("/metrics")
        assert status == 200
        assert 'spinrun_operator_api_writes_total{resource="jobs",verb="POST"} 1.0' in metrics
        operator.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await operator.process.wait() == 0


async def test_next_process_continues_where_a_killed_one_stopped(
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
    assert b"SPINRUN_WORKERS must be a number without a fraction, got 'many'" in said
