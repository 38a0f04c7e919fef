"""DNS for pods: CoreDNS on this machine's end of the bridge, behind the Service `kube-system/kube-dns`."""

from pathlib import Path

from testcluster.client import Object
from testcluster.network import DNS_ADDRESS, DNS_PORT, HOST_ADDRESS


def dns_config(state: Path, ready: int) -> str:
    """CoreDNS's configuration: names of the cluster only. It answers on this machine's end of the bridge."""
    return f"""\
.:{DNS_PORT} {{
    bind {HOST_ADDRESS}
    errors
    ready 127.0.0.1:{ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {state}/coredns.kubeconfig
        pods insecure
    }}
}}
"""


def dns_objects() -> list[tuple[str, Object]]:
    """What makes CoreDNS a Service of the cluster, and what it may read there; each with its path."""
    ports = [{"name": f"dns-{protocol.lower()}", "protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
        "spec": {"clusterIP": DNS_ADDRESS, "ports": ports},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [HOST_ADDRESS], "conditions": {"ready": True}}],
        "ports": ports,
    }
    reader = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "coredns"}],
    }
    return [
        ("apis/rbac.authorization.k8s.io/v1/clusterrolebindings", reader),
        ("api/v1/namespaces/kube-system/services", service),
        ("apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", endpoints),
    ]
