"""Starting and ending a node: a process in namespaces of its own, and what it runs in them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testcluster.binaries import cluster_command
from testcluster.cgroups import make_cgroups
from testcluster.control_plane import SERVICE_NETWORK
from testcluster.errors import ClusterError
from testcluster.images import import_images
from testcluster.network import connect
from testcluster.node import Node
from testcluster.node_config import cni_config, containerd_config, kubelet_config, proxy_config
from testcluster.processes import Startup, command_line, end, run, running_pid, start

# Folders that no configuration moves: each node has its own, empty at each start. This machine may lack the last two.
SYSTEM_FOLDERS = ("/run", "/var/log")
PROGRAM_FOLDERS = ("/var/lib/cni", "/var/lib/kubelet")

# The kubelet wants these values of the kernel, and would write them: for the whole machine, and for good.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


# --- from outside --------------------------------------------------------------------------------------------------


def start_node(node: Node, num_nodes: int, binaries: Path, startup: Startup) -> None:
    """Starts a node's process in namespaces of its own and connects it."""
    make_cgroups(node.name)
    node.folder.mkdir(exist_ok=True)
    arguments = ("run-node", f"--number={node.number}", f"--nodes={num_nodes}", f"--binaries={binaries}")
    # Killed alone, unshare would leave the node running where nobody finds it.
    own_namespaces = ("unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
    start(node.state, node.name, [*own_namespaces, *cluster_command(node.state, *arguments)])
    startup.wait(f"{node.name} had its namespaces", node.name, lambda: _has_own_network(node))
    if (pid := running_pid(node.state, node.name)) is None:
        raise ClusterError(f"{node.name} ended before it was connected")
    connect(node, pid)


def _has_own_network(node: Node) -> bool:
    """Whether the node's process has left this machine's network namespace."""
    try:
        theirs = Path(f"/proc/{running_pid(node.state, node.name)}/ns/net").readlink()
    except OSError:
        return False
    return theirs != Path("/proc/self/ns/net").readlink()


def kill_node(node: Node) -> None:
    """Kills the first process of a node's pid namespace: the kernel then ends all others in it, pods included."""
    if pid := running_pid(node.state, node.name):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        end(node.state, [node.name])


# --- inside its namespaces -----------------------------------------------------------------------------------------


def run_node(node: Node, num_nodes: int, binaries: Path) -> int:
    """Is the first process of a node's namespaces: starts its three programs, and ends with any of them.

    Returns:
        The exit status, 1.
    """
    _enter_node(node, [Node(node.state, number) for number in range(1, num_nodes + 1) if number != node.number])
    programs: dict[int, str] = {}

    def launch(program: str, *arguments: str | Path) -> None:
        with (node.state / "log" / f"{node.name}-{Path(program).name}.log").open("wb") as log:
            process = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        programs[process.pid] = program

    configuration = Path("/run/cni/conf/pods.conflist")
    configuration.parent.mkdir(parents=True)
    configuration.write_text(json.dumps(cni_config(node)))
    Path("/run/containerd.toml").write_text(containerd_config(node))
    launch("containerd", "--config", "/run/containerd.toml")
    while subprocess.run(["ctr", "version"], capture_output=True).returncode != 0:
        if os.waitpid(-1, os.WNOHANG)[0]:
            print("containerd ended", file=sys.stderr)
            return 1
        time.sleep(0.05)
    import_images(node.state / "busybox.tar")

    for name, content in (("kubelet", kubelet_config(node)), ("kube-proxy", proxy_config(node))):
        Path(f"/run/{name}.json").write_text(json.dumps(content))
    kubelet = command_line(
        binaries / "kubelet",
        {
            "config": "/run/kubelet.json",
            "kubeconfig": node.kubeconfig,
            "root-dir": node.folder / "kubelet",
            "cert-dir": node.folder / "kubelet/pki",
            "hostname-override": node.name,
            "node-ip": node.address,
        },
    )
    launch(*kubelet)
    launch(str(binaries / "kube-proxy"), "--config", "/run/kube-proxy.json")
    # The first process of a pid namespace inherits the orphans of all others, and must wait for them.
    while (ended := os.wait()[0]) not in programs:
        pass
    print(f"{programs[ended]} ended", file=sys.stderr)
    return 1


def _enter_node(node: Node, peers: Sequence[Node]) -> None:
    """Gives the node a name, folders of its own that are empty at each start, and its end of the cable."""
    socket.sethostname(node.name)
    # Within this node's namespace: a volume that is mounted while a container runs must show in it.
    run("mount", "--make-rshared", "/")
    for folder in (*SYSTEM_FOLDERS, *PROGRAM_FOLDERS):
        Path(folder).mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", node.name, folder)
    for name, value in KERNEL_SETTINGS.items():
        shown = Path("/run", name.replace("/", "."))
        shown.write_text(value)
        run("mount", "--bind", shown, f"/proc/sys/{name}")

    while "eth0" not in [name for _, name in socket.if_nameindex()]:
        time.sleep(0.02)
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    # For the node's own requests to Services, which are looked up before they are translated.
    run("ip", "route", "add", SERVICE_NETWORK, "dev", "eth0")
    for peer in peers:
        run("ip", "route", "add", peer.pods, "via", peer.address)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
