"""A cluster whose pods really run, SpinRun installed on it by Helm, and one namespace with a claim and a model.

The cluster is the one that KUBECONFIG names, where IMAGES names the registry that its nodes pull from; or the one of
`make cluster-up`, which is started and stopped again if it does not run.
"""

import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from e2e.runs import Runs
from integration.control_plane import TOOLS, ControlPlane, find_kubectl, started
from support.models import tiny_llama
from unit.chart.helm import CHART, helm

ROOT = TOOLS.parent
STATE = ROOT / ".cache" / "cluster"
NAMESPACE = "spinrun-e2e"
SYSTEM = "spinrun-system"
# Each second of these is waited for many times, and none is what the tests are about.
IMPATIENT = [
    "settings.accelerator=cpu",
    "settings.restartDelaySeconds=2",
    "settings.troubleSeconds=5",
    "settings.unscheduledSeconds=5",
]
FIGURES = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how long the runs took to start and to get over what befell them."""
    if figures := terminalreporter.config.stash.get(FIGURES, []):
        terminalreporter.section("runs")
        for figure in figures:
            terminalreporter.write_line(figure)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the images before the first test: cold it takes minutes, which no test's time limit allows for."""
    wanted = any(item.nodeid.startswith("tests/e2e/") for item in session.items)
    if wanted and not session.config.option.collectonly and not os.environ.get("KUBECONFIG") and os.geteuid() == 0:
        for command in ("build", "save"):
            # A failure shows where it matters: in the tests that need the images.
            subprocess.run([TOOLS / "images", command, "operator", "worker"], check=False, stdout=subprocess.DEVNULL)


def tool(name: str, *arguments: str | Path) -> str:
    """Runs a program of tools/; its progress is shown as it comes."""
    return subprocess.run([TOOLS / name, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """The session's cluster."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        yield ControlPlane(Path(kubeconfig), find_kubectl(), state=None)
        return
    if os.geteuid() != 0:
        pytest.skip("a node on this machine needs root; or name a cluster in KUBECONFIG")
    was_running = subprocess.run([TOOLS / "cluster", "status", "--state", STATE], capture_output=True).returncode == 0
    with nullcontext() if was_running else started("cluster", STATE):
        yield ControlPlane(STATE / "kubeconfig", find_kubectl(), STATE)


@pytest.fixture(scope="session")
def registry(control_plane: ControlPlane) -> str:
    """Where the images are: on the node already, or in a registry of the user's."""
    if control_plane.state is None:
        return os.environ["IMAGES"]
    tool("images", "build", "operator", "worker")
    archives = tool("images", "save", "operator", "worker").split()
    tool("cluster", "load", "--state", STATE, "--node", "node-1", *archives)
    return "localhost"


@pytest.fixture(scope="session")
def upgrade(control_plane: ControlPlane, registry: str) -> Callable[..., str]:
    """Installs the chart, or upgrades to other values."""

    def upgrade(*values: str) -> str:
        images = [f"image.registry={registry}", "image.repository=spinrun/operator", "image.tag=dev"]
        images += [f"workerImage.registry={registry}", "workerImage.repository=spinrun/worker", "workerImage.tag=dev"]
        sets = [argument for value in [*images, *IMPATIENT, *values] for argument in ("--set", value)]
        where = ("--kubeconfig", control_plane.kubeconfig, "--namespace", SYSTEM, "--create-namespace")
        return helm("upgrade", "--install", "spinrun", CHART, "--wait", "--timeout", "3m", *sets, *where)

    return upgrade


@pytest.fixture(scope="session")
def shared(
    control_plane: ControlPlane,
    registry: str,
    upgrade: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Generator[Runs]:
    """The namespace of all tests, which enforces the restricted Pod Security level."""
    upgrade()
    # The name of an image that was built again is the same.
    control_plane.kubectl("rollout", "restart", "deployment/spinrun-operator", "-n", SYSTEM)
    control_plane.kubectl("rollout", "status", "deployment/spinrun-operator", "-n", SYSTEM, "--timeout=120s")
    runs = Runs(control_plane, NAMESPACE, f"{registry}/spinrun/worker:dev")
    runs.prepare(tiny_llama(tmp_path_factory.mktemp("model") / "tiny"))
    yield runs
    pytestconfig.stash[FIGURES] = runs.figures
    control_plane.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")


@pytest.fixture(scope="module")
def runs(shared: Runs) -> Iterator[Runs]:
    """The namespace, without runs before and after the tests of a file."""
    yield shared
    shared.kubectl("delete", "spinrun", "--all", "--timeout=60s")
    shared.until("no pod of a run is left", lambda: not shared.pods())
