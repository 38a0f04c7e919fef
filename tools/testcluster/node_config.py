"""The configuration of what runs in a node."""

from testcluster.cgroups import CGROUP
from testcluster.client import Object
from testcluster.errors import MachineError
from testcluster.images import IMAGES
from testcluster.machine import cni_plugins
from testcluster.network import DNS_ADDRESS, POD_NETWORK
from testcluster.node import Node

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


def containerd_config(node: Node) -> str:
    """containerd's configuration, which all versions since 1.5 read."""
    if (plugins := cni_plugins()) is None:
        raise MachineError("the CNI plugins were removed while the node started")
    return f"""\
version = 2
root = "{node.folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{node.folder}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGES[0]}"
  # A machine that is a container or a small virtual machine may not lower a score; then no pod would start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "/run/cni/conf"
"""


def cni_config(node: Node) -> Object:
    """A cable for each pod, and no bridge: between pods of one bridge, replies of a Service would bypass its translation."""
    addresses = {
        "type": "host-local",
        "dataDir": "/run/cni/addresses",
        "ranges": [[{"subnet": node.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [{"type": "ptp", "ipam": addresses}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}


def kubelet_config(node: Node) -> Object:
    """The kubelet's configuration; every folder is the node's own."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": f"{node.state}/pki/ca.crt"},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}/{node.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": "",
        "podLogsDir": f"{node.folder}/pods",
        "volumePluginDir": f"{node.folder}/kubelet/volume-plugins",
        # A machine that builds large images is often nearly full, and all its nodes share the disk.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
    }


def proxy_config(node: Node) -> Object:
    """kube-proxy's configuration; it leaves alone the settings of connection tracking, which are the machine's."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{node.state}/kube-proxy.kubeconfig"},
        "hostnameOverride": node.name,
        "clusterCIDR": POD_NETWORK,
        "mode": "iptables",
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
