"""The cluster's commands where the cluster refuses, fails or is not there; see tests/integration/cli for the rest."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml
from kubernetes.aio.config import incluster_config

from spinrun_cli import kubectl_plugin
from spinrun_cli.cluster import client, lifecycle
from spinrun_cli.cluster.client import TIMEOUT_SECONDS
from support.ports import free_port
from unit.api.invalid_runs import MINIMAL
from unit.cli.cluster.fake_api_server import RUNS, Answer, FakeApiServer, failure, over, spin_run, write_kubeconfig
from unit.cli.shell import Shell

Json = dict[str, Any]

NOT_FOUND = failure(404, "NotFound", 'spinruns.spinrun.dev "demo" not found')
NO_CRD = Answer(404, "404 page not found")
BUSY = failure(429, "TooManyRequests", "too many requests, please try again later")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A file with a valid run."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


# --- what is tried again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [BUSY, failure(503, "ServiceUnavailable", "etcd has no leader")])
def test_busy_server_is_asked_again(spinrun: Shell, server: FakeApiServer, trouble: Answer) -> None:
    server.answers("GET", trouble, trouble, Answer(200, {"items": [spin_run()]}))
    assert spinrun("get", "-o", "name") == (0, "spinruns.spinrun.dev/demo\n", "")
    assert server.methods() == ["GET"] * 3


def test_wait_that_the_server_asks_for_is_kept(spinrun: Shell, server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    after = {"Retry-After": "3"}
    server.answers("GET", failure(429, "TooManyRequests", "later", **after), Answer(200, {"items": []}))
    assert spinrun("get", "-o", "json")[0] == 0
    assert [wait for wait in waits if wait] == [3.0]


def test_server_that_stays_busy_ends_the_command(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", BUSY)
    code, _, error = spinrun("get", "-o", "name")
    assert code == 1
    assert "cannot serve spinruns in namespace default now" in error
    assert "try again later" in error
    assert len(server.requests) == 4


def test_apply_whose_answer_was_an_error_is_sent_again(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    server.answers("GET", NOT_FOUND)
    server.answers("PATCH", failure(500, "InternalError", "etcdserver: request timed out"), Answer(201, spin_run()))
    code, out, _ = spinrun("submit", str(run_file))
    assert (code, out.splitlines()[0]) == (0, "spinruns.spinrun.dev/demo created")
    assert server.methods() == ["GET", "PATCH", "PATCH"]


def test_deletion_that_was_done_by_a_lost_request_is_no_error(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", Answer(200, spin_run()))
    server.answers("DELETE", failure(504, "Timeout", "request did not complete"), NOT_FOUND)
    code, out, _ = spinrun("delete", "demo")
    assert (code, out.splitlines()[0]) == (0, "spinruns.spinrun.dev/demo deleted")


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        pytest.param(NO_CRD, 1, ["does not know the kind SpinRun", "install the chart"], id="no-crd"),
        pytest.param(NOT_FOUND, 1, ["no SpinRun demo in namespace default"], id="no-run"),
        pytest.param(
            failure(403, "Forbidden", 'User "me" cannot get resource "spinruns"'),
            1,
            ["you may not get spinruns in namespace default", 'User "me" cannot'],
            id="forbidden",
        ),
        pytest.param(
            failure(401, "Unauthorized", "Unauthorized"), 1, ["does not accept your credentials", "log in"], id="unauthorized"
        ),
    ],
)
def test_refusal_is_one_line_that_says_what_to_do(
    spinrun: Shell, server: FakeApiServer, answer: Answer, code: int, words: list[str]
) -> None:
    server.answers("GET", answer)
    ended, out, error = spinrun("get", "demo")
    assert (ended, out, len(error.splitlines())) == (code, "", 1)
    assert error.startswith("error: ")
    assert [word for word in words if word not in error] == []
    assert server.methods() == ["GET"]


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        pytest.param(
            failure(422, "Invalid", 'SpinRun.spinrun.dev "demo" is invalid: spec.model: Invalid value: {}: it cannot change'),
            2,
            ["rejected SpinRun demo", ": spec.model: ", "it cannot change"],
            id="invalid",
        ),
        pytest.param(
            failure(409, "Conflict", 'Apply failed with 1 conflict: conflict with "kueue": .spec.lifecycle.suspend'),
            1,
            ['conflict with "kueue"', "--force-conflicts"],
            id="conflict",
        ),
        pytest.param(
            failure(403, "Forbidden", 'User "me" cannot patch'),
            1,
            ["you may not patch spinruns in namespace default"],
            id="forbidden",
        ),
        pytest.param(
            failure(404, "NotFound", 'namespaces "default" not found'), 1, ["there is no namespace default"], id="no-namespace"
        ),
    ],
)
def test_refused_submission_names_field_or_role(
    spinrun: Shell, server: FakeApiServer, run_file: Path, answer: Answer, code: int, words: list[str]
) -> None:
    server.answers("GET", NOT_FOUND)
    server.answers("PATCH", answer)
    ended, _, error = spinrun("submit", str(run_file))
    assert ended == code
    assert [word for word in words if word not in error] == []
    assert server.methods() == ["GET", "PATCH"]


def test_run_is_shown_without_what_the_user_may_not_see(spinrun: Shell, server: FakeApiServer) -> None:
    forbidden = failure(403, "Forbidden", 'User "me" cannot list resource "pods"')
    server.answers("GET", Answer(200, spin_run(phase="Running")), forbidden, Answer(200, {"items": []}))
    code, out, _ = spinrun("get", "demo")
    assert code == 0
    assert "Phase:      Running" in out
    assert "Pods:\n  you may not list pods in namespace default" in out


# --- no cluster ----------------------------------------------------------------------------------------------------


def test_server_that_is_not_there_is_named(spinrun: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, port)))
    code, _, error = spinrun("get")
    assert (code, len(error.splitlines())) == (1, 1)
    assert f"cannot reach the API server http://127.0.0.1:{port}" in error


def test_server_that_does_not_answer_is_given_up(spinrun: Shell, server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(client.Api, "request", silence)
    code, _, error = spinrun("get")
    assert code == 1
    assert f"did not answer within {TIMEOUT_SECONDS:g} s" in error


def test_absent_kubeconfig_is_named(spinrun: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert spinrun("get") == (
        1,
        "",
        "error: no cluster is configured: there is no /nowhere/config; set KUBECONFIG to your cluster's file\n",
    )


@pytest.mark.parametrize(("text", "word"), [("{}", "current-context"), ("clusters: [", "cannot be used"), ("", "cannot be used")])
def test_broken_kubeconfig_is_bad_input(
    spinrun: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, word: str
) -> None:
    path = tmp_path / "broken"
    path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    code, _, error = spinrun("get")
    assert code == 2
    assert word in error


def test_unknown_context_is_bad_input(spinrun: Shell, server: FakeApiServer) -> None:
    code, _, error = spinrun("get", "--context", "nowhere")
    assert code == 2
    assert "nowhere" in error
    assert server.requests == []


async def test_pod_without_a_kubeconfig_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: tmp_path / name for name in ("token", "namespace")}
    for name, path in files.items():
        path.write_text(f"my-{name}\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(files["token"]))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    monkeypatch.setattr(client, "IN_CLUSTER_NAMESPACE", files["namespace"])
    async with client.connect(client.Access()) as cluster:
        assert (cluster.host, cluster.namespace) == ("https://10.96.0.1:443", "my-namespace")


# --- which namespace -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "namespace"),
    [([], "default"), (["--context", "team"], "team"), (["-n", "mine"], "mine"), (["--context", "team", "-n", "mine"], "mine")],
)
def test_namespace_is_the_option_or_the_contexts(
    spinrun: Shell, server: FakeApiServer, options: list[str], namespace: str
) -> None:
    server.answers("GET", Answer(200, {"items": []}))
    assert spinrun("get", "-o", "name", *options)[0] == 0
    assert server.requests == [("GET", RUNS.replace("default", namespace))]


def test_all_namespaces_are_asked_at_once(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", Answer(200, {"items": []}))
    assert spinrun("get", "-A", "-o", "name")[0] == 0
    assert server.requests == [("GET", "/apis/spinrun.dev/v1alpha1/spinruns")]


def test_namespace_of_file_and_option_must_agree(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    code, _, error = spinrun("submit", str(run_file), "--set", "metadata.namespace=theirs", "-n", "mine")
    assert code == 2
    assert "metadata.namespace is theirs and -n is mine" in error
    assert server.requests == []


# --- what is checked before anything is sent -----------------------------------------------------------------------


def test_invalid_documents_are_refused_before_any_call(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    other = run_file.with_name("other.yaml")
    other.write_text(run_file.read_text().replace("source: arithmetic", "source: 7"))
    code, _, error = spinrun("submit", str(run_file), str(other), "--set", "spec.method.bta=1")
    assert code == 2
    assert f"{run_file}: spec.method.bta: unknown field (did you mean beta?)" in error
    assert f"{other}: spec.data.prompts.source" in error
    assert server.requests == []


@pytest.mark.parametrize("source", ["./models/tiny", "../tiny", "~/models"])
def test_path_of_this_machine_is_refused(spinrun: Shell, server: FakeApiServer, run_file: Path, source: str) -> None:
    code, _, error = spinrun("submit", str(run_file), "--set", f"spec.model.source={source}")
    assert code == 2
    assert "spec.model.source: names a file on this machine" in error
    assert server.requests == []


def test_path_of_this_machine_in_a_list_is_refused(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    sources = "[{source: arithmetic}, {source: ./rows.csv, answerColumn: a}]"
    code, _, error = spinrun("submit", str(run_file), "--set", f"spec.data.prompts={{source: null, sources: {sources}}}")
    assert code == 2
    assert "spec.data.prompts.sources.1.source: names a file on this machine" in error
    assert server.requests == []


def test_other_kinds_in_a_file_are_named_and_not_sent(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    run_file.write_text(run_file.read_text() + "---\nkind: ConfigMap\n")
    server.answers("GET", NOT_FOUND)
    server.answers("PATCH", Answer(201, spin_run()))
    code, _, error = spinrun("submit", str(run_file))
    assert (code, error) == (0, f"{run_file} (document 2): skipping the ConfigMap: apply it with kubectl\n")
    assert server.methods() == ["GET", "PATCH"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["suspend", "demo", "--timeout", "5"], "--timeout requires --wait"),
        (["delete", "demo", "--wait", "--timeout", "soon"], "is not a valid duration: use 90s, 10m or 2h"),
        (["submit", "-", "--wait", "--dry-run", "server"], "--wait and --dry-run are mutually exclusive"),
        (["get", "demo", "-A"], "NAME cannot be combined with --all-namespaces"),
        (["get", "-w", "-o", "json"], "--watch can only be combined with -o wide"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    spinrun: Shell, server: FakeApiServer, options: list[str], words: str
) -> None:
    code, _, error = spinrun(*options)
    assert code == 2
    assert words in " ".join(error.replace("│", " ").split())
    assert server.requests == []


@pytest.mark.parametrize(("text", "want"), [("90", 90.0), ("1.5s", 1.5), ("10m", 600.0), ("2h", 7200.0)])
def test_timeout_is_a_duration(
    spinrun: Shell, server: FakeApiServer, monkeypatch: pytest.MonkeyPatch, text: str, want: float
) -> None:
    asked: list[float | None] = []
    monkeypatch.setattr(lifecycle, "suspend", lambda *_, timeout, **__: asked.append(timeout))
    assert spinrun("suspend", "demo", "--wait", "--timeout", text)[0] == 0
    assert asked == [want]


# --- following -----------------------------------------------------------------------------------------------------


def test_wait_goes_over_an_outage_and_ends_with_the_run(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    away = [failure(503, "ServiceUnavailable", "starting")] * 8
    server.answers("GET", NOT_FOUND, *away, Answer(200, over("Complete", "Completed", "12 windows done")))
    server.answers("PATCH", Answer(201, spin_run(phase="Pending")))
    code, out, _ = spinrun("submit", str(run_file), "--wait")
    assert code == 0
    assert out.splitlines()[1:] == ["demo:  Pending", "demo: Complete (Completed): 12 windows done"]


def test_wait_for_a_run_that_fails_exits_with_one_and_the_reason(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    server.answers("GET", NOT_FOUND)
    server.answers("PATCH", Answer(201, over("Failed", "InvalidConfiguration", "no such model")))
    code, out, _ = spinrun("submit", str(run_file), "--wait")
    assert code == 1
    assert out.splitlines()[-1] == "demo: Failed (InvalidConfiguration): no such model"


def test_wait_ends_at_its_time(spinrun: Shell, server: FakeApiServer, run_file: Path) -> None:
    server.answers(
        "GET", NOT_FOUND, Answer(200, spin_run(phase="Running", activity="train", window=3, windows=8, step=33, totalSteps=128))
    )
    server.answers("PATCH", Answer(201, spin_run()))
    code, _, error = spinrun("submit", str(run_file), "--wait", "--timeout", "0.1")
    assert code == 1
    assert "demo is not over after 0.1 s: Running, window 4/8 train  step 33/128" in error


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (NOT_FOUND, "demo was deleted"),
        (Answer(200, {"metadata": spin_run()["metadata"] | {"uid": "another"}}), "another run has its name now"),
    ],
)
def test_wait_for_a_run_that_is_deleted_ends(
    spinrun: Shell, server: FakeApiServer, run_file: Path, answer: Answer, words: str
) -> None:
    server.answers("GET", NOT_FOUND, answer)
    server.answers("PATCH", Answer(201, spin_run()))
    code, _, error = spinrun("submit", str(run_file), "--wait")
    assert code == 1
    assert words in error


def test_finished_run_is_neither_suspended_nor_resumed(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", Answer(200, over("Complete", "Completed", "done")))
    for command in ("suspend", "resume"):
        code, _, error = spinrun(command, "demo")
        assert (code, error) == (1, f"error: demo is already Complete: there is nothing to {command}\n")
    assert set(server.methods()) == {"GET"}


# --- installation --------------------------------------------------------------------------------------------------


def test_help_does_not_import_the_kubernetes_client() -> None:
    program = "import sys; from spinrun_cli import main; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_shell_completes_the_commands() -> None:
    environment = {"_SPINRUN_COMPLETE": "complete_bash", "COMP_WORDS": "spinrun sus", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "spinrun_cli.main"]
    assert subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout.split() == ["suspend"]


# --- the plugin ----------------------------------------------------------------------------------------------------


def test_plugin_has_the_clusters_commands_and_validate() -> None:
    names = {command.name or command.callback.__name__ for command in kubectl_plugin.app.registered_commands if command.callback}
    assert names == {"validate", "submit", "get", "suspend", "resume", "delete"} | {
        "watch",
        "estimate",
        "explain",
        "logs",
        "events",
        "samples",
        "compare",
        "report",
    }


def test_scripts_of_the_package_can_be_called() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[4] / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {"spinrun", "kubectl-spinrun"}
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))
