"""Fixtures of the operator's tests on a real control plane."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from integration.control_plane import ControlPlane
from integration.operator.cluster import Cluster, RunningOperator, running_operator
from spinrun_kube.api import Api, connect

CRD = Path(__file__).resolve().parents[3] / "crds" / "spinrun.dev_spinruns.yaml"


@pytest.fixture(scope="session")
def crd(control_plane: ControlPlane) -> None:
    """The CRD, served by the API server."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    control_plane.until_served("spinruns.spinrun.dev")


@pytest.fixture
async def cluster(
    control_plane: ControlPlane, crd: None, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """The test's namespace. The operator finds the cluster by KUBECONFIG, as it does on an administrator's machine."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    async with await connect() as api_client:
        yield Cluster(Api(api_client), namespace)


@pytest.fixture
async def operator(cluster: Cluster) -> AsyncIterator[RunningOperator]:
    """An operator that serves the test's namespace."""
    async with running_operator(cluster.namespace) as running:
        yield running
