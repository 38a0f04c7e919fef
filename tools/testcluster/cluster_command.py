"""A Kubernetes cluster with real nodes, on one Linux machine and without Docker, for tests that run pods.

    tools/cluster build                             # what `up` would build or install, if it is not there yet: minutes
    tools/cluster up --state DIR [--nodes 2]        # DIR/kubeconfig is then a cluster administrator's; nothing, if it runs
    tools/cluster load --state DIR ARCHIVE...       # container images, as `docker save` writes them; "-" is stdin
    tools/cluster status --state DIR
    tools/cluster down --state DIR                  # `up` on the same DIR resumes the same cluster, with its images
    tools/cluster down --state DIR --after PID      # once that process has ended, however it ended

The control plane is that of tools/control-plane. A node is a process in namespaces of its own (mounts, network, pids, host
name), which runs containerd, kubelet and kube-proxy. So its iptables rules, interfaces, mounts, /run and pods end with it,
and the machine's own containerd or Docker is not touched. What a test may rely on:

- Pods reach each other, Services, DNS names and this machine at 10.201.0.1, and nothing outside. This machine reaches
  nodes (10.201.0.2 is the first), pods and Services.
- Claims of the default StorageClass `standard` are folders in DIR/volumes, in any access mode, that all nodes share. Only
  the group that a pod's fsGroup names may use them. They are deleted with the claim.
- No image is ever pulled. localhost/busybox:1 is there from the start.
- The node neither evicts pods nor deletes images because the disk fills up.
- DIR/log has what each process says, DIR/NODE/pods what the containers say, DIR/audit.log every request.

Needs root, cgroups and iproute2; installs what else it needs with apt-get, where that is there.
"""

import argparse
import sys
from pathlib import Path

from testcluster.binaries import build_for_cluster
from testcluster.cluster import down, status, up
from testcluster.errors import ClusterError, MachineError
from testcluster.images import load_archives
from testcluster.machine import prepare_machine
from testcluster.node import MAX_NODES, Node
from testcluster.node_lifecycle import run_node
from testcluster.processes import wait_for_end
from testcluster.volumes import provision


def main() -> int:
    """Runs one command and returns the exit status: 2 where this machine lacks something."""
    arguments = parse_arguments()
    try:
        if arguments.command == "build":
            prepare_machine()
            build_for_cluster()
            return 0
        state = arguments.state
        match arguments.command:
            case "up":
                up(state, arguments.nodes, arguments.timeout)
            case "load":
                load_archives(state, arguments.archives, arguments.node)
            case "down":
                if arguments.after:
                    wait_for_end(arguments.after)
                down(state)
            case "run-node":
                return run_node(Node(state, arguments.number), arguments.nodes, arguments.binaries)
            case "provision":
                provision(state, arguments.server)
            case _:
                return status(state)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2 if isinstance(error, MachineError) else 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line. `run-node` and `provision` are for this program itself."""
    description, details = (__doc__ or "").split("\n", 1)
    parser = argparse.ArgumentParser(
        "cluster", description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{build,up,load,status,down}")
    commands.add_parser("build")

    def add(name: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.add_argument("--state", type=lambda text: Path(text).resolve(), required=True, metavar="DIR")
        return command

    start = add("up")
    start.add_argument("--nodes", type=int, default=1, choices=range(1, MAX_NODES + 1), help="(default: 1)")
    start.add_argument("--timeout", type=float, default=120, help="seconds to become ready (default: 120)")
    load = add("load")
    load.add_argument("archives", nargs="+", metavar="ARCHIVE", help="a file, or - for stdin")
    load.add_argument("--node", action="append", default=[], help="only into this one; may be repeated")
    add("status")
    stop = add("down")
    stop.add_argument("--after", type=int, metavar="PID", help="wait for the end of this process first")
    node = add("run-node")
    node.add_argument("--number", type=int)
    node.add_argument("--nodes", type=int)
    node.add_argument("--binaries", type=Path)
    add("provision").add_argument("--server")
    return parser.parse_args()
