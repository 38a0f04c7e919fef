"""An API server, or what stands before it, that says anything at all: the operator serves on."""

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spinrun_kube.api import LINE_BYTES, Api, connect
from spinrun_kube.kinds import CHILDREN, SPIN_RUN
from spinrun_operator import backoff
from spinrun_operator.controller import Controller
from spinrun_operator.metrics import Metrics
from support import scripted_api as said
from support.scripted_api import WATCH, Behaviour, ScriptedApi, scripted_api
from unit.operator.world import SETTINGS, run_of

Json = dict[str, Any]

IMPATIENT = replace(
    SETTINGS, request_timeout_seconds=0.5, watch_silence_seconds=0.5, coalesce_seconds=0.01, pod_monitor=False, trouble_seconds=1
)
HTML = said.text("<html>gateway</html>", content_type="text/html")
CHILDREN_OF_A_RUN = 2 + len(CHILDREN) - 1  # two Services and two NetworkPolicies; the Job is among them, the pods are not


class Operator:
    """An operator in this process, and the server that it has."""

    def __init__(self, api: ScriptedApi, controller: Controller, task: "asyncio.Task[None]", metrics: Metrics) -> None:
        self.api = api
        self.controller = controller
        self.task = task
        self.metrics = metrics

    async def until(self, holds: Callable[[], object], seconds: float = 10.0) -> None:
        """Waits until it holds, and fails when the operator ends."""
        async with asyncio.timeout(seconds):
            while not holds():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.02)

    async def serves(self, name: str) -> None:
        """A run that is new is given its children."""
        self.api.put(SPIN_RUN, run_body(name))
        await self.until(lambda: len(children_of(self.api, name)) >= CHILDREN_OF_A_RUN)


def run_body(name: str) -> Json:
    """A SpinRun as a user makes it."""
    body = run_of(name).to_document()
    return body | {"metadata": body["metadata"] | {"uid": f"uid-of-{name}"}}


def children_of(api: ScriptedApi, name: str) -> list[Json]:
    """What the operator has made for a run."""
    documents = (document for kind in CHILDREN for document in api.of_kind(kind))
    return [each for each in documents if each["metadata"].get("labels", {}).get("spinrun.dev/run") == name]


@asynccontextmanager
async def operator_on(api: ScriptedApi, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Operator]:
    """Runs an operator."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    metrics = Metrics()
    async with await connect() as client:
        calls = Api(
            client,
            request_timeout_seconds=IMPATIENT.request_timeout_seconds,
            watch_silence_seconds=IMPATIENT.watch_silence_seconds,
        )
        controller = Controller(calls, IMPATIENT, metrics)
        task = asyncio.create_task(controller.run())
        try:
            yield Operator(api, controller, task, metrics)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Operator]:
    """An operator whose pauses are short."""
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.2)
    async with scripted_api(tmp_path) as (api, kubeconfig), operator_on(api, kubeconfig, monkeypatch) as running:
        yield running


def event(kind: str, document: Any) -> bytes:
    """A line of a watch."""
    return json.dumps({"type": kind, "object": document}).encode() + b"\n"


def cm(**metadata: Any) -> Json:
    """A ConfigMap that is nobody's."""
    base = {"name": "evil", "namespace": "team", "uid": "e", "resourceVersion": "500", "labels": {"spinrun.dev/run": "first"}}
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": base | metadata, "data": {"x": "y"}}


DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000
WATCHES: dict[str, Behaviour] = {
    "html": HTML,
    "a redirect": said.text("", status=302, Location="http://127.0.0.1:1/"),
    "403": said.document({"kind": "Status", "reason": "Forbidden", "message": "no", "code": 403}, status=403),
    "429": said.document({"reason": "TooManyRequests", "code": 429}, status=429, **{"Retry-After": "1"}),
    "429 for ever": said.document({"code": 429}, status=429, **{"Retry-After": "9" * 400}),
    "410": said.text(event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})),
    "500 without JSON": said.text(b"\xff" * 5000, status=500),
    "500 that is endless": said.stream(*[b"x" * 65536] * 100),
    "nothing": said.text(""),
    "an error without object": said.text('{"type":"ERROR"}\n'),
    "an error of another kind": said.text('{"type":"ERROR","object":7}\n'),
    "an error with a text for a code": said.text('{"type":"ERROR","object":{"code":"x","reason":[],"message":{}}}\n'),
    "half a line": said.text(b'{"type":"ADDED","obj'),
    "half a line, then a reset": said.stream(b'{"type":"ADDED","obj', then_reset=True),
    "a reset": said.reset,
    "not UTF-8": said.text(b"\xff\xfe\n"),
    "not UTF-8 in a text": said.text(b'{"type":"ADDED","object":{"metadata":{"name":"\xff\xfe"}}}\n'),
    "a list": said.text("[1, 2]\n"),
    "a number": said.text("7\n"),
    "a number of many digits": said.text("7" * 10_000 + "\n"),
    "NaN": said.text("NaN\n"),
    "null": said.text("null\n"),
    "no type": said.text('{"object":{}}\n'),
    "a number as type": said.text('{"type":7,"object":{}}\n'),
    "a number as object": said.text('{"type":"ADDED","object":7}\n'),
    "an unknown type": said.text('{"type":"GONE","object":{}}\n'),
    "a bookmark without version": said.text('{"type":"BOOKMARK","object":{}}\n'),
    "a line that is too long": said.stream(b'{"type":"ADDED","object":{"x":"' + b"y" * (LINE_BYTES + 1) + b'"}}\n'),
    "a line without end": said.stream(*[b"y" * 100_000] * 200),
    "gzip that is none": said.text(b"\x00garbage", **{"Content-Encoding": "gzip"}),
    "gzip that ends early": said.text(gzip.compress(event("ADDED", cm()) * 1000)[:-20], **{"Content-Encoding": "gzip"}),
    "deep": said.text(b'{"type":"ADDED","object":' + DEEP + b"}\n"),
    "deep without end": said.text(b'{"type":"ADDED","object":' + DEEP[:20_000] + b"\n"),
    "empty lines": said.text("\n" * 100_000),
    "no metadata": said.text(event("ADDED", {})),
    "empty metadata": said.text(event("ADDED", {"metadata": {}})),
    "a number as metadata": said.text(event("ADDED", {"metadata": 7})),
    "another kind": said.text(event("ADDED", cm() | {"kind": "Pod"})),
    "null everywhere": said.text(event("ADDED", {"metadata": dict.fromkeys(("name", "namespace", "uid", "labels"))})),
    **{
        f"{field} is {value!r}": said.text(event(change, cm(**{field: value})))
        for change, (field, value) in zip(
            itertools.cycle(("ADDED", "MODIFIED", "DELETED")),
            [
                ("uid", 7),
                ("uid", []),
                ("uid", "u" * 1000),
                ("name", {}),
                ("name", ""),
                ("namespace", None),
                ("namespace", 7),
                ("resourceVersion", "abc"),
                ("resourceVersion", 7),
                ("resourceVersion", "9" * 5000),
                ("resourceVersion", "²"),
                ("resourceVersion", None),
                ("labels", []),
                ("labels", {"spinrun.dev/run": 7}),
                ("labels", {"spinrun.dev/run": {}}),
                ("annotations", 7),
                ("ownerReferences", 7),
                ("ownerReferences", [7]),
                ("ownerReferences", [{"controller": True, "uid": {}}]),
                ("ownerReferences", [{"controller": True}]),
                ("deletionTimestamp", "yesterday"),
                ("deletionTimestamp", 7),
                ("creationTimestamp", "2026-13-45"),
            ],
            strict=False,
        )
    },
}


@pytest.mark.parametrize("answer", WATCHES.values(), ids=WATCHES.keys())
async def test_whatever_a_watch_says_the_operator_serves_on(operator: Operator, answer: Behaviour) -> None:
    for plural in ("configmaps", "spinruns"):
        operator.api.answers[WATCH, plural] = answer
    await operator.until(lambda: operator.api.asked[WATCH, "configmaps"] >= 2 and operator.api.asked[WATCH, "spinruns"] >= 2)
    await operator.serves("first")
    operator.api.answers.clear()
    await operator.serves("second")
