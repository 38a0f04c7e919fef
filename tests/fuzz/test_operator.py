"""The operator on an API server that says anything, stores anything, and breaks off anywhere.

However long that lasts and whatever it was: the operator lives, no pass fails by a mistake of ours, it writes no more than it
needs to, and once the noise has ended every run has its children and all is quiet.
"""

import asyncio
import copy
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fuzz.strategies import Content, damaged, fuzz, integers, mutated, nested, plain_texts, texts, trees
from spinrun_kube.api import Api, connect
from spinrun_kube.kinds import CHILDREN, CONFIG_MAP, JOB, POD, SECRET, SPIN_RUN, STATEFUL_SET, Kind
from spinrun_operator import backoff
from spinrun_operator.controller import Controller
from spinrun_operator.metrics import Metrics
from support import scripted_api as said
from support.scripted_api import LIST, WATCH, Behaviour, ScriptedApi, scripted_api
from unit.operator.world import SETTINGS, run_of

Json = Any
Noise = Callable[["Attacked"], Awaitable[None]]

IMPATIENT = replace(
    SETTINGS, request_timeout_seconds=0.5, watch_silence_seconds=0.5, coalesce_seconds=0.01, pod_monitor=False, trouble_seconds=1
)
WRITES = frozenset({"post", "put", "patch", "delete"})
WRITES_OF_A_RUN = 40
"""Its children, their status and Events, with as many again for conflicts."""
WRITES_OF_A_NOISE = 60
"""A run that is put, and the children of others that are taken away."""
CONVERGED_SECONDS = 15.0
QUIET_SECONDS = 0.3
STEADY = "steady"
"""The run that is there from the beginning."""


class Log(logging.Handler):
    """Collects what the operator logs with a traceback: mistakes of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.faults.append(f"{record.getMessage()}: {record.exc_info[1]!r}")

    def taken(self) -> list[str]:
        """Those since the last time: one input is not blamed for another's."""
        faults, self.faults = self.faults, []
        return faults


class Attacked:
    """An operator in this process, and the server that it has."""

    def __init__(self, api: ScriptedApi, task: "asyncio.Task[None]", log: Log) -> None:
        self.api = api
        self.task = task
        self.log = log
        self.rounds = 0

    def writes(self) -> int:
        return sum(count for (verb, _), count in self.api.asked.items() if verb in WRITES)

    def children(self, run: str) -> set[tuple[str, str]]:
        """Kind and name of what the operator has made for a run."""
        found = [document for kind in CHILDREN for document in self.api.of_kind(kind)]
        return {
            (each["kind"], each["metadata"]["name"])
            for each in found
            if (each["metadata"].get("labels") or {}).get("spinrun.dev/run") == run
        }

    async def until(self, what: str, holds: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(CONVERGED_SECONDS):
                while not holds():
                    assert not self.task.done(), self.task
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"not within {CONVERGED_SECONDS} s: {what}")

    async def assert_converges(self, noises: int, before: int) -> None:
        """The noise has ended: all is made as it should be, in no more writes than that takes, and then there is quiet."""
        self.api.answers.clear()
        self.api.raw.clear()
        self.rounds += 1
        name = f"round-{self.rounds}"
        for kind in (SPIN_RUN, POD, *CHILDREN):
            for document in self.api.of_kind(kind):
                if document["metadata"]["name"].startswith("noise"):
                    self.api.remove(kind, document["metadata"]["namespace"], document["metadata"]["name"])
        self.api.end_watches()
        self.api.put(SPIN_RUN, run_body(name))
        wanted = {(kind, child.replace(STEADY, name)) for kind, child in STEADY_CHILDREN}
        await self.until(f"the new run has {wanted}", lambda: self.children(name) >= wanted)
        await self.until("the old run has its children", lambda: self.children(STEADY) >= STEADY_CHILDREN)
        assert self.writes() - before <= WRITES_OF_A_RUN + WRITES_OF_A_NOISE * noises
        self.api.remove(SPIN_RUN, "team", name)
        for kind in CHILDREN:
            for document in self.api.of_kind(kind):
                if document["metadata"]["labels"].get("spinrun.dev/run") == name:
                    self.api.remove(kind, "team", document["metadata"]["name"])
        await self.until_quiet()
        assert not self.task.done(), self.task
        assert not self.log.taken()

    async def until_quiet(self) -> None:
        """Nothing is written for a while."""
        async with asyncio.timeout(CONVERGED_SECONDS):
            while True:
                writes = self.writes()
                await asyncio.sleep(QUIET_SECONDS)
                if self.writes() == writes:
                    return


STEADY_CHILDREN: set[tuple[str, str]] = set()
"""What a run is given; known once the first one is."""


def run_body(name: str) -> Json:
    """A SpinRun as a user makes it."""
    body = run_of(name).to_document()
    return body | {"metadata": body["metadata"] | {"uid": f"uid-of-{name}"}}


@pytest.fixture
async def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Attacked]:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.05)
    log = Log()
    logging.getLogger("spinrun_operator").addHandler(log)
    async with scripted_api(tmp_path) as (server, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        async with await connect() as client:
            seconds = IMPATIENT.request_timeout_seconds
            api = Api(client, request_timeout_seconds=seconds, watch_silence_seconds=IMPATIENT.watch_silence_seconds)
            task = asyncio.create_task(Controller(api, IMPATIENT, Metrics()).run())
            attacked = Attacked(server, task, log)
            server.put(SPIN_RUN, run_body(STEADY))
            await attacked.until("a run has its Job", lambda: server.of_kind(JOB))
            await attacked.until_quiet()
            STEADY_CHILDREN.update(attacked.children(STEADY))
            yield attacked
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    logging.getLogger("spinrun_operator").removeHandler(log)


# --- noise ---------------------------------------------------------------------------------------------------------

KINDS = st.sampled_from([SPIN_RUN, POD, CONFIG_MAP, SECRET, JOB, STATEFUL_SET])
odd = trees(integers | texts | st.none() | st.booleans() | st.floats(allow_nan=False)) | st.builds(nested, st.just(300))

METADATA = {
    "name": "noise",
    "namespace": "team",
    "uid": "uid-of-noise",
    "resourceVersion": "999999",
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "labels": {"spinrun.dev/run": STEADY, "app.kubernetes.io/component": "trainer", "spinrun.dev/attempt": "1"},
    "ownerReferences": [{"kind": "SpinRun", "name": STEADY, "uid": f"uid-of-{STEADY}", "controller": True}],
}
STATUSES = {
    "Pod": {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [{"name": "trainer", "state": {"running": {}}}]},
    "Job": {"active": 1, "succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]},
    "StatefulSet": {"replicas": 1, "readyReplicas": 1, "observedGeneration": 1},
}


def objects(kind: Kind) -> st.SearchStrategy[Json]:
    """Objects of a kind as they are not, with our label and perhaps our owner."""
    if kind == SPIN_RUN:
        body = run_body("noise")
        return mutated(st.just(body | {"status": {"phase": "Running", "attempts": 1}}), odd)
    status = STATUSES.get(kind.name, {})
    document = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": METADATA, "spec": {}, "status": status}
    return mutated(st.just(document), odd)


def mapping(value: Any) -> dict[str, Any]:
    """The value, or an empty mapping in place of anything else: this much the scripted server must be able to store."""
    return value if isinstance(value, dict) else {}


@st.composite
def events(draw: st.DrawFn) -> Noise:
    """An event about an object that is not as it should be, or bytes that are hardly one."""
    kind = draw(KINDS)
    change = draw(st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "GONE"]))
    line = json.dumps({"type": change, "object": draw(objects(kind))}).encode("utf-8", "surrogatepass")
    line = draw(st.just(line) | damaged(st.just(line)))

    async def noise(operator: Attacked) -> None:
        operator.api.tell(kind, line + b"\n")

    return named(noise, f"{kind.plural} are told of {Content(line)!r}")


@st.composite
def stored(draw: st.DrawFn) -> Noise:
    """An object that is stored as it is, as anybody may whom the API server lets."""
    kind = draw(KINDS)
    document = draw(objects(kind))

    async def noise(operator: Attacked) -> None:
        shown = mapping(copy.deepcopy(document))
        metadata = mapping(shown.get("metadata"))
        own = {"name": "noise", "namespace": "team", "labels": mapping(metadata.get("labels"))}
        operator.api.put(kind, shown | {"metadata": metadata | own})

    return named(noise, f"{kind.plural} have {json.dumps(document)[:500]}")


def wrong_answers() -> st.SearchStrategy[tuple[str, Behaviour]]:
    """What is said in place of an answer, whatever was asked."""
    page = json.dumps({"kind": "List", "metadata": {"resourceVersion": "5"}, "items": [{"metadata": METADATA}]}).encode()
    bodies = st.sampled_from([b"", b"<html>", b"null", b"[1]", b"\xff", page, b"[" * 3000]) | damaged(st.just(page))
    bodies = bodies | mutated(st.just(json.loads(page)), odd).map(lambda body: json.dumps(body).encode("utf-8", "surrogatepass"))
    statuses = st.sampled_from([200, 200, 400, 401, 403, 404, 409, 410, 422, 429, 500, 503])
    whole = st.builds(lambda body, status: (f"{status} {Content(body)!r}", said.text(body, status=status)), bodies, statuses)
    cuts = st.lists(bodies, max_size=4)
    in_pieces = st.builds(
        lambda pieces, reset: (f"{pieces!r}, reset {reset}", said.stream(*pieces, then_reset=reset)), cuts, st.booleans()
    )
    return whole | in_pieces | st.sampled_from([("a reset", said.reset), ("nothing", said.hang)])


@st.composite
def answered(draw: st.DrawFn) -> Noise:
    """A verb that is answered wrongly for a while."""
    verb = draw(st.sampled_from([LIST, LIST, WATCH, WATCH, "get", "patch", "put", "post", "delete"]))
    plural = draw(st.just("*") | KINDS.map(lambda kind: kind.plural))
    what, answer = draw(wrong_answers())

    async def noise(operator: Attacked) -> None:
        operator.api.answers[verb, plural] = answer
        operator.api.end_watches()
        await asyncio.sleep(0.05)

    return named(noise, f"to {verb} {plural}: {what}")


@st.composite
def taken_away(draw: st.DrawFn) -> Noise:
    """A child of the run is deleted by somebody."""
    kind = draw(st.sampled_from([kind for kind in CHILDREN if kind != JOB]))

    async def noise(operator: Attacked) -> None:
        for document in operator.api.of_kind(kind)[:1]:
            operator.api.remove(kind, "team", document["metadata"]["name"])

    return named(noise, f"one of {kind.plural} is deleted")


async def _recovery(operator: Attacked) -> None:
    operator.api.answers.clear()
    await asyncio.sleep(0.05)


async def _end(operator: Attacked) -> None:
    operator.api.end_watches()


def named(noise: Noise, name: str) -> Noise:
    """What a failure shows of it."""
    noise.__qualname__ = name
    return noise


noises = st.lists(events() | stored() | answered() | taken_away() | st.sampled_from([_recovery, _end]), min_size=1, max_size=8)


@fuzz(25, noise=noises)
async def test_noise(operator: Attacked, noise: list[Noise]) -> None:
    before = operator.writes()
    for each in noise:
        await each(operator)
    await asyncio.sleep(0.02)
    await operator.assert_converges(len(noise), before)


@fuzz(10, told=st.lists(events(), min_size=20, max_size=60))
async def test_many_events(operator: Attacked, told: list[Noise]) -> None:
    before = operator.writes()
    for each in told:
        await each(operator)
    await operator.assert_converges(1, before)


@fuzz(40, name=plain_texts, document=objects(SPIN_RUN))
async def test_run_that_the_api_server_should_not_have_taken(operator: Attacked, name: str, document: Json) -> None:
    """One round for each would take long; faults show at once."""
    body, before = mapping(document), operator.writes()
    operator.api.put(
        SPIN_RUN,
        body | {"metadata": mapping(body.get("metadata")) | {"name": "noise", "namespace": "team", "annotations": {"x": name}}},
    )
    await asyncio.sleep(0.1)
    operator.api.remove(SPIN_RUN, "team", "noise")
    await asyncio.sleep(0.02)
    assert operator.writes() - before <= WRITES_OF_A_RUN
    assert not operator.task.done(), operator.task
    assert not operator.log.taken()
