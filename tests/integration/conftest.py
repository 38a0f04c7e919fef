"""What every integration test may ask for."""

from collections.abc import AsyncIterator

import pytest

from integration.control_plane import ControlPlane, build_tools, control_plane, namespace
from integration.fake_kubelet import FakeKubelet

__all__ = ["control_plane", "fake_kubelet", "namespace"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the control plane before the first test: cold it takes minutes, which no test's time limit allows for."""
    if any("control_plane" in getattr(item, "fixturenames", ()) for item in session.items):
        build_tools()


@pytest.fixture
async def fake_kubelet(control_plane: ControlPlane) -> AsyncIterator[FakeKubelet]:
    """Two fake nodes on which pods start, run and end as the test scripts them."""
    async with FakeKubelet(control_plane.kubeconfig, nodes=2) as kubelet:
        yield kubelet
