"""Runs that are too large are told so, and the largest that are taken hold nobody else up."""

import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spinrun_api.documents import (
    MAX_SPEC_BYTES,
    MAX_SPEC_DEPTH,
    MAX_SPEC_NODES,
    InvalidDocumentError,
    parse_run,
    parse_stored_run,
    read_run,
    size_problem,
)
from spinrun_api.redaction import for_processes
from spinrun_kube.api import ApiError
from spinrun_operator import documents
from spinrun_operator.children.rollout_statefulset import rollout_statefulset
from spinrun_operator.children.run_config import run_config
from spinrun_operator.controller import Controller
from spinrun_operator.drift import hash_of
from spinrun_operator.metrics import Metrics
from spinrun_operator.store import RunStore
from unit.operator.test_executor import KEY, FakeApi
from unit.operator.world import SETTINGS, START, World, run_of

Json = dict[str, Any]

LONGEST_HOLD_SECONDS = 0.05


def nested(levels: int) -> Any:
    """A value of so many mappings inside one another."""
    value: Any = "x"
    for _ in range(levels):
        value = {"a": value}
    return value


def body_of(**spec: Any) -> Json:
    """A run as the API server has it."""
    body = run_of().to_document()
    body["spec"] |= spec
    body["metadata"]["resourceVersion"] = "1"
    return body


def with_template(template: Json) -> Json:
    """A run whose trainer's pods have a template."""
    return body_of(trainer={"template": template})


def with_variables(count: int, size: int) -> Json:
    """A run whose containers have variables: all pods' templates are made of them."""
    variables = [{"name": f"V{number}", "value": "x" * size} for number in range(count // 2)]
    trainer, vllm = ({"spec": {"containers": [{"name": name, "env": variables}]}} for name in ("trainer", "vllm"))
    return body_of(trainer={"template": trainer}, rollout={"template": vllm})


TOO_LARGE: dict[str, Callable[[], Json]] = {
    "1.3 MB of text": lambda: with_template({"metadata": {"annotations": {"a": "x" * 1_300_000}}}),
    "1.3 MB of small values": lambda: with_template({"spec": {"x": [0] * 650_000}}),
    "many keys": lambda: with_template({"spec": {f"k{number}": None for number in range(5000)}}),
    "300 levels": lambda: with_template(nested(300)),
    "5000 levels": lambda: with_template(nested(5000)),
    "300 lists": lambda: with_template({"x": json.loads("[" * 300 + "]" * 300)}),
    "one level too many": lambda: body_of(trainer=nested(MAX_SPEC_DEPTH)),
    "characters that JSON writes longer": lambda: with_template({"a": "\x01" * 50_000}),
    "a spec that is a text": lambda: {**body_of(), "spec": "x" * 1_300_000},
    "a spec that is a list": lambda: {**body_of(), "spec": [[]] * 10_000},
}


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=list(TOO_LARGE))
async def test_run_that_is_too_large_is_told_so_in_its_status(make: Callable[[], Json]) -> None:
    body = make()
    api: Any = FakeApi(body)
    controller = Controller(api, SETTINGS, Metrics(), clock=lambda: START)
    controller.run_changed("ADDED", body)
    await controller._work(KEY)
    assert api.writes == ["status"]
    status = api.run["status"]
    found = {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
    assert found == {kind: (is_true, "InvalidSpec") for kind, is_true in SAID.items()}
    assert status["conditions"][0]["message"].startswith("spec")
    assert len(json.dumps(status)) < 2000
    await controller._work(KEY)
    assert api.writes == ["status"]


SAID = {"Ready": "False", "Progressing": "False", "Degraded": "True"}


async def test_status_of_a_run_is_written_without_its_spec() -> None:
    sent: list[Json] = []

    class Recording(FakeApi):
        async def replace_status(self, document: Json) -> Json:
            sent.append(document)
            return await super().replace_status(document)

    body = with_variables(1000, 100)
    body["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 200_000}
    api: Any = Recording(body)
    controller = Controller(api, SETTINGS, Metrics(), clock=lambda: START)
    controller.run_changed("ADDED", body)
    await controller._work(KEY)
    assert sent[0].keys() == {"apiVersion", "kind", "metadata", "status"}
    assert sent[0]["metadata"] == {"name": "demo", "namespace": "team", "uid": body["metadata"]["uid"], "resourceVersion": "1"}


async def test_status_that_the_api_server_finds_too_large_is_tried_again_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    body = TOO_LARGE["300 levels"]()
    api: Any = FakeApi(body)
    api.refusals["status"] = ApiError(500, "InternalError", "etcdserver: request is too large")
    controller = Controller(api, SETTINGS, Metrics(), clock=lambda: START)
    controller.run_changed("ADDED", body)
    with pytest.raises(Exception, match="request is too large"):
        await controller._work(KEY)
    assert "the status cannot be written: 500 InternalError: etcdserver: request is too large" in caplog.text


async def test_run_that_is_corrected_is_served() -> None:
    body = TOO_LARGE["many keys"]()
    api: Any = FakeApi(body)
    controller = Controller(api, SETTINGS, Metrics(), clock=lambda: START)
    controller.run_changed("ADDED", body)
    await controller._work(KEY)
    api.run = api.run | {"spec": run_of().to_document()["spec"]}
    controller.run_changed("MODIFIED", api._change_run())
    await controller._work(KEY)
    assert "Job/demo-trainer-1" in api.writes


def test_spec_that_is_too_large_is_not_kept() -> None:
    store: Any = RunStore(None)  # type: ignore[arg-type]
    body = TOO_LARGE["1.3 MB of text"]()
    body["metadata"]["annotations"] = {"a": "x" * 200_000}
    store.put(body)
    assert len(json.dumps(store.get(KEY))) < 1000
    assert KEY in store._problems
    store.remove(body)
    assert KEY not in store._problems


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=list(TOO_LARGE))
def test_user_is_told_before_the_cluster_is(make: Callable[[], Json]) -> None:
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(make())
    (problem,) = raised.value.problems
    assert problem.path.startswith("spec")
    assert len(str(raised.value)) < 1000


def test_problem_names_the_field_that_is_nested_too_deep() -> None:
    problem = size_problem(with_template(nested(300))["spec"])
    assert (
        str(problem) == f"spec.trainer.template: is nested deeper than {MAX_SPEC_DEPTH} levels: remove what does not belong there"
    )


# --- the largest that are taken ------------------------------------------------------------------------------------


def largest(make: Callable[[int], Json], most: int) -> Json:
    """The largest of a family that is not too large."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if size_problem(make(middle)["spec"]) else (middle, high)
    return make(low)


def deep_and_wide(width: int) -> Json:
    """Templates of mappings nested as deep as may be, so many beside one another."""
    deep = {f"k{number}": nested(MAX_SPEC_DEPTH - 6) for number in range(width)}
    return body_of(trainer={"template": {"metadata": {"annotations": deep}}})


LARGEST: dict[str, Callable[[], Json]] = {
    "as much text as may be": lambda: largest(lambda count: with_variables(8, count), MAX_SPEC_BYTES),
    "as many values as may be": lambda: largest(lambda count: with_variables(count, 30), MAX_SPEC_NODES),
    "as deep as may be": lambda: largest(deep_and_wide, MAX_SPEC_NODES),
    "numbers": lambda: largest(lambda count: with_template({"spec": {"x": [0] * count}}), MAX_SPEC_NODES),
    "control characters": lambda: largest(lambda count: with_template({"a": "\x01" * count}), MAX_SPEC_BYTES),
}
large_runs = pytest.mark.parametrize("make", LARGEST.values(), ids=list(LARGEST))


@large_runs
def test_largest_run_can_be_read_from_its_file_and_fits_into_a_config_map(make: Callable[[], Json], tmp_path: Any) -> None:
    run = parse_stored_run(make())
    text = run_config(run)["data"]["run.yaml"]
    assert len(text.encode()) < 900_000
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    without_secrets = parse_stored_run(for_processes(run.to_document()))
    assert read_run(tmp_path / "run.yaml").spec == without_secrets.spec


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: what all the tests before have left takes longer than what is measured."""
    gc.disable()
    yield
    gc.enable()


class SlowApi(FakeApi):
    """An API server for which one waits, so that others have their turn."""

    async def apply(self, document: Json) -> Json:
        json.dumps(document)
        await asyncio.sleep(0)
        return await super().apply(document)

    async def replace_status(self, document: Json) -> Json:
        await asyncio.sleep(0)
        return await super().replace_status(document)


@large_runs
@pytest.mark.usefixtures("uncollected")
async def test_largest_run_never_holds_the_others_up(make: Callable[[], Json]) -> None:
    body = make()
    api: Any = SlowApi(body)
    controller = Controller(api, SETTINGS, Metrics(), clock=lambda: START)
    holds: list[float] = []

    async def watch() -> None:
        # By processor time: what other programs take is not this one's fault.
        while True:
            before = time.process_time()
            await asyncio.sleep(0)
            holds.append(time.process_time() - before)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    controller.run_changed("ADDED", body)
    for _ in range(3):
        await controller._work(KEY)
    watching.cancel()
    assert "Job/demo-trainer-1" in api.writes
    assert max(holds) < LONGEST_HOLD_SECONDS


def test_children_are_made_once_for_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    with_hash = documents.with_hash

    def counting(document: Json) -> Json:
        hashed.append(f"{document['kind']}/{document['metadata']['name']}")
        return with_hash(document)

    monkeypatch.setattr(documents, "with_hash", counting)
    world = World()
    kept = documents.ChildDocuments(world.run, world.settings)
    first = world.step(kept)
    assert all(hash_of(child) for child in first.apply if child["kind"] not in ("Secret", "PersistentVolumeClaim"))
    made = len(hashed)
    for _ in range(5):
        world.pass_time(100)
        world.step(kept)
    assert len(hashed) == made
    assert kept.are_of(world.run)
    world.change_spec(rollout={"replicas": 2})
    assert not kept.are_of(world.run)


def test_another_attempt_and_another_number_of_rollouts_are_made_again() -> None:
    world = World()
    kept = documents.ChildDocuments(world.run, world.settings)

    def replicas(child: Json) -> int:
        return child["spec"]["replicas"]

    assert [replicas(kept.make(rollout_statefulset, SETTINGS, replicas=count)) for count in (1, 0, 1)] == [1, 0, 1]
