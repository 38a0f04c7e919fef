"""A real Kubernetes control plane, as four plain processes on 127.0.0.1, for tests.

    tools/control-plane build                          # what `up` would build, if it is not there yet: minutes
    tools/control-plane up --state DIR [--port PORT]   # DIR/kubeconfig is then a cluster administrator's
    tools/control-plane status --state DIR
    tools/control-plane down --state DIR               # `up` on the same DIR resumes the same cluster
    tools/control-plane down --state DIR --after PID   # once that process has ended, however it ended

There is no node, so pods do not run: tests/integration/fake_kubelet.py plays that part. What a test may rely on:

- Every port is free and on 127.0.0.1, so many control planes live side by side.
- DIR/audit.log has one JSON line for every request (level Metadata); DIR/log/ has what each process says.
- Claims of the default StorageClass `standard` are bound to a folder under /tmp/hostpath_pv, in any access mode.
- Pod Security is enforced where a namespace's labels ask for it; blockOwnerDeletion asks for the right to finalize the
  owner, as on OpenShift.

tools/cluster adds nodes to it. Binaries come from $KUBEBUILDER_ASSETS where they are there, else from tools/build.sh.
Needs only the standard library, openssl and Linux's /proc.
"""

import argparse
import sys
from pathlib import Path

from testcluster.binaries import CONTROL_PLANE, find_control_plane
from testcluster.certificates import write_kubeconfig
from testcluster.control_plane import Variant, start_control_plane, stop_control_plane
from testcluster.errors import ClusterError
from testcluster.processes import print_status, running_pids, wait_for_end


def main() -> int:
    """Runs one command and returns the exit status."""
    arguments = parse_arguments()
    try:
        match arguments.command:
            case "build":
                find_control_plane()
            case "up":
                up(arguments.state, arguments.port, arguments.timeout)
            case "down":
                if arguments.after:
                    wait_for_end(arguments.after)
                stop_control_plane(arguments.state)
            case _:
                return print_status(running_pids(arguments.state, CONTROL_PLANE))
    except ClusterError as error:
        print(f"control-plane: {error}", file=sys.stderr)
        return 1
    return 0


def up(state: Path, port: int | None, timeout: float) -> None:
    """Starts a control plane without nodes."""
    server = start_control_plane(state, Variant(), port, timeout)
    # Last, so that whoever waits for the file finds a control plane that serves.
    write_kubeconfig(state / "kubeconfig", state / "pki", "admin", server)
    print(f"export KUBECONFIG={state}/kubeconfig")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    description, details = (__doc__ or "").split("\n", 1)
    parser = argparse.ArgumentParser(
        "control-plane", description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build")
    for name in ("up", "down", "status"):
        command = commands.add_parser(name)
        command.add_argument("--state", type=lambda text: Path(text).resolve(), required=True, metavar="DIR")
        if name == "up":
            command.add_argument("--port", type=int, help="of the API server (default: a free one)")
            command.add_argument("--timeout", type=float, default=60, help="seconds to become ready (default: 60)")
        elif name == "down":
            command.add_argument("--after", type=int, metavar="PID", help="wait for the end of this process first")
    return parser.parse_args()
