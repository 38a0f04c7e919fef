"""`tools/cluster`: pods really run on its node as they would elsewhere, and it leaves nothing behind."""

import io
import json
import os
import re
import signal
import subprocess
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration.control_plane import ControlPlane, KubectlError
from integration.node.conftest import run_cluster
from integration.node.machine import Machine

pytestmark = pytest.mark.e2e

USER = 1000


class Pods:
    """The pods of one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str, image: str) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.image = image

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Runs kubectl in the namespace."""
        return self.control_plane.kubectl("--namespace", self.namespace, *arguments, input=input)

    def create(self, kind: str, api_version: str, metadata: dict[str, Any], **rest: Any) -> None:
        """Creates any object."""
        body = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}
        self.kubectl("create", "--filename=-", input=json.dumps(body))

    def template(self, script: str, container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
        """The spec of a pod that meets the restricted Pod Security level and runs a shell script."""
        limits = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        main = {"name": "main", "image": self.image, "command": ["sh", "-c", script], "securityContext": limits}
        identity = {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
        defaults = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "securityContext": identity}
        return {**defaults, "containers": [main | (container or {})], **spec}

    def run(self, name: str, script: str, until: str, container: dict[str, Any] | None = None, **spec: Any) -> None:
        """Creates a pod and waits until its phase is `until`."""
        self.create("Pod", "v1", {"name": name, "labels": {"app": name}}, spec=self.template(script, container, **spec))
        self.wait(f"pod/{name}", f"jsonpath={{.status.phase}}={until}")

    def wait(self, what: str, condition: str) -> None:
        """Waits up to a minute for a condition, in the words of `kubectl wait`."""
        self.kubectl("wait", what, f"--for={condition}", "--timeout=60s")


@pytest.fixture
def pods(control_plane: ControlPlane, namespace: str, image: str) -> Pods:
    return Pods(control_plane, namespace, image)


@pytest.fixture
def own(control_plane: ControlPlane) -> Path:
    """The folder of the cluster, where it is ours."""
    if control_plane.state is None:
        pytest.skip("KUBECONFIG names a cluster of the user's")
    return control_plane.state


def node_names(control_plane: ControlPlane) -> list[str]:
    """The names of the nodes."""
    return control_plane.kubectl("get", "nodes", "--output=jsonpath={.items[*].metadata.name}").split()


def on(node: str) -> dict[str, Any]:
    """The part of a pod's spec that has it run on one node."""
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


def test_a_pod_runs_and_its_log_a_command_and_a_file_can_be_had(pods: Pods, tmp_path: Path) -> None:
    pods.run("talker", "echo said; sleep 600", until="Running")
    assert pods.kubectl("logs", "talker") == "said\n"
    assert pods.kubectl("exec", "talker", "--", "id", "-u") == f"{USER}\n"
    pods.kubectl("exec", "talker", "--", "sh", "-c", "echo kept > /tmp/file")
    pods.kubectl("cp", "talker:/tmp/file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == "kept\n"


def test_a_port_can_be_forwarded(pods: Pods) -> None:
    pods.run("server", "echo served > /tmp/page; httpd -f -p 8080 -h /tmp", until="Running")
    base = [pods.control_plane.kubectl_binary, "--kubeconfig", pods.control_plane.kubeconfig]
    command = [*base, "--namespace", pods.namespace, "port-forward", "pod/server", ":8080"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forwarding:
        assert forwarding.stdout is not None
        port = re.search(r"127\.0\.0\.1:(\d+)", forwarding.stdout.readline())
        assert port is not None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/page", timeout=10) as page:
                assert page.read() == b"served\n"
        finally:
            forwarding.terminate()


def test_pods_of_two_nodes_share_a_claim_that_goes_when_it_is_deleted(pods: Pods, own: Path) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    pods.create("PersistentVolumeClaim", "v1", {"name": "ledger"}, spec=spec)
    volume = {"name": "ledger", "persistentVolumeClaim": {"claimName": "ledger"}}
    mount = {"volumeMounts": [{"name": "ledger", "mountPath": "/ledger"}]}
    first, second = node_names(pods.control_plane)
    rest = {"container": mount, "volumes": [volume]}
    pods.run("writer", "echo shared > /ledger/file; sleep 600", until="Running", **rest, **on(first))
    pods.run("reader", "cat /ledger/file; touch /ledger/also", until="Succeeded", **rest, **on(second))
    assert pods.kubectl("logs", "reader") == "shared\n"
    (folder,) = (path for path in (own / "volumes").iterdir() if (path / "also").exists())
    # root's, and the fsGroup's
    assert (folder.stat().st_uid, folder.stat().st_gid, oct(folder.stat().st_mode & 0o777)) == (0, USER, "0o770")

    name = pods.kubectl("get", "pvc", "ledger", "--output=jsonpath={.spec.volumeName}")
    pods.kubectl("delete", "pod", "writer", "reader", "--now")
    pods.kubectl("delete", "pvc", "ledger")
    pods.wait(f"pv/{name}", "delete")
    assert not folder.exists()


def test_a_pod_finds_a_service_by_name_and_reaches_its_pod(pods: Pods) -> None:
    nodes = node_names(pods.control_plane)
    pods.run("web", "echo served > /tmp/page; httpd -f -p 8080 -h /tmp", until="Running", **on(nodes[0]))
    ports = [{"port": 80, "targetPort": 8080}]
    pods.create("Service", "v1", {"name": "web"}, spec={"selector": {"app": "web"}, "ports": ports})
    address = pods.kubectl("get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    script = "until wget -q -O - http://web/page; do sleep 0.2; done; nslookup web.$NAMESPACE.svc.cluster.local"
    namespace = {"name": "NAMESPACE", "value": pods.namespace}
    pods.run("client", script, until="Succeeded", container={"env": [namespace]}, **on(nodes[-1]))
    log = pods.kubectl("logs", "client")
    assert "served\n" in log
    assert f"Address: {address}\n" in log


def test_a_pod_reaches_itself_through_its_own_service(pods: Pods) -> None:
    ports = [{"port": 80, "targetPort": 8080}]
    pods.create("Service", "v1", {"name": "web"}, spec={"selector": {"app": "server"}, "ports": ports})
    script = "echo served > /tmp/page; httpd -p 8080 -h /tmp; until wget -q -O - http://web/page; do sleep 0.2; done"
    pods.run("server", script, until="Succeeded")
    assert "served\n" in pods.kubectl("logs", "server")


def test_a_pod_reaches_the_api_server(pods: Pods) -> None:
    pods.run("caller", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc kubernetes.default.svc 443", until="Succeeded")
    assert "Client sent an HTTP request to an HTTPS server" in pods.kubectl("logs", "caller")


def test_a_container_over_its_memory_limit_is_killed(pods: Pods) -> None:
    limit = {"resources": {"limits": {"memory": "32Mi"}}}
    pods.run("greedy", "dd if=/dev/zero of=/dev/null bs=256M", until="Failed", container=limit)
    ended = pods.kubectl("get", "pod", "greedy", "--output=jsonpath={.status.containerStatuses[0].state.terminated.reason}")
    assert ended == "OOMKilled"


def test_an_evicted_pod_ends(pods: Pods) -> None:
    pods.run("evicted", "sleep 600", until="Running")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted", "namespace": pods.namespace}}
    path = f"/api/v1/namespaces/{pods.namespace}/pods/evicted/eviction"
    pods.kubectl("create", "--raw", path, "--filename=-", input=json.dumps(eviction))
    pods.wait("pod/evicted", "delete")


def test_a_pod_of_a_drained_node_moves_and_waits_where_no_node_is_left(pods: Pods, own: Path) -> None:
    template = {"metadata": {"labels": {"app": "moved"}}, "spec": pods.template("sleep 600", restartPolicy="Always")}
    spec = {"selector": {"matchLabels": {"app": "moved"}}, "template": template}
    pods.create("Deployment", "apps/v1", {"name": "moved"}, spec=spec)
    pods.wait("deployment/moved", "condition=Available")
    try:
        seen: list[str] = []
        for _ in node_names(pods.control_plane):
            seen.append(pods.kubectl("get", "pods", "--output=jsonpath={.items[*].spec.nodeName}"))
            pods.kubectl("drain", seen[-1], "--pod-selector=app=moved", "--timeout=60s")
            if len(seen) == 1:
                pods.kubectl("wait", "pod", "--selector=app=moved", "--for=condition=Ready", "--timeout=60s")
        assert sorted(seen) == node_names(pods.control_plane)
        phases = "--for=jsonpath={.status.phase}=Pending"
        pods.kubectl("wait", "pod", "--selector=app=moved", phases, "--timeout=60s")
    finally:
        pods.kubectl("uncordon", *node_names(pods.control_plane))
    pods.wait("deployment/moved", "condition=Available")


def test_a_pod_that_is_not_restricted_is_refused(pods: Pods) -> None:
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        pods.kubectl("run", "root", f"--image={pods.image}")


def rename_image(archive: Path, name: str, renamed: Path) -> None:
    """Writes an archive of the same image under another name."""
    with tarfile.open(archive) as old, tarfile.open(renamed, "w") as new:
        for entry in old.getmembers():
            file = old.extractfile(entry)
            assert file is not None
            content = file.read()
            if entry.name == "manifest.json":
                content = json.dumps([json.loads(content)[0] | {"RepoTags": [name]}]).encode()
                entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))


def test_an_image_can_be_loaded_from_a_file_and_from_stdin(pods: Pods, own: Path, tmp_path: Path) -> None:
    for name in ("file", "stdin"):
        archive = tmp_path / f"{name}.tar"
        rename_image(own / "busybox.tar", f"localhost/{name}:1", archive)
        with archive.open("rb") as content:
            loaded = run_cluster("load", "--state", own, archive if name == "file" else "-", stdin=content)
        assert loaded.returncode == 0, loaded.stderr
        pods.run(name, "echo loaded", until="Succeeded", container={"image": f"localhost/{name}:1", "imagePullPolicy": "Never"})


def test_the_same_folder_cannot_be_started_twice(own: Path) -> None:
    again = run_cluster("up", "--state", own)
    assert again.returncode == 2
    assert f"tools/cluster down --state {own}" in again.stderr
    assert run_cluster("status", "--state", own).returncode == 0


def test_down_leaves_nothing_and_up_resumes(pods: Pods, own: Path, machine: Machine) -> None:
    pods.kubectl("create", "configmap", "kept")
    pods.run("left", "sleep 600", until="Running", restartPolicy="Always")
    pids = [int(path.read_text()) for path in (own / "pids").iterdir()]
    processes = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    assert "kubelet" in [process.name() for process in processes]
    stopped = run_cluster("down", "--state", own)
    assert stopped.returncode == 0, stopped.stderr
    # An ended process stays a zombie until the machine's first process looks.
    assert [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert Machine.look(own).added_since(machine) == {}
    assert run_cluster("status", "--state", own).returncode == 1

    started = run_cluster("up", "--state", own, "--nodes", "2")
    assert started.returncode == 0, started.stderr
    assert "configmap/kept" in pods.kubectl("get", "configmap", "--output=name")
    pods.wait("pod/left", "condition=Ready")
    pods.run("new", "true", until="Succeeded")


def test_up_resumes_after_all_processes_were_killed(pods: Pods, own: Path) -> None:
    for path in (own / "pids").iterdir():
        os.kill(int(path.read_text()), signal.SIGKILL)
    started = run_cluster("up", "--state", own, "--nodes", "2")
    assert started.returncode == 0, started.stderr
    pods.run("new", "true", until="Succeeded")
