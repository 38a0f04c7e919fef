"""Control plane, nodes, DNS and volumes together."""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from testcluster.binaries import CONTROL_PLANE, build_for_cluster, cluster_command
from testcluster.certificates import write_kubeconfig
from testcluster.cgroups import remove_cgroups
from testcluster.client import Client
from testcluster.control_plane import SERVICE_NETWORK, Variant, start_control_plane, stop_control_plane
from testcluster.dns import dns_config, dns_objects
from testcluster.errors import ClusterError, MachineError
from testcluster.images import write_busybox_archive
from testcluster.machine import prepare_machine
from testcluster.network import HOST_ADDRESS, bridge_owner, make_bridge, remove_bridge
from testcluster.node import Node, all_nodes
from testcluster.node_lifecycle import PROGRAM_FOLDERS, kill_node, start_node
from testcluster.processes import Startup, end, print_status, reserve_port, run, running_pids, start, tail_of_logs
from testcluster.volumes import PROVISIONER


def up(state: Path, num_nodes: int, timeout: float) -> None:
    """Starts a cluster, or resumes the one that the state folder holds, and prints how to reach it.

    Leaves nothing behind when that fails.

    Args:
        state: The state folder.
        num_nodes: Nodes to run; a cluster that runs with another number is stopped first.
        timeout: Seconds to become ready.

    Raises:
        MachineError: This machine lacks something.
        ClusterError: Something did not start; the message ends with the logs.
    """
    prepare_machine()
    if state.is_relative_to("/run") or state.is_relative_to("/var/log"):
        raise MachineError(f"a node has its own /run and /var/log and would not see {state}: choose another --state")
    nodes = [Node(state, number) for number in range(1, num_nodes + 1)]
    if bridge_owner() == state:
        if all_nodes(state) == nodes and all(_running_pids(state).values()):
            print(f"export KUBECONFIG={state}/kubeconfig")
            return
        down(state)  # what is left of a cluster some of whose processes were killed, or that has another number of nodes
    owner = bridge_owner()
    try:
        server = _start_everything(state, nodes, timeout)
    except BaseException as error:
        logs = tail_of_logs(state)
        if owner is None:
            down(state)
        if not isinstance(error, ClusterError) or isinstance(error, MachineError):
            raise
        raise ClusterError(f"{error}\n{logs}") from None
    # Last, so that whoever waits for the file finds a cluster that runs pods.
    write_kubeconfig(state / "kubeconfig", state / "pki", "admin", server)
    print(f"export KUBECONFIG={state}/kubeconfig")


def status(state: Path) -> int:
    """Prints each process with its pid; the exit status is 1 unless all of them run."""
    return print_status(_running_pids(state))


def down(state: Path) -> None:
    """Ends every process of the folder, and removes what the cluster made on this machine outside it."""
    for node in all_nodes(state):
        kill_node(node)
    end(state, ["coredns", "provisioner"])
    stop_control_plane(state)
    if bridge_owner() == state:
        remove_cgroups()
        remove_bridge()
        for folder in PROGRAM_FOLDERS:
            # It stays where the machine's own programs keep something in it.
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def _start_everything(state: Path, nodes: Sequence[Node], timeout: float) -> str:
    """Starts everything, and returns the API server's URL when a pod could run."""
    since = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    binaries = build_for_cluster()
    make_bridge(state)
    server = start_control_plane(state, _variant(state, nodes), None, timeout)
    for name in ("kube-proxy", "coredns", *(node.name for node in nodes)):
        write_kubeconfig(state / f"{name}.kubeconfig", state / "pki", name, server)
    startup, client = Startup(state, timeout), Client(state)

    write_busybox_archive(state / "busybox.tar")
    for node in nodes:
        start_node(node, len(nodes), binaries["kubelet"].parent, startup)
    # From here on, requests to Services leave by a node, which translates them.
    run("ip", "route", "add", SERVICE_NETWORK, "via", nodes[0].address)
    start(state, "provisioner", cluster_command(state, "provision", f"--server={server}"))
    for path, body in dns_objects():
        startup.wait(f"{path} was there", "kube-apiserver", partial(client.ensure, f"{server}/{path}", body))
    ready = reserve_port()
    (state / "Corefile").write_text(dns_config(state, ready))
    start(state, "coredns", [str(binaries["coredns"]), "-conf", f"{state}/Corefile"])
    startup.wait("DNS was ready", "coredns", lambda: client.healthy(f"http://127.0.0.1:{ready}/ready"))
    for node in nodes:
        url = f"{server}/api/v1/nodes/{node.name}"
        startup.wait(f"{node.name} was ready", node.name, partial(_is_ready, client, url, since))
    return server


def _variant(state: Path, nodes: Sequence[Node]) -> Variant:
    """A control plane that nodes and pods can reach."""
    users = {
        "apiserver-kubelet": "/O=system:masters/CN=apiserver-kubelet",
        "kube-proxy": "/CN=system:kube-proxy",
        "coredns": "/CN=coredns",
    }
    return Variant(
        address=HOST_ADDRESS,
        provisioner=PROVISIONER,
        users=users | {node.name: f"/O=system:nodes/CN=system:node:{node.name}" for node in nodes},
        apiserver_flags={
            "endpoint-reconciler-type": "lease",
            "kubelet-client-certificate": state / "pki/apiserver-kubelet.crt",
            "kubelet-client-key": state / "pki/apiserver-kubelet.key",
            # This machine cannot resolve the names of the nodes.
            "kubelet-preferred-address-types": "InternalIP",
        },
    )


def _is_ready(client: Client, url: str, since: str) -> bool:
    """Whether a node says that it is ready, and has said so since this time: what it said before `down` does not count."""
    try:
        conditions = client.fetch(url)["status"].get("conditions", [])
    except OSError:
        return False
    return any(
        condition["type"] == "Ready" and condition["status"] == "True" and condition["lastHeartbeatTime"] >= since
        for condition in conditions
    )


def _running_pids(state: Path) -> dict[str, int | None]:
    """Each process that the cluster has, and its pid while it runs."""
    names = [*CONTROL_PLANE, "coredns", "provisioner", *(node.name for node in all_nodes(state))]
    return running_pids(state, names)
