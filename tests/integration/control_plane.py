"""Fixtures that give a test a real Kubernetes API: a control plane of its own, or the cluster that KUBECONFIG names.

Pods run only on a cluster with nodes. On a control plane of its own a test uses `fake_kubelet` too.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it wrote to stderr."""


@dataclass(frozen=True)
class ControlPlane:
    """A Kubernetes API and how to reach it."""

    kubeconfig: Path
    """A cluster administrator's."""
    kubectl_binary: Path
    state: Path | None
    """The folder of `tools/control-plane`, with `audit.log` and `log/`; None for a cluster of the user's."""

    @property
    def folder(self) -> Path:
        """`state` of a control plane that is ours."""
        assert self.state is not None
        return self.state

    def kubectl(self, *args: str, input: str | None = None) -> str:
        """Runs kubectl and returns its stdout; raises KubectlError with its stderr.

        It blocks: beside a fake kubelet on the same event loop, use `kubectl_async`.
        """
        command = [self.kubectl_binary, "--kubeconfig", self.kubeconfig, *args]
        done = subprocess.run(command, input=input, capture_output=True, text=True)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def until_served(self, crd: str, seconds: float = 30) -> None:
        """Waits until the API server serves a CRD. `kubectl wait` fails where its status has no conditions yet."""
        conditions = "--output=jsonpath={range .status.conditions[*]}{.type}={.status} {end}"
        deadline = time.monotonic() + seconds
        while "Established=True" not in self.kubectl("get", f"crd/{crd}", conditions):
            if time.monotonic() > deadline:
                raise KubectlError(f"the CRD {crd} is not served after {seconds:g} s")
            time.sleep(0.1)

    async def kubectl_async(self, *args: str, input: str | None = None) -> str:
        """The same in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.kubectl, *args, input=input)


def build_tools() -> None:
    """Builds what `control_plane` will run, where it is not in the cache yet."""
    if not os.environ.get("KUBECONFIG"):
        # A failure shows where it matters: in the tests that need the control plane, not in the others of this session.
        subprocess.run([sys.executable, TOOLS / "control-plane", "build"], check=False)


def find_kubectl() -> Path:
    """The kubectl of KUBEBUILDER_ASSETS, else of PATH when the cluster is the user's, else of the cache."""
    candidates = [Path(os.environ.get("KUBEBUILDER_ASSETS", ""), "kubectl")]
    if os.environ.get("KUBECONFIG"):
        candidates.append(Path(shutil.which("kubectl") or ""))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    built = subprocess.run([TOOLS / "build.sh", "kubectl"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.strip(), "kubectl")


def run_tool(tool: str, command: str, state: Path, *arguments: str) -> None:
    """Runs `tools/TOOL COMMAND`; its own message, on stderr, says what went wrong."""
    done = subprocess.run(
        [sys.executable, TOOLS / tool, command, "--state", state, *arguments],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(f"tools/{tool} {command}: {done.stderr}", pytrace=False)


@contextlib.contextmanager
def started(tool: str, state: Path, *arguments: str) -> Generator[None, None, None]:
    """What `tools/TOOL up` starts; it ends with the block, or with this process."""
    # Stops it where pytest is killed and so never comes to the end of the block.
    down_after = [sys.executable, TOOLS / tool, "down", "--state", state, "--after", str(os.getpid())]
    guard = subprocess.Popen(down_after, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        run_tool(tool, "up", state, *arguments)
        yield
    finally:
        run_tool(tool, "down", state)
        guard.kill()
        guard.wait()


@contextlib.contextmanager
def new_control_plane(state: Path) -> Generator[ControlPlane, None, None]:
    """A control plane that nobody else uses; it ends with the block, or with this process."""
    try:
        with started("control-plane", state):
            yield ControlPlane(state / "kubeconfig", find_kubectl(), state)
    finally:
        # pytest keeps the folders of the last sessions: the logs are worth that, the database is not.
        shutil.rmtree(state / "etcd", ignore_errors=True)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The session's Kubernetes API. See `ControlPlane`."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        yield ControlPlane(Path(kubeconfig), find_kubectl(), state=None)
        return
    with new_control_plane(tmp_path_factory.mktemp("control-plane")) as own:
        yield own


@contextlib.contextmanager
def new_namespace(control_plane: ControlPlane, prefix: str) -> Generator[str, None, None]:
    """A namespace that enforces the restricted Pod Security level, as ours must meet it; it is deleted after the block."""
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    metadata = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    control_plane.kubectl("create", "--filename=-", input=json.dumps(namespace))
    # Pods are refused until the controller-manager has made it.
    control_plane.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    try:
        yield name
    finally:
        control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for one test. See `new_namespace`."""
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    with new_namespace(control_plane, test) as name:
        yield name
