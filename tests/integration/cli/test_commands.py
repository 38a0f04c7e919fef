"""A run from `spinrun submit` to `spinrun delete`, and what the real API server says to what it does not take."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
import yaml

from integration.cli.conftest import Command, execute
from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit
from integration.operator.cluster import Cluster, spin_run
from integration.operator.process import Process
from spinrun_protocol.termination import TerminationMessage

pytestmark = pytest.mark.cluster

NAME = "spinruns.spinrun.dev/demo"


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    """A file with a valid run."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(spin_run()))
    return str(path)


def termination_message(result: str, reason: str, message: str, code: int) -> str:
    """A termination message as the trainer writes it."""
    words = {"result": result, "reason": reason, "message": message, "exit_code": code, "window": 12, "accuracy": 0.75}
    return TerminationMessage.model_validate(words).model_dump_json(by_alias=True)


async def test_run_lives_from_submit_to_delete(
    cluster: Cluster, operator: Process, fake_kubelet: FakeKubelet, spinrun: Command, run_file: str
) -> None:
    fake_kubelet.script(Exit(0, after=3600), name="demo-trainer-*", on_delete=Exit(3))
    created = await spinrun("submit", run_file)
    assert (created.code, created.error) == (0, "")
    assert created.out == f"{NAME} created\n  to follow it: spinrun watch demo -n {cluster.namespace}\n"
    await cluster.until_phase("Running")

    headings, row = (await spinrun("get")).out.splitlines()
    assert headings.split() == ["NAME", "PHASE", "WINDOW", "STEP", "ACCURACY", "ROLLOUTS", "VERSION", "ATTEMPT", "AGE"]
    assert row.split()[:2] == ["demo", "Running"]
    shown = (await spinrun("get", "demo")).out
    assert f"Namespace:  {cluster.namespace}" in shown
    assert "Rollouts:   1 of 1 ready" in shown
    assert "Attempt:    1, with 0 of 6 failures used up" in shown
    lines = {tuple(line.split()[:3]) for line in shown.splitlines()}
    assert lines >= {("Ready", "True", "Running"), ("demo-rollout-0", "Running", "2/2")}
    assert "TrainerStarted" in shown

    suspended = await spinrun("suspend", "demo", "--wait", "--timeout", "60")
    assert (suspended.code, suspended.error, suspended.out.splitlines()[0]) == (0, "", f"{NAME} suspended")
    assert not await cluster.pods("trainer")
    assert (await spinrun("suspend", "demo")).out == f"{NAME} suspended already\n"
    resumed = await spinrun("resume", "demo", "--wait", "--timeout", "60")
    assert (resumed.code, resumed.out.splitlines()[0]) == (0, f"{NAME} resumed")
    assert (await cluster.status())["attempt"] == 2

    fake_kubelet.script(
        Exit(0, message=termination_message("Complete", "Completed", "12 windows done", 0)), name="demo-trainer-2-*"
    )
    await cluster.until_phase("Complete")
    again = await spinrun("submit", run_file)
    assert again.out.splitlines()[0] == f"{NAME} unchanged"
    assert "to train again, delete it first" in again.out
    folder = f"{cluster.namespace}/demo-{(await cluster.get('SpinRun', 'demo') or {})['metadata']['uid'][:8]}"
    deleted = await spinrun("delete", "demo", "--wait", "--timeout", "60")
    assert (deleted.code, deleted.error) == (0, "")
    claim = f"claim demo-ledger, folder {folder}"
    assert deleted.out.splitlines() == [
        f"{NAME} deleted",
        f"  its ledger stays on {claim}; to delete it: kubectl delete pvc demo-ledger -n {cluster.namespace}",
        "  all its pods are gone",
    ]
    assert await cluster.get("PersistentVolumeClaim", "demo-ledger")
    gone = await spinrun("get", "demo")
    assert gone.code == 1
    assert f"there is no SpinRun demo in namespace {cluster.namespace}" in gone.error


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        pytest.param(
            Exit(0, message=termination_message("Complete", "Completed", "12 windows done", 0)),
            0,
            "demo: Complete (Completed): 12 windows done",
            id="complete",
        ),
        pytest.param(
            Exit(2, message=termination_message("Failed", "InvalidConfiguration", "no such model: /models/tiny", 2)),
            1,
            "no such model: /models/tiny",
            id="failed",
        ),
    ],
)
async def test_submit_that_waits_exits_as_the_run_ends(
    operator: Process, fake_kubelet: FakeKubelet, spinrun: Command, run_file: str, end: Exit, code: int, line: str
) -> None:
    fake_kubelet.script(end, name="demo-trainer-1-*")
    ended = await spinrun("submit", run_file, "--wait", "--timeout", "90")
    assert (ended.code, ended.error) == (code, "")
    assert line in ended.out.splitlines()[-1]


async def test_second_submission_changes_what_the_file_changed_and_nothing_else(
    cluster: Cluster, spinrun: Command, run_file: str
) -> None:
    await spinrun("submit", run_file, "--set", "spec.rollout.replicas=3")
    assert (await spinrun("submit", run_file, "--set", "spec.rollout.replicas=3")).out.startswith(f"{NAME} unchanged\n")
    await cluster.change_spec("demo", lifecycle={"activeDeadlineSeconds": 60})
    assert (await spinrun("submit", run_file)).out.startswith(f"{NAME} configured\n")
    run = await cluster.get("SpinRun", "demo") or {}
    assert run["spec"]["rollout"]["replicas"] == 1
    assert run["spec"]["lifecycle"]["activeDeadlineSeconds"] == 60


async def test_submission_does_not_undo_a_suspension_unasked(cluster: Cluster, spinrun: Command, run_file: str) -> None:
    running = ("submit", run_file, "--set", "spec.lifecycle.suspend=false")
    await spinrun(*running)
    await spinrun("suspend", "demo")
    refused = await spinrun(*running)
    assert refused.code == 1
    assert 'conflict with "spinrun-suspend"' in refused.error
    assert (await cluster.get("SpinRun", "demo") or {})["spec"]["lifecycle"]["suspend"] is True
    assert (await spinrun(*running, "--force-conflicts")).code == 0
    assert (await cluster.get("SpinRun", "demo") or {})["spec"]["lifecycle"]["suspend"] is False


async def test_dry_run_on_the_server_keeps_nothing(cluster: Cluster, spinrun: Command, run_file: str) -> None:
    assert (await spinrun("submit", run_file, "--dry-run=server")).out == f"{NAME} created (server dry run)\n"
    assert await cluster.find("SpinRun") == []


async def test_what_the_api_server_refuses_is_shown_with_field_and_message(
    cluster: Cluster, spinrun: Command, run_file: str
) -> None:
    await spinrun("submit", run_file)
    created = await cluster.get("SpinRun", "demo") or {}
    await cluster.api.replace_status(created | {"status": {"startTime": "2026-01-01T00:00:00Z"}})
    refused = await spinrun("submit", run_file, "--set", "spec.method.beta=0.2")
    assert refused.code == 2
    assert "rejected SpinRun demo" in refused.error
    assert "spec.method: " in refused.error
    assert "spec.method cannot change once the run has started: make a new SpinRun" in refused.error


async def test_output_of_get_can_be_submitted_again(cluster: Cluster, spinrun: Command, run_file: str) -> None:
    await spinrun("submit", run_file)
    document = (await spinrun("get", "demo", "-o", "yaml")).out
    assert (await spinrun("submit", "-", stdin=document)).out.startswith(f"{NAME} unchanged\n")
    copy = await spinrun("submit", "-", "--set", "metadata.name=copy", stdin=document)
    assert copy.out.startswith("spinruns.spinrun.dev/copy created\n")
    listed = json.loads((await spinrun("get", "-o", "json")).out)
    assert [run["metadata"]["name"] for run in listed["items"]] == ["copy", "demo"]
    specs = [run["spec"] for run in listed["items"]]
    assert specs[0] == specs[1]


async def test_watch_prints_a_row_for_each_change(cluster: Cluster, control_plane: ControlPlane) -> None:
    await cluster.create(spin_run())
    command = (sys.executable, "-m", "spinrun_cli.main", "get", "--watch", "-n", cluster.namespace)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert (await process.stdout.readline()).startswith(b"NAME")
            assert (await process.stdout.readline()).split()[0] == b"demo"
            created = await cluster.get("SpinRun", "demo") or {}
            await cluster.api.replace_status(created | {"status": {"phase": "Running", "window": 3}})
            assert (await process.stdout.readline()).split()[:3] == [b"demo", b"Running", b"3"]
    finally:
        process.kill()
        await process.wait()


async def test_kubectl_finds_the_plugin(cluster: Cluster, control_plane: ControlPlane, tmp_path: Path, run_file: str) -> None:
    plugin = tmp_path / "kubectl-spinrun"
    # What an installation of the package puts into PATH.
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -m spinrun_cli.kubectl_plugin "$@"\n')
    plugin.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "KUBECONFIG": str(control_plane.kubeconfig)}
    kubectl = (str(control_plane.kubectl_binary), "spinrun")
    assert (await execute(*kubectl, "validate", run_file, **environment)).out == f"{run_file}: OK (demo)\n"
    submitted = await execute(*kubectl, "submit", run_file, "-n", cluster.namespace, **environment)
    assert (submitted.code, submitted.out.splitlines()[0]) == (0, f"{NAME} created")
    assert (await execute(*kubectl, "get", "-o", "name", "-n", cluster.namespace, **environment)).out == f"{NAME}\n"
    assert "local" not in (await execute(*kubectl, "--help", **environment)).out
