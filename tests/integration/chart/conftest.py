"""A control plane for the chart alone, and the chart installed on it."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest
from kubernetes.aio import config

from integration.chart.release import Release
from integration.control_plane import ControlPlane, new_control_plane, new_namespace
from integration.fake_kubelet import FakeKubelet
from integration.operator.cluster import Cluster
from spinrun_kube.api import Api
from unit.chart.helm import build_helm

MONITORING = ("PodMonitor", "ServiceMonitor")


def pytest_collection_finish(session: pytest.Session) -> None:
    """See `build_helm`."""
    build_helm(session.items)


def monitoring_crd(kind: str) -> str:
    """A kind of prometheus-operator's, without its rules: neither its CRDs nor its controller are at hand."""
    plural = f"{kind.lower()}s"
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }
    names = {"kind": kind, "plural": plural, "singular": kind.lower()}
    spec = {"group": "monitoring.coreos.com", "scope": "Namespaced", "names": names, "versions": [version]}
    document = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": spec,
    }
    return json.dumps(document)


@pytest.fixture(scope="package")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that knows PodMonitors. Never a cluster of the user's: these tests delete the CRD and so all SpinRuns."""
    with new_control_plane(tmp_path_factory.mktemp("chart-control-plane")) as started:
        for kind in MONITORING:
            started.kubectl("apply", "--server-side", "-f", "-", input=monitoring_crd(kind))
            started.until_served(f"{kind.lower()}s.monitoring.coreos.com")
        yield started


@pytest.fixture
async def release(control_plane: ControlPlane, fake_kubelet: FakeKubelet) -> AsyncIterator[Release]:
    """The release `spinrun`, not installed yet; its pod will be a fake. At the end nothing of it is left, nor any SpinRun."""
    with new_namespace(control_plane, "spinrun-system") as namespace:
        release = Release(control_plane, namespace)
        yield release
        await release.helm("uninstall", "spinrun", "--ignore-not-found", "--wait")
        await control_plane.kubectl_async("delete", "crd", "spinruns.spinrun.dev", "--ignore-not-found", "--timeout=60s")


@pytest.fixture
async def cluster(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Cluster]:
    """The namespace of a team that has runs, seen by an administrator."""
    async with await config.new_client_from_config(str(control_plane.kubeconfig)) as api_client:
        yield Cluster(Api(api_client), namespace)
