"""How a plan is carried out: in which order, and what happens when something has changed meanwhile."""

from dataclasses import replace
from typing import Any

import pytest

from spinrun_api.run import SpinRun
from spinrun_kube.api import ApiError
from spinrun_operator.apply import Applier
from spinrun_operator.children.services import rollout_service
from spinrun_operator.events import EventRecorder
from spinrun_operator.executor import Executor
from spinrun_operator.metrics import Metrics
from spinrun_operator.observed import Observed
from spinrun_operator.plan import Plan
from spinrun_operator.queue import Retry
from spinrun_operator.reconcile import reconcile
from spinrun_operator.store import RunStore
from unit.operator.world import SETTINGS, START, World, fail, run_of, running_world

Json = dict[str, Any]

KEY = ("team", "demo")


class FakeApi:
    """An API server that takes everything, unless a test lets it refuse, and notes what it was asked to write."""

    def __init__(self, run: Json) -> None:
        self.run = run
        self.refusals: dict[str, ApiError] = {}
        self.writes: list[str] = []

    def _write(self, what: str) -> None:
        if what in self.refusals:
            raise self.refusals[what]
        self.writes.append(what)

    def _change_run(self) -> Json:
        metadata = self.run["metadata"]
        version = str(int(metadata["resourceVersion"]) + 1)
        self.run = self.run | {"metadata": metadata | {"resourceVersion": version}}
        return self.run

    async def get(self, kind: Any, *_: Any, **__: Any) -> Json | None:
        return self.run if kind.name == "SpinRun" else None

    async def replace_status(self, document: Json) -> Json:
        self._write("status")
        self.run = self.run | {"status": document["status"]}
        return self._change_run()

    async def create(self, document: Json) -> Json:
        return await self.apply(document)

    async def apply(self, document: Json) -> Json:
        self._write(f"{document['kind']}/{document['metadata']['name']}")
        return document | {"metadata": document["metadata"] | {"uid": "u", "resourceVersion": "1"}}

    async def delete(self, document: Json, *, propagation: str) -> None:
        self._write(f"delete {document['kind']}/{document['metadata']['name']} in the {propagation.lower()}")

    async def create_event(self, document: Json) -> Json:
        self._write(f"event {document['reason']}")
        return document


class Stage:
    """An executor, and what it works on."""

    def __init__(self, run: SpinRun) -> None:
        body = run.to_document()
        body["metadata"]["resourceVersion"] = "1"
        self.run = run
        self.api: Any = FakeApi(body)
        self.store = RunStore(self.api)
        self.store.put(body)
        applier, recorder = Applier(self.api, lambda _: None), EventRecorder(self.api)
        self.executor = Executor(self.api, self.store, applier, recorder, Metrics(), lambda: START)

    async def execute(self, plan: Plan, observed: Observed) -> list[str]:
        """Does what the plan says; returns the reasons of the refusals."""
        body = self.store.get(KEY)
        assert body is not None
        return [refusal.reason for refusal in await self.executor.execute(self.run, body, observed, plan)]


def new_run() -> tuple[Stage, Plan, Observed]:
    """A run that nothing has been made for yet, and what to do about it."""
    run, observed = run_of(), Observed(new_token="secret")
    return Stage(run), reconcile(run, observed, SETTINGS, START), observed


def reconcile_of(world: World) -> Plan:
    """What to do about the world's run."""
    return reconcile(world.run, world.observed, SETTINGS, START)


def conflict() -> ApiError:
    """Somebody else was faster."""
    return ApiError(409, "Conflict", "the object has been modified")


async def test_status_is_written_before_children_and_events_last() -> None:
    world = running_world()
    fail(world, 1, 1)
    stage = Stage(world.run)
    plan = reconcile(world.run, world.observed, SETTINGS, START)
    plan = replace(plan, delete=[world.observed.children["Job", "demo-trainer-1"]])
    await stage.execute(plan, Observed())
    status, *applied, deleted, event = stage.api.writes
    assert (status, deleted, event) == ("status", "delete Job/demo-trainer-1 in the foreground", "event TrainerFailed")
    assert applied[-1] == "StatefulSet/demo-rollout"


async def test_steady_run_costs_no_write() -> None:
    stage, plan, observed = new_run()
    await stage.execute(plan, observed)
    stage.api.writes.clear()
    await stage.execute(replace(plan, apply=[]), observed)
    assert stage.api.writes == []


async def test_status_and_events_that_may_wait_are_not_written_and_the_children_are() -> None:
    world = running_world()
    fail(world, 1, 1)
    stage = Stage(world.run)
    await stage.executor.execute(stage.run, stage.store.get(KEY) or {}, Observed(), reconcile_of(world), is_told=False)
    assert "StatefulSet/demo-rollout" in stage.api.writes
    assert [each for each in stage.api.writes if each == "status" or each.startswith("event")] == []


async def test_pods_are_not_made_before_all_that_they_mount() -> None:
    stage, plan, observed = new_run()
    stage.api.refusals["PersistentVolumeClaim/demo-ledger"] = ApiError(422, "Invalid", "no such size")
    assert await stage.execute(plan, observed) == ["ChildRefused"]
    assert "ConfigMap/demo-run" in stage.api.writes
    assert not {"StatefulSet/demo-rollout", "Job/demo-trainer-1"} & {*stage.api.writes}


async def test_run_that_outlived_its_ttl_is_deleted_and_nothing_else_is_done() -> None:
    stage, plan, observed = new_run()
    assert await stage.execute(replace(plan, delete_run=True), observed) == []
    assert stage.api.writes == ["delete SpinRun/demo in the background"]


@pytest.mark.parametrize("status", [404, 409])
async def test_status_of_a_run_that_has_changed_is_not_written_over(status: int) -> None:
    stage, plan, observed = new_run()
    stage.api.refusals["status"] = ApiError(status, "", "changed or gone")
    stage.api._change_run()
    with pytest.raises(Retry):
        await stage.execute(plan, observed)
    assert stage.api.writes == []
    known = stage.store.get(KEY)
    assert known is not None
    assert known["metadata"]["resourceVersion"] == "2", "the next try sees what has changed"


async def test_attempt_is_only_made_from_the_newest_status() -> None:
    stage, plan, observed = new_run()
    (job,) = [child for child in plan.apply if child["kind"] == "Job"]
    await stage.executor.write_status(stage.store.get(KEY) or {}, plan.status)
    stage.api._change_run()
    with pytest.raises(Retry) as raised:
        await stage.execute(replace(plan, apply=[job]), observed)
    assert raised.value.delay == 0.0
    assert stage.api.writes == ["status"]


@pytest.mark.parametrize("what", ["Service/demo-rollout", "delete Job/demo-trainer-1 in the foreground"])
async def test_child_that_has_changed_is_looked_at_again(what: str) -> None:
    world = running_world()
    stage = Stage(world.run)
    stage.api.refusals[what] = conflict()
    service = rollout_service(world.run)
    assert world.run.status is not None
    plan = Plan(world.run.status, apply=[service], delete=[world.observed.children["Job", "demo-trainer-1"]])
    with pytest.raises(Retry):
        await stage.execute(plan, Observed())


async def test_other_errors_of_the_api_server_are_raised() -> None:
    stage, plan, observed = new_run()
    stage.api.refusals["status"] = ApiError(500, "InternalError", "etcd is away")
    with pytest.raises(ApiError):
        await stage.execute(plan, observed)
