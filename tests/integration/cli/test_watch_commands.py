"""The commands that look at a run, with a real API server between them and what the test says for a node."""

import asyncio
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from kubernetes.aio import client, config

from integration.cli.conftest import Command
from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit, Waiting
from integration.operator.cluster import Cluster, spin_run
from integration.operator.process import Process
from spinrun_protocol.termination import TerminationMessage

pytestmark = pytest.mark.cluster

LOGS = {
    "trainer": "loading\ntrained\n",
    "agent": "serving\n",
    "vllm": "ready\n",
    "spinrun": '{"window": 3, "version": 3, "numPrompts": 64, "prompts": []}\n',
}
"""What each container prints."""
DONE = TerminationMessage(result="Complete", reason="Completed", message="12 windows done", exit_code=0, window=12, accuracy=0.75)


@pytest.fixture
async def container_logs(control_plane: ControlPlane, fake_kubelet: FakeKubelet, tmp_path: Path) -> AsyncIterator[None]:
    """The part of a kubelet that has the logs of containers, for both nodes: the API server asks it over HTTPS."""
    certificate, key = tmp_path / "kubelet.crt", tmp_path / "kubelet.key"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=kubelet",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def log(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for piece in LOGS[request.match_info["container"]].split(" "):
            await response.write(f"{piece} ".encode() if not piece.endswith("\n") else piece.encode())
            await asyncio.sleep(0.01)
        return response

    application = web.Application()
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", log)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    async with await config.new_client_from_config(str(control_plane.kubeconfig)) as api:
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }
        for node in fake_kubelet.nodes:
            body = [{"op": "add", "path": f"/status/{name}", "value": value} for name, value in status.items()]
            await client.CoreV1Api(api).patch_node_status(node, body, _content_type="application/json-patch+json")
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def running(
    cluster: Cluster,
    operator: Process,
    fake_kubelet: FakeKubelet,
    container_logs: None,
    spinrun: Command,
    tmp_path: Path,
) -> Cluster:
    """A namespace, of the restricted security level, in which the run demo is at work."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(spin_run()))
    assert (await spinrun("submit", str(path))).code == 0
    await cluster.until_phase("Running")
    return cluster


async def readers(cluster: Cluster) -> list[str]:
    """The pods that read a ledger."""
    return [pod["metadata"]["name"] for pod in await cluster.find("Pod") if "-look-" in pod["metadata"]["name"]]


async def begun(*arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """A command that keeps running, and the first line that it has printed."""
    command = (sys.executable, "-m", "spinrun_cli.main", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode()


async def test_ledger_is_read_by_a_pod_that_a_restricted_namespace_admits(
    running: Cluster, fake_kubelet: FakeKubelet, spinrun: Command
) -> None:
    fake_kubelet.script(Exit(0, after=0.5), name="demo-look-*")
    ended = await spinrun("samples", "demo", "--window", "3", "--limit", "1")
    assert (ended.code, ended.out, ended.error) == (0, "window 3, sampled from version 3: 0 of 64 prompts\n", "")
    assert await readers(running) == []
    assert (await running.status())["phase"] == "Running"


async def test_error_of_the_command_beside_the_ledger_is_this_ones(
    running: Cluster, fake_kubelet: FakeKubelet, spinrun: Command
) -> None:
    fake_kubelet.script(Exit(2, message="error: there is no window 9: it holds 0 to 4"), name="demo-look-*")
    ended = await spinrun("samples", "demo", "--window", "9")
    assert (ended.code, ended.error) == (2, "error: there is no window 9: it holds 0 to 4\n")
    assert await readers(running) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_command_leaves_no_pod(
    running: Cluster,
    control_plane: ControlPlane,
    fake_kubelet: FakeKubelet,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    fake_kubelet.script(Waiting("ContainerCreating"), name="demo-look-*")
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    command = (sys.executable, "-m", "spinrun_cli.main", "samples", "demo", "-n", running.namespace)
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    await running.until("a pod reads the ledger", lambda: readers(running))
    process.send_signal(number)
    _, error = await process.communicate()
    assert (process.returncode, error) == (128 + number, b"")

    async def gone() -> bool:
        return not await readers(running)

    await running.until("the pod is gone", gone, seconds=5)


async def test_watch_logs_and_events_follow_a_run_to_its_end(
    running: Cluster, control_plane: ControlPlane, fake_kubelet: FakeKubelet, spinrun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    watch, first_document = await begun("watch", "demo", "-o", "json", "-n", running.namespace)
    follow, first_line = await begun("logs", "demo", "--follow", "-n", running.namespace)
    fake_kubelet.script(Exit(0, message=DONE.model_dump_json(by_alias=True)), name="demo-trainer-1-*")
    await running.until_phase("Complete")

    watched, followed = [(await process.communicate())[0].decode() for process in (watch, follow)]
    documents = [json.loads(line) for line in [first_document, *watched.splitlines()]]
    assert watch.returncode == 0
    assert (documents[0]["phase"], documents[-1]["outcome"]["result"]) == ("Running", "Complete")
    assert any("TrainerStarted" in line for line in documents[-1]["news"])

    lines = {first_line.strip(), *followed.splitlines()}
    trainer = next(line for line in lines if line.endswith("trained")).removesuffix(" trained")
    assert follow.returncode == 0
    assert lines == {f"{trainer} loading", f"{trainer} trained", "[demo-rollout-0 agent] serving", "[demo-rollout-0 vllm] ready"}
    printed = await spinrun("logs", "demo", "--rank", "0")
    assert (printed.code, printed.out) == (0, LOGS["trainer"])

    items = json.loads((await spinrun("events", "demo", "-o", "json")).out)["items"]
    assert [item["time"] for item in items] == sorted(item["time"] for item in items)
    told = {(item["object"].partition("-")[0], item["reason"]) for item in items}
    assert told >= {("SpinRun/demo", "TrainerStarted"), ("SpinRun/demo", "Completed"), ("Job/demo", "SuccessfulCreate")}
