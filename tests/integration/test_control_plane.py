"""`tools/control-plane`: what the other tests rely on, and that it leaves nothing behind."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.aio import client, config

from integration.control_plane import TOOLS, ControlPlane, KubectlError
from integration.fake_kubelet import FakeKubelet

pytestmark = pytest.mark.cluster

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOLS / "control-plane", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def server_of(control_plane: ControlPlane) -> str:
    return control_plane.kubectl("config", "view", "--output=jsonpath={.clusters[0].cluster.server}")


def listening_addresses(pid: int) -> set[str]:
    """The addresses on which a process accepts TCP connections, as the kernel writes them, of both families."""
    process = Path("/proc", str(pid))
    inodes = set(re.findall(r"socket:\[(\d+)\]", " ".join(str(fd.readlink()) for fd in (process / "fd").iterdir())))
    lines = "".join((process / "net" / family).read_text() for family in ("tcp", "tcp6")).splitlines()
    listening = [line.split() for line in lines if " 0A " in line]
    return {fields[1].partition(":")[0] for fields in listening if fields[9] in inodes}


def is_running(pid: int) -> bool:
    """Whether the process lives; one that has ended stays a zombie until the machine's first process looks."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


@pytest.fixture
def own(control_plane: ControlPlane) -> ControlPlane:
    """The control plane of this session, where it is ours."""
    if control_plane.state is None:
        pytest.skip("KUBECONFIG names a cluster of the user's")
    return control_plane


@pytest.fixture
def second(own: ControlPlane, tmp_path: Path) -> Iterator[ControlPlane]:
    """Another control plane beside the session's."""
    state = tmp_path / "second"
    started = run("up", "--state", state)
    assert started.returncode == 0, started.stderr
    yield ControlPlane(state / "kubeconfig", own.kubectl_binary, state)
    run("down", "--state", state)


def test_kubectl_raises_with_the_message_of_the_server(control_plane: ControlPlane) -> None:
    with pytest.raises(KubectlError, match='namespaces "nowhere" not found'):
        control_plane.kubectl("get", "namespace", "nowhere")


async def test_the_kubeconfig_makes_the_python_client_an_administrator(control_plane: ControlPlane) -> None:
    async with await config.new_client_from_config(str(control_plane.kubeconfig)) as api:
        rule = client.V1ResourceAttributes(group="*", resource="*", verb="*")
        review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=rule))
        answer = await client.AuthorizationV1Api(api).create_self_subject_access_review(review)
    assert answer.status is not None
    assert answer.status.allowed


def test_a_pod_that_is_not_restricted_is_refused(control_plane: ControlPlane, namespace: str) -> None:
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        control_plane.kubectl("run", "root", "--image=example.test/image", "--namespace", namespace)


def test_a_claim_that_many_may_write_is_bound(own: ControlPlane, namespace: str) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "ledger"}, "spec": spec}
    own.kubectl("apply", "--namespace", namespace, "--filename=-", input=json.dumps(claim))
    own.kubectl("wait", "--namespace", namespace, "pvc/ledger", "--for=jsonpath={.status.phase}=Bound", "--timeout=20s")


def test_the_audit_log_names_user_verb_and_object_of_a_request(own: ControlPlane, namespace: str) -> None:
    own.kubectl("create", "configmap", "seen", "--namespace", namespace)
    lines = [json.loads(line) for line in (own.folder / "audit.log").read_text().splitlines() if namespace in line]
    (event,) = [line for line in lines if line["objectRef"].get("resource") == "configmaps" and line["verb"] == "create"
                and line["objectRef"]["name"] == "seen"]  # fmt: skip
    assert (event["user"]["username"], event["responseStatus"]["code"]) == ("admin", 201)


def test_every_process_listens_on_loopback_only(own: ControlPlane) -> None:
    pids = {name: int((own.folder / "pids" / name).read_text()) for name in PROGRAMS}
    assert {name: listening_addresses(pid) for name, pid in pids.items()} == {name: {"0100007F"} for name in PROGRAMS}


def test_two_control_planes_know_nothing_of_each_other(own: ControlPlane, second: ControlPlane, namespace: str) -> None:
    assert server_of(own) != server_of(second)
    assert namespace not in second.kubectl("get", "namespaces", "--output=name")


def test_down_leaves_no_process(second: ControlPlane) -> None:
    pids = [int((second.folder / "pids" / name).read_text()) for name in PROGRAMS]
    assert run("status", "--state", second.folder).returncode == 0
    assert run("down", "--state", second.folder).returncode == 0
    assert [pid for pid in pids if is_running(pid)] == []
    status = run("status", "--state", second.folder)
    assert status.returncode == 1
    assert status.stdout.count("not running") == 4


def test_a_control_plane_that_runs_is_not_started_again(own: ControlPlane) -> None:
    again = run("up", "--state", own.folder)
    assert again.returncode == 1
    assert "already running" in again.stderr
    assert run("status", "--state", own.folder).returncode == 0


def test_a_start_that_fails_shows_the_logs_and_leaves_no_process(own: ControlPlane, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failed = run("up", "--state", tmp_path, "--port", str(taken.getsockname()[1]))
    assert failed.returncode == 1
    assert "kube-apiserver ended before the API server was ready" in failed.stderr
    assert "address already in use" in failed.stderr
    assert run("status", "--state", tmp_path).stdout.count("not running") == 4


async def test_a_cluster_continues_after_a_restart_and_its_kubelet_with_it(second: ControlPlane) -> None:
    second.kubectl("create", "configmap", "kept")
    port = server_of(second).rpartition(":")[2]
    async with FakeKubelet(second.kubeconfig):
        await second.kubectl_async("run", "before", "--image=example.test/image")
        await second.kubectl_async("wait", "pod/before", "--for=condition=Ready", "--timeout=30s")
        run("down", "--state", second.folder)
        restarted = run("up", "--state", second.folder, "--port", port)
        assert restarted.returncode == 0, restarted.stderr
        await second.kubectl_async("run", "after", "--image=example.test/image")
        await second.kubectl_async("wait", "pod/after", "--for=condition=Ready", "--timeout=30s")
        assert "configmap/kept" in await second.kubectl_async("get", "configmaps", "--output=name")


def test_a_control_plane_ends_with_the_process_that_it_was_made_for(second: ControlPlane) -> None:
    with subprocess.Popen(["sleep", "60"]) as owner:
        guard = subprocess.Popen([TOOLS / "control-plane", "down", "--state", second.folder, "--after", str(owner.pid)])
        time.sleep(1)
        assert run("status", "--state", second.folder).returncode == 0
        owner.send_signal(signal.SIGKILL)
    assert guard.wait(timeout=30) == 0
    assert run("status", "--state", second.folder).returncode == 1
