"""Many runs at rest cost the API server nothing, and its restart costs the operator nothing."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes.aio import config

from integration.control_plane import ControlPlane, new_control_plane, new_namespace
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit
from integration.operator.cluster import FAST, Cluster, RunningOperator, running_operator, spin_run
from integration.operator.conftest import CRD
from integration.operator.process import operator_process
from spinrun_kube.api import TRANSIENT, Api
from spinrun_kube.names import OPERATOR

pytestmark = pytest.mark.cluster

RUNS = 50
STEADY_SECONDS = 60


@pytest.mark.timeout(600)
async def test_fifty_steady_runs_cost_no_write_in_a_minute(
    cluster: Cluster, fake_kubelet: FakeKubelet, control_plane: ControlPlane
) -> None:
    # Everything is looked at again many times within the minute, and rank 0 is asked for its progress all the time.
    settings = replace(FAST, resync_seconds=5, coalesce_seconds=0.5, progress_seconds=5)
    names = [f"run-{number}" for number in range(RUNS)]
    async with running_operator(cluster.namespace, settings=settings) as operator:
        await asyncio.gather(*(cluster.create(spin_run(name)) for name in names))
        await cluster.until("all runs are Running", lambda: all_running(cluster), seconds=240)
        await operator.until_idle(quiet_seconds=3)
        before, reconciled = len(operator.api.writes), passes(operator)
        since = time.time()
        await asyncio.sleep(STEADY_SECONDS)
        assert operator.api.writes[before:] == []
        assert passes(operator) >= reconciled + 5 * RUNS, "the minute must not have been a sleep"
        if control_plane.state is not None:
            assert writes_in_audit_log(control_plane.state / "audit.log", cluster.namespace, since) == Counter()


async def all_running(cluster: Cluster) -> bool:
    """Whether every run is."""
    runs = await cluster.find("SpinRun")
    return [run.get("status", {}).get("phase") for run in runs] == ["Running"] * RUNS


def passes(operator: RunningOperator) -> int:
    """How often the operator has looked at a run."""
    (family,) = operator.metrics.reconcile_seconds.collect()
    return sum(int(sample.value) for sample in family.samples if sample.name.endswith("_count"))


def writes_in_audit_log(log: Path, namespace: str, since: float) -> Counter[str]:
    """What the operator wrote by the API server's own record, by verb and resource; since: seconds since 1970."""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    found: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        about = entry.get("objectRef") or {}
        ours = entry.get("userAgent") == OPERATOR and about.get("namespace") == namespace
        if ours and entry["verb"] not in ("get", "list", "watch") and entry["requestReceivedTimestamp"] >= start:
            found[f"{entry['verb']} {about.get('resource')}"] += 1
    return found


@pytest.mark.timeout(300)
async def test_api_server_is_restarted_under_the_operator(tmp_path: Path) -> None:
    with new_control_plane(tmp_path / "control-plane") as control_plane, new_namespace(control_plane, "restart") as namespace:
        control_plane.kubectl("apply", "--server-side", "-f", str(CRD))
        control_plane.until_served("spinruns.spinrun.dev")
        async with (
            await config.new_client_from_config(str(control_plane.kubeconfig)) as api_client,
            operator_process(control_plane.kubeconfig, namespace) as operator,
        ):
            cluster = Cluster(Api(api_client), namespace)
            await cluster.create(spin_run())
            await cluster.until("all children are there", lambda: has_children(cluster, 8))
            start_again = kill_api_server(tmp_path / "control-plane")
            await asyncio.sleep(5)
            assert (await operator.ask("/healthz"))[0] == 200, "an API server that is away is no reason to be restarted"
            start_again()
            await cluster.until("the API server answers", lambda: answers(cluster), seconds=60)
            await cluster.change_spec("demo", rollout={"replicas": 2})
            async with FakeKubelet(control_plane.kubeconfig, nodes=2) as kubelet:
                kubelet.script(Exit(0, after=2), name="demo-trainer-*")
                await cluster.until_phase("Complete", attempt=1)


async def has_children(cluster: Cluster, count: int) -> bool:
    """Whether so many children are there."""
    return len(await cluster.children()) == count


async def answers(cluster: Cluster) -> bool:
    """Whether the API server does."""
    try:
        return await cluster.get("SpinRun", "demo") is not None
    except TRANSIENT:
        return False


def kill_api_server(state: Path) -> Callable[[], None]:
    """SIGKILL to the API server of a control plane; returns what starts it again, on the same port and database."""
    pid_file = state / "pids" / "kube-apiserver"
    pid = int(pid_file.read_text())
    command = Path("/proc", str(pid), "cmdline").read_text().rstrip("\0").split("\0")
    os.kill(pid, signal.SIGKILL)

    def start() -> None:
        log = (state / "log" / "kube-apiserver.log").open("ab")
        pid_file.write_text(str(subprocess.Popen(command, cwd=state, stdout=log, stderr=log, start_new_session=True).pid))

    return start
