"""An API server, or what stands before it, that says anything at all: the operator serves on."""

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spinrun_kube import api
from spinrun_kube.api import LINE_BYTES, Api, connect
from spinrun_kube.kinds import CHILDREN, CONFIG_MAP, JOB, SPIN_RUN
from spinrun_operator import backoff
from spinrun_operator.controller import Controller
from spinrun_operator.metrics import Metrics
from support import scripted_api as said
from support.scripted_api import LIST, WATCH, Behaviour, ScriptedApi, scripted_api
from unit.operator.world import SETTINGS, run_of

Json = dict[str, Any]

IMPATIENT = replace(
    SETTINGS, request_timeout_seconds=0.8, watch_silence_seconds=0.5, coalesce_seconds=0.01, pod_monitor=False, trouble_seconds=1
)
HTML = said.text("<html>gateway</html>", content_type="text/html")
CHILDREN_OF_A_RUN = len(CHILDREN)


class Operator:
    """An operator in this process, and the server that it has."""

    def __init__(
        self, api: ScriptedApi, calls: Api, controller: Controller, task: "asyncio.Task[None]", metrics: Metrics
    ) -> None:
        self.api = api
        self.calls = calls
        self.controller = controller
        self.task = task
        self.metrics = metrics

    async def until(self, holds: Callable[[], object], seconds: float = 10.0) -> None:
        """Waits until it holds, and fails when the operator ends."""
        async with asyncio.timeout(seconds):
            while not holds():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.01)

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
async def operator_on(server: ScriptedApi, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Operator]:
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
            # Tests of lists alone have no hurry.
            yield Operator(server, Api(client), controller, task, metrics)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Operator]:
    """An operator whose pauses are short."""
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.04)
    async with scripted_api(tmp_path) as (server, kubeconfig), operator_on(server, kubeconfig, monkeypatch) as running:
        yield running


PLURALS = ("configmaps", "pods", "spinruns")


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
    "a redirect": said.text("", status=302, headers={"Location": "http://127.0.0.1:1/"}),
    "403": said.document({"kind": "Status", "reason": "Forbidden", "message": "no", "code": 403}, status=403),
    "429": said.document({"reason": "TooManyRequests", "code": 429}, status=429, headers={"Retry-After": "1"}),
    "429 for ever": said.document({"code": 429}, status=429, headers={"Retry-After": "9" * 400}),
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
    "gzip that is not gzip": said.text(b"\x00garbage", {"Content-Encoding": "gzip"}),
    "gzip that ends early": said.text(gzip.compress(event("ADDED", cm()) * 1000)[:-20], {"Content-Encoding": "gzip"}),
    "deep": said.text(b'{"type":"ADDED","object":' + DEEP + b"}\n"),
    "deep without end": said.text(b'{"type":"ADDED","object":' + DEEP[:20_000] + b"\n"),
    "silence without headers": said.hang,
    "silence": said.stream(b"\n", 30.0),
    "one byte at a time": said.stream(*[b"x", 0.1] * 20),
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


def page(items: Any = (), **metadata: Any) -> Json:
    """A list of ConfigMaps, or of what a test says."""
    return {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "5"} | metadata, "items": items}


def endless(next_of: Callable[[int], str]) -> Behaviour:
    """A list that has always another page."""
    numbers = itertools.count(1)
    return lambda request: said.document(page(**{"continue": next_of(next(numbers))}))(request)


LISTS: dict[str, Behaviour] = {
    "html": HTML,
    "a redirect": said.text("", status=307, headers={"Location": "http://127.0.0.1:1/"}),
    "403": said.document({"reason": "Forbidden", "message": "no"}, status=403),
    "410": said.document({"reason": "Expired", "code": 410}, status=410),
    "500": said.text("", status=500),
    "nothing": said.text(""),
    "a reset": said.reset,
    "half an answer": said.stream(b'{"kind":"List","metadata":{"resour', then_reset=True),
    "not UTF-8": said.text(b"\xff\xfe"),
    "a list of numbers": said.text("[1]"),
    "a number": said.text("7"),
    "another kind": said.document({"kind": "Status", "metadata": {}, "status": "Success"}),
    "a list of another kind": said.document(page() | {"kind": "PodList"}),
    "a kind that is a list": said.document(page() | {"kind": []}),
    "no metadata": said.document({"kind": "List", "items": []}),
    "a number as metadata": said.document(page() | {"metadata": 7}),
    "no version": said.document(page(resourceVersion=None)),
    "an empty version": said.document(page(resourceVersion="")),
    "a number as version": said.document(page(resourceVersion=5)),
    "a version that is not a number": said.document(page(resourceVersion="abc")),
    "a version of many digits": said.document(page(resourceVersion="9" * 5000)),
    "a number as items": said.document(page(7)),
    "a map as items": said.document(page({"a": 1})),
    "numbers as items": said.document(page([7, 8])),
    "null as items": said.document(page(None)),
    "the same page for ever": endless(lambda _: "again"),
    "another page for ever": endless(str),
    "a number for the next page": said.document(page(**{"continue": 7})),
    "too long": said.stream(b'{"x":"', *[b"y" * 65536] * 100, b'"}'),
    "gzip that is not gzip": said.text("garbage", {"Content-Encoding": "gzip"}),
    "a bomb": said.text(gzip.compress(b" " * 100_000_000), {"Content-Encoding": "gzip"}),
    "deep": said.text(b'{"kind":"List","metadata":{"resourceVersion":"5"},"items":[' + DEEP + b"]}"),
    "slow": said.stream(b"{", 0.3, b" ", 0.3, b" ", 0.3, b"}"),
    "silence": said.hang,
    "empty objects": said.document(page([{}, {}])),
    "objects that are not": said.document(page([cm(uid=7), cm(name=[]), cm(resourceVersion="x"), cm(labels=7)])),
    "objects whose owners are not": said.document(page([cm(ownerReferences=[{"uid": {}}]), cm(ownerReferences=[7])])),
    "generations that are not numbers": said.document(page([cm(generation=[1]), cm(generation=True)])),
}


async def test_whatever_a_watch_says_the_operator_serves_on(operator: Operator) -> None:
    for number, (name, answer) in enumerate(WATCHES.items()):
        await live_through(operator, WATCH, f"a watch says {name}", {(WATCH, plural): answer for plural in PLURALS})
        if number % 10 == 0:
            await operator.serves(f"run-{number}")


async def test_whatever_a_list_says_the_operator_serves_once_it_is_well_again(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "MOST_PAGES", 50)
    await operator.serves("first")
    ends = said.text("")
    for number, (name, answer) in enumerate(LISTS.items()):
        broken = {(LIST, plural): answer for plural in PLURALS} | {(WATCH, plural): ends for plural in PLURALS}
        await live_through(operator, LIST, f"a list says {name}", broken)
        if number % 10 == 0:
            await operator.serves(f"run-{number}")
    assert len(operator.api.of_kind(JOB)) == 1 + len(range(0, len(LISTS), 10)), "nobody's Job was made a second time"


async def test_whatever_the_api_server_says_of_its_kinds_it_is_asked_again(operator: Operator) -> None:
    for name, answer in LISTS.items():
        operator.api.answers["discover", ""] = answer
        asked = operator.api.asked["discover", ""]
        asking = asyncio.create_task(operator.controller._is_served(SPIN_RUN))
        await operator.until(lambda: operator.api.asked["discover", ""] >= asked + 2 or asking.done())  # noqa: B023
        assert not asking.done(), name
        operator.api.answers.clear()
        assert await asking, name


async def test_operator_that_has_not_seen_everything_is_not_ready_and_says_why(operator: Operator) -> None:
    operator.api.answers[LIST, "jobs"] = HTML
    await operator.until(lambda: any("not JSON" in said for said in operator.controller.not_ready()))
    assert {each.partition(":")[0] for each in operator.controller.not_ready()} == {"jobs", "pods"}, "pods come after Jobs"
    operator.api.answers.clear()
    await operator.until(lambda: operator.controller.not_ready() == [])


async def test_operator_that_hears_nothing_any_more_is_not_ready(operator: Operator) -> None:
    await operator.until(lambda: operator.controller.not_ready() == [])
    follower = operator.controller._run_followers[0]
    follower.last_message -= IMPATIENT.watch_silence_seconds + backoff.LONGEST_SECONDS + 100
    operator.api.answers[LIST, "spinruns"] = HTML
    operator.api.answers[WATCH, "spinruns"] = said.hang
    operator.api.end_watches()
    await operator.until(lambda: any("spinruns: nothing heard lately" in each for each in operator.controller.not_ready()))


async def live_through(operator: Operator, verb: str, what: str, answers: dict[tuple[str, str], Behaviour]) -> None:
    """The server says so until it was asked twice more, and then the truth."""
    asked = operator.api.asked.copy()
    operator.api.answers |= answers
    # Who watches in silence is not asked.
    operator.api.end_watches()
    try:
        await operator.until(lambda: all(operator.api.asked[each] >= asked[each] + 2 for each in answers if each[0] == verb))
    except TimeoutError:
        pytest.fail(f"it does not try again when {what}: {operator.api.asked - asked}")
    operator.api.answers.clear()


# --- how often -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [WATCHES[name] for name in ("nothing", "410", "html")], ids=["nothing", "410", "html"])
async def test_watches_that_end_at_once_are_followed_by_fewer_and_fewer_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Behaviour
) -> None:
    async with scripted_api(tmp_path) as (server, kubeconfig):
        server.answers[WATCH, "*"] = answer
        async with operator_on(server, kubeconfig, monkeypatch) as operator:
            await operator.until(lambda: server.asked[WATCH, "jobs"] >= 1)
            await asyncio.sleep(1)
            assert max(count for (verb, _), count in server.asked.items() if verb in (LIST, WATCH)) <= 4
            await operator.serves("first")


def test_pauses_grow_to_a_limit_and_are_short_again_after_a_healthy_while() -> None:
    pauses = backoff.Backoff(healthy_seconds=30)
    grown = [pauses.pause(lasted=0.0) for _ in range(20)]
    assert all(0.25 * 2 ** min(number, 6) * 0.9 <= pause <= 30 for number, pause in enumerate(grown))
    assert max(grown) <= 30
    assert len(set(grown)) == 20, "never quite the same"
    assert pauses.pause(lasted=31.0) <= 0.5
    assert 0.5 <= pauses.pause(lasted=0.0) <= 1.0


@pytest.mark.parametrize(("asked", "most"), [(5.0, 5.0), (1e9, 30.0), (0.0, 0.5)])
def test_server_may_ask_for_a_longer_pause_but_not_for_ever(asked: float, most: float) -> None:
    assert most / 2 <= backoff.Backoff(healthy_seconds=30).pause(0.0, asked) <= most


# --- what is large -------------------------------------------------------------------------------------------------


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and lines may have no more than 100 kB."""
    monkeypatch.setattr(api, "PAGE_BYTES", 100_000)
    monkeypatch.setattr(api, "LINE_BYTES", 100_000)


@pytest.mark.usefixtures("short_limits")
async def test_pages_get_smaller_where_objects_are_large(operator: Operator) -> None:
    for number in range(30):
        server_put(operator.api, number, size=17_000)
    pages = [len(items) async for items, _ in operator.calls.pages(CONFIG_MAP, None)]
    assert sum(pages) == 30
    assert max(pages) <= 6


@pytest.mark.usefixtures("short_limits")
async def test_object_larger_than_a_page_is_listed_by_its_metadata(operator: Operator) -> None:
    for number, size in enumerate((10, 100_000, 10)):
        server_put(operator.api, number, size=size)
    items, _ = await operator.calls.list(CONFIG_MAP, None)
    assert [(item["metadata"]["name"], "data" in item) for item in items] == [("cm-0", True), ("cm-1", False), ("cm-2", True)]


@pytest.mark.usefixtures("short_limits")
async def test_run_larger_than_a_page_is_served(operator: Operator) -> None:
    body = run_body("large")
    body["metadata"]["annotations"] = {"note": "<" * 100_000}
    operator.api.put(SPIN_RUN, body)
    await operator.until(lambda: len(children_of(operator.api, "large")) >= CHILDREN_OF_A_RUN)


async def test_run_nested_deeper_than_python_reads_disturbs_nobody(operator: Operator) -> None:
    """The API server takes ten thousand levels; Python's parser gives up before one thousand."""
    body = operator.api.put(SPIN_RUN, run_body("deep"))
    text = json.dumps(body | {"spec": body["spec"] | {"trainer": {"template": {"spec": {"x": 0}}}}})
    operator.api.raw["spinruns", "team", "deep"] = text.replace('{"x": 0}', DEEP.decode())
    await operator.until(lambda: ("team", "deep") in operator.controller.runs())
    await operator.serves("other")


def server_put(server: ScriptedApi, number: int, size: int) -> None:
    """A ConfigMap of that size."""
    server.put(CONFIG_MAP, {"metadata": {"name": f"cm-{number}", "namespace": "team"}, "data": {"x": "y" * size}})
