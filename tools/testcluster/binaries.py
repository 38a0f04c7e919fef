"""What is run: the Go programs, from $KUBEBUILDER_ASSETS or built once by tools/build.sh, and tools/cluster itself."""

import os
import subprocess
import sys
from pathlib import Path

from testcluster.errors import ClusterError

TOOLS = Path(__file__).resolve().parents[1]
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def find_control_plane() -> dict[str, Path]:
    """Where each program of the control plane is: in $KUBEBUILDER_ASSETS, else in the cache, built if need be."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    found = {name: Path(assets, name) for name in CONTROL_PLANE if assets and os.access(Path(assets, name), os.X_OK)}
    absent = [name for name in CONTROL_PLANE if name not in found]
    return found | (build(*absent) if absent else {})


def build(*names: str) -> dict[str, Path]:
    """Where programs of one Go module are in the cache, into which they are built if need be."""
    done = subprocess.run([TOOLS / "build.sh", *names], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise ClusterError(f"tools/build.sh did not build {', '.join(names)}; see its message above")
    return {name: Path(done.stdout.strip(), name) for name in names}


def build_for_cluster() -> dict[str, Path]:
    """Where the programs of nodes and DNS are. Builds the control plane's too, so that nothing starts before all are there."""
    return find_control_plane() | build("kubelet", "kube-proxy") | build("coredns")


def cluster_command(state: Path, *arguments: str) -> list[str]:
    """A command that runs tools/cluster itself; the folder's slash is what `processes.running_pid` looks for."""
    return [sys.executable, str(TOOLS / "cluster"), *arguments, f"--state={state}/"]
