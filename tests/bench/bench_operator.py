"""`make bench-operator`: many runs at once on a real control plane, whose pods kwok plays.

Prints the time until all children exist and until the status says that all run, the operator's writes, its reconciles, CPU time
and memory, and its writes once everything is at rest.
"""

import argparse
import asyncio
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import config
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from integration.control_plane import TOOLS, ControlPlane, new_control_plane  # noqa: E402
from integration.operator.cluster import Cluster, spin_run  # noqa: E402
from integration.operator.process import Process, operator_process  # noqa: E402
from spinrun_kube import kinds  # noqa: E402
from spinrun_kube.api import Api  # noqa: E402
from spinrun_kube.names import RUN_LABEL  # noqa: E402
from support.ports import free_port  # noqa: E402

NAMESPACE = "bench"
LIMIT_SECONDS = 600
NODES = 10
PODS_PER_NODE = 250
CHILDREN_OF_A_RUN = len(kinds.CHILDREN)
"""One of each kind."""
STAGES = Path(__file__).with_name("kwok_stages.yaml")
CRD = TESTS.parent / "crds" / "spinrun.dev_spinruns.yaml"


@contextmanager
def kwok(control_plane: ControlPlane, folder: Path) -> Generator[None, None, None]:
    """Nodes whose pods start at once and are ready; nothing runs in them."""
    built = subprocess.run([TOOLS / "build.sh", "kwok"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    for number in range(NODES):
        control_plane.kubectl("apply", "--server-side", "-f", "-", input=node(f"kwok-{number}"))
    command = [f"{built}/kwok", "--kubeconfig", str(control_plane.kubeconfig), "--manage-all-nodes"]
    command += ["--config", str(STAGES)]
    command += ["--server-address", f"127.0.0.1:{free_port()}", "--node-lease-duration-seconds", "40"]
    with (folder / "kwok.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()


def node(name: str) -> str:
    """A node with room for many pods."""
    amounts = f"{{cpu: '1000', memory: 4Ti, pods: '{PODS_PER_NODE}'}}"
    return (
        f"{{apiVersion: v1, kind: Node, metadata: {{name: {name}, annotations: {{kwok.x-k8s.io/node: fake}}}}, "
        f"status: {{allocatable: {amounts}, capacity: {amounts}}}}}"
    )


@asynccontextmanager
async def user(control_plane: ControlPlane) -> AsyncGenerator[Cluster, None]:
    """The namespace, seen by whoever starts the runs."""
    async with await config.new_client_from_config(str(control_plane.kubeconfig)) as api_client:
        yield Cluster(Api(api_client), NAMESPACE)


async def create_all(cluster: Cluster, count: int) -> None:
    """Makes the runs, 32 at a time."""
    free = asyncio.Semaphore(32)

    async def create(number: int) -> None:
        async with free:
            await cluster.create(spin_run(f"run-{number:04}"))

    await asyncio.gather(*(create(number) for number in range(count)))


async def figures(operator: Process) -> dict[str, Any]:
    """Writes by verb and resource, reads without watches, reconciles and their quantiles (seconds, upper ends of buckets)."""
    _, text = await operator.ask("/metrics")
    writes: Counter[str] = Counter()
    reads = 0
    buckets: Counter[float] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "spinrun_operator_api_writes_total":
                writes[f"{sample.labels['verb']} {sample.labels['resource']}"] += int(sample.value)
            elif sample.name == "spinrun_operator_api_request_seconds_count" and sample.labels["verb"] == "GET":
                reads += int(sample.value)
            elif sample.name == "spinrun_operator_reconcile_seconds_bucket":
                buckets[float(sample.labels["le"])] += int(sample.value)
    passes = {"reconciles": buckets[float("inf")], "p50": quantile(buckets, 0.5), "p99": quantile(buckets, 0.99)}
    return {"writes": writes, "reads": reads, **passes}


def quantile(buckets: Counter[float], share: float) -> float:
    """The upper end of the bucket that a quantile lies in; buckets: numbers up to each end."""
    total = buckets[float("inf")]
    return next((end for end in sorted(buckets) if buckets[end] >= share * total), math.nan)


def usage(pid: int) -> tuple[float, float]:
    """(CPU seconds, largest resident memory in MiB) of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert peak is not None
    return ticks / os.sysconf("SC_CLK_TCK"), int(peak[1]) / 1024


async def measure(cluster: Cluster, operator: Process, count: int, steady_seconds: float) -> dict[str, str]:
    """The table's rows."""
    before, (cpu_before, _) = await figures(operator), usage(operator.process.pid)
    started = time.monotonic()
    await create_all(cluster, count)
    created = time.monotonic() - started

    async with asyncio.timeout(LIMIT_SECONDS):
        for kind in kinds.CHILDREN:
            # Seldom, and one kind after the other: the asking must not be what is measured.
            while len(await cluster.find(kind.name, RUN_LABEL)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        children = time.monotonic() - started
        while sum(run.get("status", {}).get("phase") == "Running" for run in await cluster.find("SpinRun")) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        running = time.monotonic() - started
    await asyncio.sleep(10)
    after, (cpu, memory) = await figures(operator), usage(operator.process.pid)
    await asyncio.sleep(steady_seconds)
    steady, (steady_cpu, _) = await figures(operator), usage(operator.process.pid)
    writes = after["writes"]
    beyond = writes.total() / count - CHILDREN_OF_A_RUN
    return {
        "runs created": f"{created:.1f} s",
        "all children exist": f"{children:.1f} s",
        "all runs are Running": f"{running:.1f} s",
        "writes per run": f"{writes.total() / count:.2f}, {beyond:.2f} beyond creating the children",
        **{f"  {what}": f"{number / count:.2f}" for what, number in writes.most_common()},
        "reads per run": f"{(after['reads'] - before['reads']) / count:.2f}",
        "reconciles per run": f"{after['reconciles'] / count:.1f}, p50 ≤ {after['p50']:g} s, p99 ≤ {after['p99']:g} s",
        "operator's CPU": f"{cpu - cpu_before:.1f} s",
        "operator's memory at its peak": f"{memory:.0f} MiB",
        f"writes in {steady_seconds:g} s at rest": str((steady["writes"] - after["writes"]).total()),
        f"CPU in {steady_seconds:g} s at rest": f"{steady_cpu - cpu:.2f} s",
    }


async def bench(count: int, steady_seconds: float) -> None:
    """Runs the benchmark and prints its table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with new_control_plane(folder / "control-plane") as control_plane, kwok(control_plane, folder):
            control_plane.kubectl("apply", "--server-side", "-f", str(CRD))
            control_plane.until_served("spinruns.spinrun.dev")
            control_plane.kubectl("create", "namespace", NAMESPACE)
            async with user(control_plane) as cluster, operator_process(control_plane.kubeconfig, NAMESPACE) as operator:
                rows = await measure(cluster, operator, count, steady_seconds)
    table = Table(title=f"{count} SpinRuns at once, {os.cpu_count()} cores", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--steady-seconds", type=float, default=60)
    options = parser.parse_args()
    try:
        asyncio.run(bench(options.runs, options.steady_seconds))
    except aiohttp.ClientError as error:
        sys.exit(f"bench-operator: {error}")


if __name__ == "__main__":
    main()
