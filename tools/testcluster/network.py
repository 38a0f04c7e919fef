"""The network of this machine: a bridge that joins it and the nodes, and routes to nodes, pods and Services."""

import socket
import subprocess
from pathlib import Path

from testcluster.errors import MachineError
from testcluster.node import Node
from testcluster.processes import run

BRIDGE = "spinrun0"
NODE_NETWORK = "10.201.0.0/24"
HOST_ADDRESS = "10.201.0.1"
POD_NETWORK = "10.202.0.0/16"
DNS_ADDRESS = "10.96.0.10"
DNS_PORT = 53


def make_bridge(state: Path) -> None:
    """Makes the bridge that joins this machine and the nodes, and marks it as this state folder's.

    Raises:
        MachineError: Another cluster, network or DNS server is in the way.
    """
    if owner := bridge_owner():
        raise MachineError(f"another cluster runs on this machine; stop it first: tools/cluster down --state {owner}")
    if taken := run("ip", "route", "show", "to", "root", "10.200.0.0/13").strip():
        raise MachineError(f"the nodes' networks {NODE_NETWORK} and {POD_NETWORK} are taken here: {taken}")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "link", "set", BRIDGE, "alias", str(state))
    run("ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        try:
            for endpoint in (stream, datagram):
                endpoint.bind((HOST_ADDRESS, DNS_PORT))
        except OSError as error:
            listener = "a DNS server of this machine listens on every address; let it listen on its own addresses only"
            raise MachineError(f"cannot use port {DNS_PORT} of {HOST_ADDRESS}: {error}. Probably {listener}") from None


def bridge_owner() -> Path | None:
    """The folder of the cluster that has the bridge now."""
    alias = Path("/sys/class/net", BRIDGE, "ifalias")
    return Path(alias.read_text().strip()) if alias.exists() else None


def remove_bridge() -> None:
    """Removes the bridge, and with it every route over it, and what is left of the nodes' cables."""
    for interface in (*Path("/sys/class/net").glob(f"{BRIDGE}-*"), Path("/sys/class/net", BRIDGE)):
        # The kernel removes a cable some time after the node at its other end is gone.
        while interface.exists():
            subprocess.run(["ip", "link", "delete", interface.name], stderr=subprocess.DEVNULL)


def connect(node: Node, pid: int) -> None:
    """Lays a cable from the bridge into the network namespace of the node's process, and routes to its pods."""
    cable = f"{BRIDGE}-{node.number}"
    run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    run("ip", "link", "set", cable, "master", BRIDGE, "up")
    run("ip", "route", "add", node.pods, "via", node.address)
