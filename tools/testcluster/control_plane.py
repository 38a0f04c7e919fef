"""A control plane as four plain processes."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from testcluster.binaries import CONTROL_PLANE, find_control_plane
from testcluster.certificates import make_pki, write_kubeconfig
from testcluster.client import Client, Object
from testcluster.errors import ClusterError
from testcluster.processes import Startup, command_line, end, reserve_port, running_pid, start, tail_of_logs

SERVICE_NETWORK = "10.96.0.0/16"

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # One line a request: RequestReceived would double the file and say nothing of the outcome.
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

Flags = Mapping[str, object]


@dataclass(frozen=True)
class Variant:
    """Where a control plane differs from one without nodes."""

    address: str = "127.0.0.1"
    """Where the API server listens. Pods cannot reach a loopback address."""
    provisioner: str = "kubernetes.io/host-path"
    """Who makes the volumes of the StorageClass `standard`. This one is in the controller-manager and needs no node."""
    users: Mapping[str, str] = field(default_factory=dict[str, str])
    """More client certificates: the name of the file, and the subject."""
    apiserver_flags: Flags = field(default_factory=dict[str, object])
    """More flags of the API server."""

    def server(self, port: int) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{port}"


def start_control_plane(state: Path, variant: Variant, port: int | None, timeout: float) -> str:
    """Starts a control plane, or resumes the one that the state folder holds. Leaves no process behind when that fails.

    Args:
        state: The state folder.
        variant: What is particular to it.
        port: Of the API server; None takes a free one.
        timeout: Seconds to become ready.

    Returns:
        The API server's URL.
    """
    if alive := [name for name in CONTROL_PLANE if running_pid(state, name)]:
        raise ClusterError(f"already running in {state}: {', '.join(alive)}; stop it first: down --state {state}")
    binaries = find_control_plane()
    for folder in ("log", "pids"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    make_pki(state / "pki", variant.address, variant.users)
    (state / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
    return variant.server(_start_on_free_ports(state, variant, binaries, port, timeout))


def stop_control_plane(state: Path) -> None:
    """Ends the four processes."""
    end(state, [name for name in CONTROL_PLANE if name != "etcd"])
    # The API server writes to it until its end, and would wait for it long.
    end(state, ["etcd"])


def _start_on_free_ports(state: Path, variant: Variant, binaries: Mapping[str, Path], wanted: int | None, timeout: float) -> int:
    """Starts everything and returns the API server's port. Tries twice: somebody may have taken a free port."""
    for last in (False, True):
        port = wanted or reserve_port()
        for name in ("kube-controller-manager", "kube-scheduler"):
            write_kubeconfig(state / f"{name}.kubeconfig", state / "pki", name, variant.server(port))
        try:
            _start_all(state, variant, binaries, port, timeout)
        except BaseException as error:
            stop_control_plane(state)
            if not isinstance(error, ClusterError):
                raise
            if last:
                raise ClusterError(f"{error}\n{tail_of_logs(state)}") from None
            print(f"control-plane: {error}; trying once more", file=sys.stderr)
        else:
            return port
    raise AssertionError("the last try returns or raises")


def _start_all(state: Path, variant: Variant, binaries: Mapping[str, Path], port: int, timeout: float) -> None:
    """Starts the four programs in the order of their needs, and returns when a pod could be created."""
    startup, client = Startup(state, timeout), Client(state)
    etcd, peer, controllers, scheduler = (reserve_port() for _ in range(4))

    def launch(name: str, flags: Flags) -> None:
        start(state, name, command_line(binaries[name], flags))

    launch("etcd", etcd_flags(state, etcd, peer))
    startup.wait("etcd was healthy", "etcd", lambda: client.healthy(f"http://127.0.0.1:{etcd}/health"))

    server = variant.server(port)
    launch("kube-apiserver", apiserver_flags(state, variant, port, etcd))
    startup.wait("the API server was ready", "kube-apiserver", lambda: client.request(f"{server}/readyz"))

    launch("kube-controller-manager", controller_manager_flags(state, controllers))
    launch("kube-scheduler", component_flags(state, "kube-scheduler", scheduler))
    storage, standard = f"{server}/apis/storage.k8s.io/v1/storageclasses", storage_class(variant.provisioner)
    startup.wait("the StorageClass was there", "kube-apiserver", lambda: client.request(storage, standard))
    # No pod can be created in a namespace before the controller-manager has made its service account.
    account = f"{server}/api/v1/namespaces/default/serviceaccounts/default"
    startup.wait("the default service account was there", "kube-controller-manager", lambda: client.request(account))
    for component, health in (("kube-controller-manager", controllers), ("kube-scheduler", scheduler)):
        url = f"https://127.0.0.1:{health}/healthz"
        startup.wait(f"{component} was healthy", component, partial(client.healthy, url))


# --- flags ---------------------------------------------------------------------------------------------------------


def etcd_flags(state: Path, client: int, peer: int) -> Flags:
    """A single member. Its disk is never flushed: a test's cluster need not survive a power cut, and it doubles the speed."""
    return {
        "data-dir": f"{state}/etcd",
        "listen-client-urls": f"http://127.0.0.1:{client}",
        "advertise-client-urls": f"http://127.0.0.1:{client}",
        "listen-peer-urls": f"http://127.0.0.1:{peer}",
        "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
        "initial-cluster": f"default=http://127.0.0.1:{peer}",
        "unsafe-no-fsync": "true",
    }


def apiserver_flags(state: Path, variant: Variant, port: int, etcd: int) -> Flags:
    """An API server with admission and authorization as a strict cluster has them."""
    pki = state / "pki"
    return {
        "etcd-servers": f"http://127.0.0.1:{etcd}",
        "bind-address": variant.address,
        "advertise-address": variant.address,
        "secure-port": port,
        # A Service's endpoints may not be loopback addresses, so the API server must not enter its own.
        "endpoint-reconciler-type": "none",
        "service-cluster-ip-range": SERVICE_NETWORK,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction,OwnerReferencesPermissionEnforcement",
        "client-ca-file": pki / "ca.crt",
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "service-account-key-file": pki / "sa.key",
        "service-account-signing-key-file": pki / "sa.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "audit-policy-file": state / "audit-policy.json",
        "audit-log-path": state / "audit.log",
        # In megabytes: one file, however long the tests run, because they read it whole.
        "audit-log-maxsize": 100_000,
        "allow-privileged": "true",
        # Without it an API server that is stopped waits a minute for open watches to end.
        "shutdown-watch-termination-grace-period": "1s",
        **variant.apiserver_flags,
    }


def component_flags(state: Path, name: str, port: int) -> Flags:
    """What controller-manager and scheduler share. Their default of 20 requests a second would hide our own speed."""
    return {
        "kubeconfig": state / f"{name}.kubeconfig",
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "leader-elect": "false",
        "kube-api-qps": 1000,
        "kube-api-burst": 2000,
    }


def controller_manager_flags(state: Path, port: int) -> Flags:
    """Every controller under its own service account, and the provisioner of volumes that needs no node."""
    pki = state / "pki"
    return {
        **component_flags(state, "kube-controller-manager", port),
        "use-service-account-credentials": "true",
        "service-account-private-key-file": pki / "sa.key",
        "root-ca-file": pki / "ca.crt",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "enable-hostpath-provisioner": "true",
    }


def storage_class(provisioner: str) -> Object:
    """The default StorageClass. Its volumes are made as soon as they are claimed, and deleted with the claim."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": provisioner,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }
