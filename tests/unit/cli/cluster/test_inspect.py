"""The commands that look at a run in a cluster, before an API server that answers by script."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_cli.cluster import ledger_pod
from spinrun_cli.cluster.events import events_of
from spinrun_cli.cluster.logs import chosen
from spinrun_cli.errors import InvalidInputError
from spinrun_cli.queries import LogsQuery
from unit.cli.cluster.fake_api_server import RUNS, UID, Answer, FakeApiServer, failure, over, spin_run
from unit.cli.shell import Shell

Json = dict[str, Any]

CORE = "/api/v1/namespaces/default"
CLAIM, PODS, EVENTS = f"{CORE}/persistentvolumeclaims/demo-ledger", f"{CORE}/pods", f"{CORE}/events"
JOB = "/apis/batch/v1/namespaces/default/jobs/demo-trainer-2"
ROLLOUTS = "/apis/apps/v1/namespaces/default/statefulsets/demo-rollout"
ABSENT = failure(404, "NotFound", "not found")
TEMPLATE: Json = {
    "serviceAccountName": "demo-spinrun",
    "securityContext": {"runAsNonRoot": True, "runAsUser": 4711, "fsGroup": 4711, "seccompProfile": {"type": "RuntimeDefault"}},
    "imagePullSecrets": [{"name": "registry"}],
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "terminationGracePeriodSeconds": 300,
    "containers": [{"name": "trainer", "image": "worker:7", "imagePullPolicy": "Always", "resources": {"limits": {"gpu": "8"}}}],
}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for for long."""
    monkeypatch.setattr(ledger_pod, "POLL_SECONDS", 0.01)


def pod_answer(state: Json, **status: Any) -> Answer:
    """The pod that reads the ledger, in a state."""
    return Answer(200, {"metadata": {"name": "demo-look"}, "status": {"containerStatuses": [{"state": state}]} | status})


WINDOW: Json = {"window": 3, "version": 3, "numPrompts": 1, "numPairs": 0, "pairs": []}
"""What is shown of a window."""
RUNNING = pod_answer({"running": {}})
DONE = pod_answer({"terminated": {"exitCode": 0}})


@pytest.fixture
def ledger(server: FakeApiServer) -> FakeApiServer:
    """A server with a run that has a claim and a trainer, where every pod runs at once and shows a window."""
    server.answers_at("GET", f"{RUNS}/demo", Answer(200, spin_run(attempt=2)))
    server.answers_at("GET", CLAIM, Answer(200, {}))
    server.answers_at("GET", JOB, Answer(200, {"spec": {"template": {"spec": TEMPLATE}}}))
    server.answers_at("GET", f"{PODS}/demo-look-*", RUNNING, DONE)
    server.answers("GET", Answer(200, json.dumps(WINDOW)))  # the log
    server.answers("POST", Answer(201, {}))
    server.answers("DELETE", Answer(200, {}))
    return server


def made_pod(server: FakeApiServer) -> Json:
    """The pod that was asked for."""
    (pod,) = (body for body in server.bodies if body.get("kind") == "Pod")
    return pod


# --- beside the ledger ---------------------------------------------------------------------------------------------


def test_samples_come_from_a_pod_that_is_deleted_afterwards(spinrun: Shell, ledger: FakeApiServer) -> None:
    code, out, error = spinrun("samples", "demo", "--window", "3", "--pairs", "--prompt", "p7", "-o", "json")
    assert (code, json.loads(out), error) == (0, WINDOW, "")
    pod = made_pod(ledger)
    command = pod["spec"]["containers"][0]["command"]
    assert command[:3] == ["sh", "-c", 'exec spinrun "$@" 2>/dev/termination-log']
    assert command[4:] == [
        "samples", "/ledger/default/demo-867d5e77", "--window", "3", "--prompt", "p7", "--limit", "10", "--pairs",
        "--output", "json",
    ]  # fmt: skip
    assert ledger.methods()[-1] == "DELETE"
    assert ledger.requests[-1][1] == f"{PODS}/{pod['metadata']['name']}"


def test_ledger_is_read_with_the_operators_image_whatever_the_run_names(spinrun: Shell, ledger: FakeApiServer) -> None:
    run = spin_run(phase="Running", attempt=2, ledgerImage="operators:1")
    run["spec"] = run["spec"] | {"trainer": {"image": "evil:1"}}
    ledger.answers_at("GET", f"{RUNS}/demo", Answer(200, run))
    assert spinrun("samples", "demo")[0] == 0
    container = made_pod(ledger)["spec"]["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == ("operators:1", "Always")


def test_pod_has_the_trainers_place_and_user_and_no_more_rights_than_it_needs(spinrun: Shell, ledger: FakeApiServer) -> None:
    spinrun("samples", "demo")
    pod = made_pod(ledger)
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    for key in ("serviceAccountName", "securityContext", "imagePullSecrets", "tolerations"):
        assert spec[key] == TEMPLATE[key]
    assert (container["image"], container["imagePullPolicy"]) == ("worker:7", "Always")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert spec["volumes"][0] == {"name": "ledger", "persistentVolumeClaim": {"claimName": "demo-ledger"}}
    assert container["volumeMounts"][0] == {"name": "ledger", "mountPath": "/ledger", "readOnly": True}
    assert "gpu" not in container["resources"]["limits"]
    assert (spec["automountServiceAccountToken"], spec["restartPolicy"], spec["activeDeadlineSeconds"]) == (False, "Never", 780)
    # The operator would take it for a pod of the run by these labels.
    assert "spinrun.dev/run" not in pod["metadata"]["labels"]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == UID


def test_suspended_run_is_read_with_the_image_of_its_agents(spinrun: Shell, ledger: FakeApiServer) -> None:
    ledger.answers_at("GET", JOB, ABSENT)
    agent = {"name": "agent", "image": "worker:8", "imagePullPolicy": "IfNotPresent"}
    ledger.answers_at(
        "GET", ROLLOUTS, Answer(200, {"spec": {"template": {"spec": TEMPLATE | {"containers": [{"name": "vllm"}, agent]}}}})
    )
    assert spinrun("samples", "demo")[0] == 0
    assert made_pod(ledger)["spec"]["containers"][0]["image"] == "worker:8"


def test_run_that_nothing_is_left_of_needs_an_image(spinrun: Shell, ledger: FakeApiServer) -> None:
    ledger.answers_at("GET", JOB, ABSENT)
    ledger.answers_at("GET", ROLLOUTS, ABSENT)
    code, _, error = spinrun("samples", "demo")
    assert (code, "choose one with --image" in error, "POST" in ledger.methods()) == (1, True, False)
    assert spinrun("samples", "demo", "--image", "mine:1")[0] == 0
    pod = made_pod(ledger)["spec"]
    assert pod["containers"][0]["image"] == "mine:1"
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["fsGroup"]) == (True, 1000)


def test_run_without_a_claim_says_so_before_a_pod_is_made(spinrun: Shell, ledger: FakeApiServer) -> None:
    ledger.answers_at("GET", CLAIM, ABSENT)
    code, _, error = spinrun("samples", "demo")
    assert (code, "its claim demo-ledger does not exist" in error, "POST" in ledger.methods()) == (1, True, False)


@pytest.mark.parametrize(
    ("ended", "code", "words"),
    [
        (
            {"exitCode": 2, "message": "error: there is no window 9: it holds 0 to 4\n"},
            2,
            "error: there is no window 9: it holds",
        ),
        (
            {"exitCode": 2, "message": "error: there is no folder /ledger/default/demo-867d5e77: name"},
            1,
            "nothing to its ledger yet",
        ),
        ({"exitCode": 1, "message": "error: a file is damaged"}, 1, "error: a file is damaged"),
        ({"exitCode": 137, "reason": "OOMKilled"}, 1, "ended with exit code 137 (OOMKilled)"),
        ({"exitCode": 2, "message": "Usage: spinrun\nNo such command 'samples'."}, 2, "has another version of SpinRun"),
    ],
    ids=["input", "nothing yet", "failure", "memory", "old image"],
)
def test_end_of_the_command_in_the_pod_is_the_end_of_this_one(
    spinrun: Shell, ledger: FakeApiServer, ended: Json, code: int, words: str
) -> None:
    ledger.answers_at("GET", f"{PODS}/demo-look-*", pod_answer({"terminated": ended}))
    got, _, error = spinrun("samples", "demo")
    assert (got, words in error, ledger.methods()[-1]) == (code, True, "DELETE")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (pod_answer({"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}), "(ImagePullBackOff: no such tag)"),
        (
            pod_answer(
                {}, conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}]
            ),
            "(Unschedulable: no node)",
        ),
        (pod_answer({}, phase="Failed", reason="Evicted", message="no disk"), "was terminated: Evicted: no disk"),
    ],
    ids=["image", "node", "evicted"],
)
def test_pod_that_does_not_run_is_deleted_and_says_why(
    spinrun: Shell, ledger: FakeApiServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, words: str
) -> None:
    monkeypatch.setattr(ledger_pod, "START_SECONDS", 0.1)
    ledger.answers_at("GET", f"{PODS}/demo-look-*", answer)
    ledger.answers("GET", failure(400, "BadRequest", "the container has no log"))
    code, _, error = spinrun("samples", "demo")
    assert (code, words in error, ledger.methods()[-1]) == (1, True, "DELETE")


def test_pod_is_deleted_also_when_its_creation_was_answered_by_an_error(spinrun: Shell, ledger: FakeApiServer) -> None:
    ledger.answers("POST", failure(500, "InternalError", "request timed out"))
    code, _, _ = spinrun("samples", "demo")
    assert (code, ledger.methods()[-1]) == (1, "DELETE")


def test_user_who_may_make_no_pods_is_told_so(spinrun: Shell, ledger: FakeApiServer) -> None:
    ledger.answers("POST", failure(403, "Forbidden", 'User "me" cannot create resource "pods"'))
    ledger.answers("DELETE", ABSENT)
    code, _, error = spinrun("samples", "demo")
    assert (code, "you may not create pods in namespace default" in error) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_pod_is_deleted_when_the_command_is_interrupted(
    spinrun: Shell, ledger: FakeApiServer, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    ledger.answers_at("GET", f"{PODS}/demo-look-*", pod_answer({"waiting": {"reason": "ContainerCreating"}}))
    waits = 0
    sleep = asyncio.sleep

    async def interrupted_sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            os.kill(os.getpid(), number)
        await sleep(seconds)

    monkeypatch.setattr(ledger_pod.asyncio, "sleep", interrupted_sleep)
    code, out, error = spinrun("samples", "demo")
    assert (code, out, error) == (128 + number, "", "")
    assert ledger.methods()[-1] == "DELETE"


def test_report_lands_on_this_machine(
    spinrun: Shell, ledger: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = {"event": "evaluation", "attempt": 1, "time": 1.0, "window": 0, "step": 0, "version": 0, "values": {"accuracy": 0.25}}
    bundle = {"name": "demo<script>", "run": {}, "lines": [line], "before": [], "after": [], "notes": ["<script>"]}
    ledger.answers("GET", Answer(200, json.dumps(bundle)))
    code, out, _ = spinrun("report", "demo")
    learned = "held-out accuracy 0.250 → 0.250 (best 0.250, version 0)"
    assert (code, out.splitlines()) == (0, [learned, "reports/demo/report.html", "reports/demo/curves.png"])
    assert sorted(path.name for path in (tmp_path / "reports" / "demo").iterdir()) == ["curves.png", "report.html"]
    page = (tmp_path / "reports" / "demo" / "report.html").read_text()
    assert ("&lt;script&gt;" in page, "<script" in page) == (True, False), "drawn here, out of data"
    assert made_pod(ledger)["spec"]["containers"][0]["command"][4:] == ["report", "/ledger/default/demo-867d5e77", "--bundle"]


def test_run_of_the_cluster_is_compared_by_its_ledger(spinrun: Shell, ledger: FakeApiServer) -> None:
    line = {"event": "evaluation", "attempt": 1, "time": 1.0, "window": 0, "step": 0, "version": 0, "values": {"accuracy": 0.25}}
    ledger.answers("GET", Answer(200, json.dumps({"runs": [{"label": "x", "name": "demo", "run": {}, "lines": [line]}]})))
    code, out, _ = spinrun("compare", "demo")
    assert (code, out.splitlines()[-1].split()) == (0, ["0", "0.25"])


# --- explain -------------------------------------------------------------------------------------------------------


def of_window(window: int) -> Json:
    """A window that took half a minute, of which four prompts of eight were too easy."""
    values = {
        "samples": 64.0,
        "pairs": 4.0,
        "paired_prompts": 4.0,
        "ties": 4.0,
        "all_right": 4.0,
        "all_wrong": 0.0,
        "other_ties": 0.0,
    }
    values |= {"timing/generate_seconds": 20.0, "timing/train_seconds": 10.0}
    return {"event": "window", "attempt": 1, "time": 1.0, "window": window, "step": 4, "version": window, "values": values}


def test_run_is_explained_by_its_status_and_by_its_ledger(spinrun: Shell, ledger: FakeApiServer) -> None:
    ledger.answers_at("GET", f"{RUNS}/demo", Answer(200, spin_run(**status(attempt=2, window=2, activity="generate"))))
    bundle = {"name": "demo", "run": {}, "lines": [of_window(0), of_window(1)], "before": [], "after": [], "notes": []}
    ledger.answers("GET", Answer(200, json.dumps(bundle)))
    code, out, _ = spinrun("explain", "demo")
    assert code == 0
    assert out.startswith("demo: Running, window 3/5 generate  step 6/20  version 1  rollouts 1/2 ready  attempt 2\n")
    assert "prompts of windows 0 to 1: 50 % pairs, 50 % all right\n" in out
    assert "50 % of the prompts of windows 0 to 1 (8 of 16) have only right answers" in out
    assert made_pod(ledger)["spec"]["containers"][0]["command"][4:] == ["report", "/ledger/default/demo-867d5e77", "--bundle"]


def test_run_that_has_no_window_yet_is_explained_without_its_ledger(spinrun: Shell, server: FakeApiServer) -> None:
    found = {"reason": "PodUnschedulable", "message": "pod demo-trainer-1-0-x is unschedulable: 0/3 nodes", "type": "Degraded"}
    conditions = [found | {"status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    server.answers("GET", Answer(200, spin_run(phase="Pending", conditions=conditions)))
    assert spinrun("explain", "demo") == (
        0,
        "demo: Pending\n\nIn its way:\n- PodUnschedulable: pod demo-trainer-1-0-x is unschedulable: 0/3 nodes\n\n"
        "What limits it cannot be told before its first window has ended.\n",
        "",
    )
    assert server.methods() == ["GET"]


def test_suspended_run_says_how_it_continues(spinrun: Shell, server: FakeApiServer) -> None:
    found = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "spec.lifecycle.suspend is true"}
    conditions = [found | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]
    server.answers("GET", Answer(200, spin_run(phase="Suspended", conditions=conditions, window=0)))
    assert "- Suspended: spec.lifecycle.suspend is true; `spinrun resume demo` continues it" in spinrun("explain", "demo")[1]


def test_figures_that_cannot_be_read_are_said_beside_what_is_known(spinrun: Shell, ledger: FakeApiServer) -> None:
    ledger.answers_at(
        "GET", f"{RUNS}/demo", Answer(200, over("Failed", "NoPairs", "every answer was right", attempt=2, window=3))
    )
    ledger.answers("POST", failure(403, "Forbidden", "no pods for you"))
    code, out, _ = spinrun("explain", "demo", "-o", "json")
    explained = json.loads(out)
    assert (code, explained["state"], explained["findings"]) == (0, "Failed (NoPairs): every answer was right", [])
    (note,) = explained["notes"]
    assert note.startswith("Its figures could not be read: ")
    assert "no pods for you" in note


# --- watch ---------------------------------------------------------------------------------------------------------


def status(**fields: Any) -> Json:
    """A status of a run that is active."""
    found = {
        "phase": "Running",
        "attempt": 1,
        "window": 1,
        "windows": 5,
        "step": 6,
        "totalSteps": 20,
        "activity": "train",
        "version": 1,
    }
    return found | {"rollouts": {"ready": 1, "desired": 2}} | fields


def test_watch_has_a_line_for_each_change_and_ends_with_the_run(spinrun: Shell, server: FakeApiServer) -> None:
    same = Answer(200, spin_run(**status(metrics={"accuracy": 0.5})))
    done = over("Complete", "Completed", "5 windows done", **status(window=5, metrics={"accuracy": 0.75}))
    server.answers("GET", Answer(200, spin_run(phase="Pending")), same, same, Answer(200, done))
    server.answers_at("GET", EVENTS, Answer(200, {"items": []}))
    code, out, _ = spinrun("watch", "demo")
    assert code == 0
    assert out.splitlines() == [
        "demo:  Pending",
        "demo:  Running, window 2/5 train  step 6/20  accuracy 0.500  version 1  rollouts 1/2 ready",
        "demo: Complete (Completed): 5 windows done",
    ]


def test_documents_of_a_watch_have_what_was_seen_so_far(spinrun: Shell, server: FakeApiServer) -> None:
    seen = [status(window=window, metrics={"accuracy": accuracy}) for window, accuracy in ((0, 0.5), (1, 0.5), (1, 0.75))]
    failed = over("Failed", "NoPairs", "no window makes a pair", **seen[-1])
    server.answers("GET", *(Answer(200, spin_run(**each)) for each in seen), Answer(200, failed))
    server.answers_at("GET", EVENTS, failure(403, "Forbidden", "no events for you"))
    code, out, _ = spinrun("watch", "demo", "-o", "json")
    documents = [json.loads(line) for line in out.splitlines()]
    assert (code, len(documents)) == (1, 4)
    assert documents[-1]["byWindow"] == [{"window": 0, "accuracy": 0.5}, {"window": 1, "accuracy": 0.75}]
    assert documents[-1]["outcome"] == {"result": "Failed", "message": "no window makes a pair"}


# --- logs ----------------------------------------------------------------------------------------------------------


def pod(name: str, containers: Json, *, attempt: int | None = None, index: int = 0) -> Json:
    """A pod whose containers are in a state each; attempt: of a trainer."""
    labels = {"app.kubernetes.io/component": name.split("-")[1]}
    if attempt is not None:
        labels |= {"spinrun.dev/attempt": str(attempt), "batch.kubernetes.io/job-completion-index": str(index)}
    statuses = [{"name": key, "restartCount": 0, "state": {"running": {}}} | value for key, value in containers.items()]
    return {"metadata": {"name": name, "uid": f"uid of {name}", "labels": labels}, "status": {"containerStatuses": statuses}}


WAITING: Json = {"state": {"waiting": {"reason": "ContainerCreating"}}}
RESTARTED: Json = {"restartCount": 1, "lastState": {"terminated": {}}}
ALL = [
    pod("demo-rollout-0", {"vllm": RESTARTED, "agent": {}}),
    pod("demo-trainer-1-0-x", {"trainer": {"state": {"terminated": {"reason": "Error"}}}}, attempt=1),
    pod("demo-trainer-2-0-y", {"trainer": {}}, attempt=2),
    pod("demo-trainer-2-1-z", {"trainer": WAITING}, attempt=2, index=1),
]
SCORER = pod("demo-scorer-0", {"vllm": {}, "agent": {}})


def query(**fields: Any) -> LogsQuery:
    """What is asked when only these options are given."""
    nothing: dict[str, Any] = {"role": None, "rank": None, "pod": None, "follow": False, "previous": False, "tail": None}
    return LogsQuery(**nothing | fields)


@pytest.mark.parametrize(
    ("asked", "want"),
    [
        (query(pod="demo-rollout-0"), ["demo-rollout-0 vllm", "demo-rollout-0 agent"]),
        (
            query(),
            [
                "demo-trainer-2-0-y",
                "demo-trainer-2-1-z",
                "demo-rollout-0 vllm",
                "demo-rollout-0 agent",
                "demo-scorer-0 vllm",
                "demo-scorer-0 agent",
            ],
        ),
        (query(role="agent"), ["demo-rollout-0 agent", "demo-scorer-0 agent"]),
        (query(role="scorer"), ["demo-scorer-0 vllm", "demo-scorer-0 agent"]),
        (query(role="trainer"), ["demo-trainer-2-0-y", "demo-trainer-2-1-z"]),
        (query(rank=3), ["demo-trainer-2-1-z"]),
        (query(pod="demo-trainer-1-0-x"), ["demo-trainer-1-0-x"]),
        (query(previous=True), ["demo-trainer-1-0-x", "demo-rollout-0 vllm"]),
    ],
    ids=["pod of a rollout", "all", "role", "scorers", "trainer", "rank", "pod", "previous"],
)
def test_containers_that_are_meant_are_chosen(asked: LogsQuery, want: list[str]) -> None:
    document = spin_run()
    run = parse_run(document | {"spec": document["spec"] | {"trainer": {"nodes": 2, "procsPerNode": 2}}})
    assert [source.name for source in chosen(run, [*ALL, SCORER], asked)] == want


def test_rank_that_the_trainer_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="there is no rank 1: the trainer has 1"):
        chosen(parse_run(spin_run()), ALL, query(rank=1))


def test_logs_of_several_containers_are_printed_with_their_names(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", Answer(200, spin_run(phase="Running")))
    server.answers_at("GET", PODS, Answer(200, {"items": ALL}))
    server.answers_at("GET", f"{PODS}/demo-trainer-2-0-y/log", Answer(200, "trained\n"))
    server.answers_at("GET", f"{PODS}/demo-rollout-0/log", Answer(200, "one\nunfinished"), Answer(200, "two\n"))
    code, out, _ = spinrun("logs", "demo", "--tail", "5")
    assert (code, out.splitlines()) == (
        0,
        [
            "[demo-trainer-2-0-y] trained",
            "[demo-rollout-0 vllm] one",
            "[demo-rollout-0 vllm] unfinished",
            "[demo-rollout-0 agent] two",
        ],
    )
    assert f"{PODS}/demo-rollout-0/log?container=agent&tailLines=5" in [path for _, path in server.requests]


def test_followed_logs_go_on_with_the_pods_that_come_until_the_run_has_ended(
    spinrun: Shell, server: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, ended = Answer(200, spin_run(phase="Running")), Answer(200, over("Complete", "Completed", "done"))
    server.answers("GET", going, going, going, going, ended)
    server.answers_at(
        "GET", PODS, Answer(200, {"items": ALL[1:2]}), Answer(200, {"items": ALL[1:2]}), Answer(200, {"items": ALL[1:3]})
    )
    server.answers_at("GET", f"{PODS}/demo-trainer-1-0-x/log", Answer(200, "out of memory\n"))
    server.answers_at("GET", f"{PODS}/demo-trainer-2-0-y/log", Answer(200, "trained\n"))
    code, out, _ = spinrun("logs", "demo", "--follow")
    assert (code, out.splitlines()) == (0, ["out of memory", "[demo-trainer-2-0-y] trained"])


@pytest.mark.parametrize(
    ("pods", "arguments", "words"),
    [
        ([], [], "demo has no such pods: it is Suspended"),
        (ALL[3:], [], "its containers are waiting: demo-trainer-2-1-z (ContainerCreating)"),
        (ALL[2:3], ["--previous"], "no previous log is kept of such a container or attempt"),
    ],
    ids=["gone", "waiting", "first life"],
)
def test_logs_that_are_not_there_say_why(
    spinrun: Shell, server: FakeApiServer, pods: list[Json], arguments: list[str], words: str
) -> None:
    server.answers("GET", Answer(200, spin_run(phase="Suspended")))
    server.answers_at("GET", PODS, Answer(200, {"items": pods}))
    code, out, error = spinrun("logs", "demo", *arguments)
    assert (code, out, words in error) == (1, "", True)


def test_outage_does_not_end_a_followed_log(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", Answer(200, over("Complete", "Completed", "done")))
    server.answers_at("GET", PODS, Answer(200, {"items": ALL[2:3]}))
    away = failure(503, "ServiceUnavailable", "starting")
    server.answers_at("GET", f"{PODS}/demo-trainer-2-0-y/log", away, away, Answer(200, "trained\n"))
    assert spinrun("logs", "demo", "-f")[:2] == (0, "trained\n")


# --- events --------------------------------------------------------------------------------------------------------


def event(minute: int, kind: str, name: str, *, uid: str = "", message: str = "it happened", day: int = 1) -> Json:
    """An Event about an object."""
    return {
        "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
        "involvedObject": {"kind": kind, "name": name, "uid": uid},
        "lastTimestamp": f"2026-01-0{day}T00:{minute:02}:00Z",
        "type": "Normal",
        "reason": "Happened",
        "message": message,
    }


def test_events_of_a_run_and_its_children_are_in_the_order_of_time() -> None:
    mine = [
        event(1, "PersistentVolumeClaim", "demo-ledger"),
        event(2, "SpinRun", "demo", uid=UID),
        event(3, "Job", "demo-trainer-2"),
        event(4, "Pod", "demo-trainer-2-0-x7k2p"),
        event(5, "StatefulSet", "demo-rollout"),
        event(6, "Pod", "demo-rollout-1"),
        event(7, "StatefulSet", "demo-scorer"),
        event(8, "Pod", "demo-scorer-0"),
        event(9, "PodMonitor", "demo"),
    ]
    others = [
        event(1, "SpinRun", "demo", uid="that of an earlier run"),
        event(2, "Pod", "demo-two-rollout-0"),
        event(3, "Pod", "demo-rollout-trainer-1-0-abcde"),
        event(4, "Pod", "demo"),
    ]
    document = spin_run()
    assert events_of(document, [*others, *reversed(mine)]) == mine
    document["metadata"]["creationTimestamp"] = "2026-01-01T00:03:30Z"
    assert events_of(document, mine[3:] + mine[:1]) == mine[3:], "children of an earlier run had the same names"


def test_events_are_listed_with_their_objects(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", Answer(200, spin_run()))
    server.answers_at("GET", EVENTS, Answer(200, {"items": [event(1, "Pod", "demo-rollout-0", message="two\nlines\x1b")]}))
    code, out, _ = spinrun("events", "demo")
    assert code == 0
    assert out.splitlines()[1].split()[1:] == ["Normal", "Happened", "Pod/demo-rollout-0", "1", "two", "lines�"]
    (item,) = json.loads(spinrun("events", "demo", "-o", "json")[1])["items"]
    assert (item["object"], item["message"]) == ("Pod/demo-rollout-0", "two\nlines\x1b")


def test_run_without_events_says_where_they_went(spinrun: Shell, server: FakeApiServer) -> None:
    server.answers("GET", Answer(200, spin_run()))
    server.answers_at("GET", EVENTS, Answer(200, {"items": []}))
    code, out, error = spinrun("events", "demo")
    assert (code, out, "the API server deletes them" in error) == (0, "", True)


@pytest.mark.parametrize("command", ["watch", "explain", "logs", "events", "samples", "report", "compare"])
def test_run_that_is_not_there_is_named(spinrun: Shell, server: FakeApiServer, command: str) -> None:
    server.answers("GET", ABSENT)
    code, out, error = spinrun(command, "demo", "-n", "team")
    assert (code, out) == (1, "")
    assert "there is no SpinRun demo in namespace team" in error
