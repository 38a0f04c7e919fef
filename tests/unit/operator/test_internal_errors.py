"""What becomes of a run on which the operator itself fails."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from spinrun_api.status import SpinRunStatus
from spinrun_kube import times
from spinrun_kube.api import ApiError
from spinrun_operator import controller as room
from spinrun_operator import queue
from spinrun_operator.conditions import with_internal_error
from spinrun_operator.controller import Controller
from spinrun_operator.metrics import Metrics
from spinrun_operator.plan import Plan
from spinrun_operator.queue import Retry
from spinrun_operator.reconcile import reconcile
from unit.operator.test_executor import KEY, FakeApi
from unit.operator.world import SETTINGS, START, run_of, running_world

Json = dict[str, Any]

BROKEN = KeyError("no such\nlabel")


class NotedApi(FakeApi):
    """An API server that notes when the run is not degraded any more."""

    def __init__(self, run: Json) -> None:
        super().__init__(run)
        self.recovered = asyncio.Event()

    async def replace_status(self, document: Json) -> Json:
        if any(each["type"] == "Degraded" and each["status"] == "False" for each in document["status"]["conditions"]):
            self.recovered.set()
        return await super().replace_status(document)


class Passes:
    """An operator whose passes over one run fail by the exceptions that a test puts down, and succeed when none is left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = run_of().to_document()
        body["metadata"]["resourceVersion"] = "1"
        self.api: Any = NotedApi(body)
        self.controller = Controller(self.api, SETTINGS, Metrics(), clock=lambda: START)
        self.controller.run_changed("ADDED", body)
        self.errors: list[Exception] = []
        monkeypatch.setattr(room, "reconcile", self._reconcile)

    def _reconcile(self, *arguments: Any) -> Plan:
        if self.errors:
            raise self.errors.pop(0)
        return reconcile(*arguments)

    async def fail(self, *errors: Exception) -> None:
        """Passes that fail."""
        self.errors += errors
        for error in errors:
            with pytest.raises(Retry if isinstance(error, Retry | ApiError) else type(error)):
                await self.controller._work(KEY)

    async def succeed(self) -> None:
        """A pass that succeeds."""
        await self.controller._work(KEY)

    @property
    def degraded(self) -> Json | None:
        """The condition as it is on record."""
        conditions = self.api.run.get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == "Degraded"), None)

    def status_writes(self) -> int:
        """Writes of the status so far."""
        return self.api.writes.count("status")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """A run that is new to the operator."""
    return Passes(monkeypatch)


async def test_run_is_degraded_from_the_third_failure_on_and_told_once(passes: Passes) -> None:
    await passes.fail(BROKEN, BROKEN)
    assert passes.status_writes() == 0
    await passes.fail(BROKEN)
    degraded = passes.degraded
    assert degraded is not None
    assert (degraded["status"], degraded["reason"]) == ("True", "InternalError")
    for said in ("KeyError: ", "no such", "label", "please report it", "the operator's version", "the traceback in its log"):
        assert said in degraded["message"]
    assert "\n" not in degraded["message"]
    await passes.fail(*[BROKEN] * 5)
    assert passes.status_writes() == 1


async def test_condition_leaves_when_a_pass_succeeds_and_counting_begins_again(passes: Passes) -> None:
    await passes.fail(BROKEN, BROKEN, BROKEN)
    await passes.succeed()
    assert passes.degraded is not None
    assert (passes.degraded["status"], passes.degraded["reason"]) == ("False", "AsExpected")
    writes = passes.status_writes()
    await passes.fail(BROKEN, BROKEN)
    assert passes.status_writes() == writes
    await passes.fail(BROKEN)
    assert passes.degraded["reason"] == "InternalError"


async def test_failures_between_which_a_pass_succeeds_are_not_told(passes: Passes) -> None:
    await passes.succeed()
    for _ in range(5):
        await passes.fail(BROKEN, BROKEN)
        await passes.succeed()
    assert passes.degraded is not None
    assert passes.degraded["reason"] == "AsExpected"


async def test_refusals_and_conflicts_are_not_the_operators_fault(passes: Passes) -> None:
    refused: list[Exception] = [ApiError(500, "InternalError", "etcd is away"), Retry("the run has changed")]
    await passes.fail(*refused * 5)
    assert passes.degraded is None


async def test_failure_after_the_decision_counts_too(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def apply(_: Json) -> Json:
        raise TypeError("unexpected answer")

    monkeypatch.setattr(passes.api, "apply", apply)
    for _ in range(3):
        with pytest.raises(TypeError):
            await passes.controller._work(KEY)
    assert passes.degraded is not None
    assert passes.degraded["reason"] == "InternalError"


async def test_status_that_cannot_be_written_does_not_hide_the_error(passes: Passes) -> None:
    for refusal in (ApiError(409, "Conflict", "changed"), ApiError(500, "", "away"), ValueError("not JSON")):
        passes.api.refusals["status"] = refusal
        await passes.fail(BROKEN, BROKEN, BROKEN)
    passes.api.refusals.clear()
    await passes.fail(BROKEN)
    assert passes.degraded is not None


async def test_run_of_the_same_name_begins_without_failures(passes: Passes) -> None:
    await passes.fail(BROKEN, BROKEN)
    passes.controller.run_changed("DELETED", passes.api.run)
    await passes.succeed()
    passes.controller.run_changed("ADDED", passes.api.run | {"metadata": passes.api.run["metadata"] | {"uid": "another"}})
    await passes.fail(BROKEN, BROKEN)
    assert passes.status_writes() == 0


async def test_queue_tries_again_more_and_more_slowly_until_a_pass_succeeds(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "FIRST_RETRY_SECONDS", 0.01)
    passes.errors += [BROKEN] * 5
    loop = asyncio.get_running_loop()
    began, task = loop.time(), asyncio.create_task(passes.controller.queue.run())
    async with asyncio.timeout(5):
        await passes.api.recovered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert loop.time() - began >= 0.01 * (1 + 2 + 4 + 8 + 16)


def test_only_degraded_changes_and_its_time_stays_while_it_lasts() -> None:
    before = running_world().run.status
    assert before is not None
    told = with_internal_error(before, BROKEN, START + timedelta(hours=1))
    later = with_internal_error(told, BROKEN, START + timedelta(hours=2))
    assert later == told
    assert [each.type for each in told.conditions] == [each.type for each in before.conditions]
    assert told.model_copy(update={"conditions": []}) == before.model_copy(update={"conditions": []})
    changed = [each for each, old in zip(told.conditions, before.conditions, strict=True) if each != old]
    assert [(each.type, each.last_transition_time) for each in changed] == [
        ("Degraded", times.to_text(START + timedelta(hours=1))),
    ]


def test_long_error_is_cut() -> None:
    told = with_internal_error(SpinRunStatus(), ValueError("x" * 100_000), START)
    assert len(told.conditions[0].message) < 1000


def test_run_that_is_over_is_not_degraded_for_ever() -> None:
    world = running_world()
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    world.settle()
    over = world.run.status
    assert over is not None
    world.run = world.run.model_copy(update={"status": with_internal_error(over, BROKEN, START)})
    world.settle()
    assert world.run.status == over
