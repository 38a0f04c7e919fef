"""A cluster whose pods really run: two nodes on this machine, or the cluster that KUBECONFIG names.

`control_plane` here takes the place of the fixture of the same name that has no nodes, so `namespace` is on this cluster too.
"""

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from integration.control_plane import TOOLS, ControlPlane, find_kubectl, started
from integration.node.machine import Machine


def run_cluster(*arguments: str | Path, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs tools/cluster."""
    return subprocess.run([sys.executable, TOOLS / "cluster", *arguments], stdin=stdin, capture_output=True, text=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what a node runs before the first test: cold it takes minutes, which no test's time limit allows for."""
    wanted = any("integration/node/" in item.nodeid for item in session.items)
    if wanted and not os.environ.get("KUBECONFIG") and os.geteuid() == 0:
        # A failure shows where it matters: in the tests that need the node.
        subprocess.run([sys.executable, TOOLS / "cluster", "build"], check=False)


@contextmanager
def new_cluster(state: Path) -> Generator[ControlPlane, None, None]:
    """A cluster with two nodes; it ends with the block, or with this process."""
    with started("cluster", state, "--nodes", "2"):
        yield ControlPlane(state / "kubeconfig", find_kubectl(), state)


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cluster that is started on this machine."""
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="session")
def machine(state: Path) -> Machine:
    """What this machine had before the cluster started."""
    return Machine.look(state)


@pytest.fixture(scope="session")
def control_plane(state: Path, request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """The session's cluster."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        yield ControlPlane(Path(kubeconfig), find_kubectl(), state=None)
        return
    if os.geteuid() != 0:
        pytest.skip("a node on this machine needs root; or name a cluster in KUBECONFIG")
    request.getfixturevalue("machine")
    with new_cluster(state) as own:
        yield own


@pytest.fixture(scope="session")
def image(control_plane: ControlPlane) -> str:
    """An image with a shell and the usual commands."""
    return "busybox:1.36" if control_plane.state is None else "localhost/busybox:1"
