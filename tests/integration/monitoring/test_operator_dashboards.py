"""The dashboards and alerts about the operator, asked of a real Prometheus that collects from a real operator."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit
from integration.monitoring.prometheus import Prometheus, Target, binary, running_prometheus
from integration.monitoring.queries import ALERTS, alerts, check, choices, probes, read_dashboard, unanswered
from integration.operator.cluster import Cluster, spin_run
from integration.operator.process import operator_process

pytestmark = pytest.mark.cluster

SYSTEM = "spinrun-system"
VARIABLES = {"namespace": SYSTEM}
# Rates need a few collections.
SECONDS = 10

NO_TRAINER = {
    "spinrun_trainer_": "the pods are scripted: no trainer runs in them",
    "spinrun_rollout_": "the pods are scripted: no agent runs in them",
}
YOUNG = {"offset 1h": "Prometheus has begun a moment ago"}


@pytest.fixture
async def prometheus(
    cluster: Cluster, fake_kubelet: FakeKubelet, control_plane: ControlPlane, tmp_path: Path
) -> AsyncIterator[Prometheus]:
    """A Prometheus that watches an operator with a run that continues after a failure and one that cannot."""
    binary()
    async with operator_process(control_plane.kubeconfig, cluster.namespace) as operator:
        target = Target(int(operator.url.rpartition(":")[2]), {"namespace": SYSTEM, "pod": "spinrun-operator-0"})
        with running_prometheus(tmp_path / "prometheus", [target], ALERTS) as prometheus:
            await cluster.until("counters have been seen before they rise", partial(seen, prometheus))
            fake_kubelet.script(Exit(1, after=0.5), name="demo-trainer-1-*")
            fake_kubelet.script(Exit(2, after=0.5), name="broken-trainer-1-*")
            await cluster.create(spin_run())
            await cluster.create(spin_run("broken"))
            await cluster.until_phase("Failed", "broken")
            await cluster.until_phase("Running", attempt=2)
            await asyncio.sleep(SECONDS)
            yield prometheus


async def seen(prometheus: Prometheus) -> bool:
    """Whether Prometheus has the operator's page."""
    return bool(await asyncio.to_thread(prometheus.now, "spinrun_operator_attempts_ended_total"))


async def test_every_query_about_the_operator_has_data(prometheus: Prometheus, cluster: Cluster) -> None:
    await asyncio.to_thread(check, prometheus, "operator", VARIABLES, {})
    await asyncio.to_thread(check, prometheus, "fleet", {"namespace": ".+"}, NO_TRAINER, part=", of the operator")
    assert choices(prometheus, read_dashboard("operator"), VARIABLES) == {"namespace": [SYSTEM]}

    ended = prometheus.now("increase(spinrun_operator_attempts_ended_total[1m]) > 0")
    assert {series["metric"]["reason"] for series in ended} == {"TrainerFailed", "InvalidConfiguration"}
    phases = {series["metric"]["run"]: series["metric"]["phase"] for series in prometheus.now("spinrun_operator_run_phase")}
    assert phases == {"demo": "Running", "broken": "Failed"}

    counts = {probe: len(prometheus.now(probe)) for expr in alerts("spinrun-operator").values() for probe in probes(expr)}
    assert unanswered(counts, YOUNG) == []
