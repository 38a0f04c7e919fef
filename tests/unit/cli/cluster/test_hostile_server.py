"""A server whose every text commands the terminal: no command prints any of it raw."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from unit.cli.cluster.fake_api_server import RUNS, UID, Answer, FakeApiServer, failure, over
from unit.cli.shell import Shell

Json = dict[str, Any]

EVIL = "\x1b]0;owned\x07 \x9b31m \u202e\x85\x7f"
CORE = "/api/v1/namespaces/default"
PODS, EVENTS = f"{CORE}/pods", f"{CORE}/events"
HOSTILE_RUN = over("Failed", EVIL, f"said {EVIL}", activity=EVIL, window=1, windows=5, eta="2026-01-01T00:00:00Z")


def is_raw(text: str) -> bool:
    """Whether a text has something that a terminal obeys."""
    return any(not each.isprintable() and each not in "\n\t" for each in text)


@pytest.fixture
def hostile(server: FakeApiServer) -> FakeApiServer:
    """A server with a run, a pod and an Event of such texts."""
    about = {"kind": "SpinRun", "name": EVIL, "uid": UID}
    event: Json = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "involvedObject": about, "type": EVIL}
    event |= {"reason": EVIL, "message": EVIL, "lastTimestamp": "2026-01-01T00:00:00Z"}
    pod = {
        "metadata": {"name": f"pod {EVIL}", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {}},
        "spec": {"containers": [{}], "nodeName": EVIL},
        "status": {"phase": EVIL},
    }
    columns = [{"name": EVIL, "priority": 0}]
    rows = [{"cells": [EVIL], "object": {"metadata": {"uid": UID, "resourceVersion": "7", "namespace": EVIL}}}]
    server.answers_at("GET", f"{RUNS}/demo", Answer(200, HOSTILE_RUN))
    server.answers_at("GET", RUNS, Answer(200, {"columnDefinitions": columns, "rows": rows}))
    server.answers_at("GET", EVENTS, Answer(200, {"items": [event]}))
    server.answers_at("GET", PODS, Answer(200, {"items": [pod]}))
    return server


@pytest.mark.parametrize(
    "arguments",
    [
        ["get"],
        ["get", "demo"],
        ["get", "demo", "-o", "json"],
        ["get", "demo", "-o", "yaml"],
        ["events", "demo"],
        ["events", "demo", "-o", "json"],
        ["watch", "demo"],
        ["watch", "demo", "-o", "json"],
        ["explain", "demo"],
        ["explain", "demo", "-o", "json"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("hostile")
def test_what_a_server_says_is_not_printed_raw(spinrun: Shell, arguments: list[str]) -> None:
    _, out, err = spinrun(*arguments)

    assert "owned" in out
    assert not is_raw(out + err)


@pytest.mark.usefixtures("hostile")
def test_documents_for_programs_hold_what_the_server_said(spinrun: Shell) -> None:
    assert json.loads(spinrun("get", "demo", "-o", "json")[1]) == HOSTILE_RUN
    assert yaml.safe_load(spinrun("get", "demo", "-o", "yaml")[1]) == HOSTILE_RUN


@pytest.mark.parametrize("command", ["get", "watch", "explain", "events", "samples", "suspend", "delete"])
def test_refusal_is_not_printed_raw(spinrun: Shell, server: FakeApiServer, command: str) -> None:
    for method in ("GET", "PATCH", "DELETE"):
        server.answers(method, failure(403, "Forbidden", EVIL))

    code, out, err = spinrun(command, "demo")

    assert code == 1
    assert "owned" in err
    assert not is_raw(out + err)


def samples(answer: Any) -> Json:
    """A window with one answer, as the command beside the ledger prints it."""
    sample = {"text": answer, "reward": 1.0, "finishReason": answer, "numTokens": 1}
    prompt = {"id": answer, "prompt": answer, "messages": [], "answer": answer, "samples": [sample]}
    return {"window": 1, "version": 1, "numPrompts": 1, "prompts": [prompt]}


def said_by_pods(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What every command beside a ledger prints from now on."""

    async def run_beside_ledger(cluster: Any, document: Json, arguments: Any, write: Any, *, image: str | None) -> None:
        content = text.encode()
        for start in range(0, len(content), 7):
            write(content[start : start + 7])

    monkeypatch.setattr("spinrun_cli.cluster.ledger_pod.run_beside_ledger", run_beside_ledger)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("output", ["text", "json"])
def test_samples_of_the_cluster_are_not_printed_raw(spinrun: Shell, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    evil = "naïve \x1b[31m\x9b 日本 \u202e"
    said_by_pods(monkeypatch, json.dumps(samples(evil), ensure_ascii=False))

    code, out, err = spinrun("samples", "demo", "-o", output)

    assert (code, err) == (0, "")
    assert not is_raw(out)
    if output == "json":
        assert json.loads(out) == samples(evil)
    else:
        assert "naïve �[31m� 日本 �" in out


ODD_DOCUMENTS = {
    "nothing": "",
    "HTML": "<html><script>alert(1)</script></html>",
    "a list": "[]",
    "half": json.dumps(samples("x"))[:-9],
    "a number for a text": json.dumps(samples(7)),
    "a list for a text": json.dumps(samples([])),
    "nested": "[" * 100_000,
    "a large number": '{"window": 1e400, "version": 1, "numPrompts": 1}',
    "raw terminal": "\x1b[31mowned",
}


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", ["samples", "report", "compare"])
@pytest.mark.parametrize("odd", ODD_DOCUMENTS)
def test_what_a_pod_says_counts_only_as_far_as_a_model_takes_it(
    spinrun: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, odd: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said_by_pods(monkeypatch, ODD_DOCUMENTS[odd])

    code, out, err = spinrun(command, "demo")

    assert (code, out) == (1, "")
    assert "arrived incomplete" in err
    assert not is_raw(err)
    assert not (tmp_path / "reports").exists()


@pytest.mark.usefixtures("hostile")
def test_a_pod_that_does_not_stop_talking_is_left(spinrun: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spinrun_cli.cluster.ledger_pod.MAX_OUTPUT_BYTES", 1 << 20)
    said_by_pods(monkeypatch, " " * (2 << 20))

    code, _, err = spinrun("samples", "demo")

    assert (code, "the pod says more than 1 MB" in err) == (1, True)
