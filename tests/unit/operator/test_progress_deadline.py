"""What becomes of an attempt that gets no further."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from spinrun_kube import times
from spinrun_kube.kinds import CHILDREN, POD, kind_of
from spinrun_operator.observe import Observer
from spinrun_operator.stall import StallClock, seen_of_progress
from unit.operator.world import SETTINGS, START, World, fail, phase_of, progress_of, run_of, running_world

Json = dict[str, Any]

LIMIT = {"progressDeadlineSeconds": 600}
KEY = ("team", "demo")
NODE: Json = {"spec": {"nodeName": "n", "containers": [{"name": "trainer"}]}}


def stalled_world(seconds: float | None = 600, **lifecycle: Any) -> World:
    """A world whose first attempt runs and has not got any further for a time."""
    world = running_world(lifecycle=LIMIT | lifecycle)
    world.tell(progress_of(activity="publish", message="waiting for the volume"))
    world.settle()
    world.observed = replace(world.observed, stalled_seconds=seconds)
    return world


def conditions(world: World, *kinds: str) -> list[tuple[str, str]]:
    """Status and reason of conditions."""
    found = [world.condition(kind) for kind in kinds]
    return [(condition.status, condition.reason) for condition in found if condition]


# --- what is decided -----------------------------------------------------------------------------------------------


def test_attempt_that_stalls_is_ended_counted_and_told() -> None:
    world = stalled_world()
    plan = world.step()
    assert conditions(world, "Progressing", "Ready") == [("False", "ProgressDeadlineExceeded")] * 2
    assert (plan.status.attempt, plan.status.failed_attempts, phase_of(world)) == (2, 1, "Restarting")
    assert [child["metadata"]["name"] for child in plan.delete] == ["demo-trainer-1"]
    (event,) = plan.events
    assert (event.kind, event.reason) == ("Warning", "ProgressDeadlineExceeded")
    for said in ("progressDeadlineSeconds: 600", "publish (waiting for the volume)", "window 1, step 20"):
        assert said in event.message


def test_next_attempt_follows_once_the_pods_are_gone_and_after_the_wait() -> None:
    world = stalled_world()
    world.step()
    world.observed = replace(world.observed, stalled_seconds=None)
    world.pass_time(SETTINGS.restart_delay_seconds)
    world.settle()
    assert world.jobs() == [], "a trainer that hangs may still write"
    assert conditions(world, "Progressing") == [("False", "ProgressDeadlineExceeded")]
    world.no_pods()
    world.settle()
    assert world.jobs() == ["demo-trainer-2"]
    world.trainer_pod(2)
    world.rollout_pod()
    world.settle()
    assert conditions(world, "Progressing") == [("True", "Running")]


def test_run_fails_when_no_attempt_is_left() -> None:
    world = stalled_world(backoffLimit=0)
    world.step()
    (condition,) = [world.condition("Failed")]
    assert condition is not None
    assert condition.reason == "BackoffLimitExceeded"
    assert "no progress within progressDeadlineSeconds: 600" in condition.message
    assert phase_of(world) == "Failed"


def test_rules_by_exit_code_do_not_cover_it() -> None:
    world = stalled_world(failurePolicy=[{"exitCodes": [1], "action": "Fail"}])
    world.step()
    assert phase_of(world) == "Restarting"


def test_attempt_that_never_tells_anything_is_ended_too() -> None:
    world = running_world(lifecycle=LIMIT)
    world.observed = replace(world.observed, stalled_seconds=601)
    assert "told nothing yet" in world.step().events[-1].message


def test_attempt_whose_pod_never_starts_is_ended_too() -> None:
    world = World(run_of(lifecycle=LIMIT))
    world.settle()
    world.trainer_pod(phase="Pending")
    world.observed = replace(world.observed, stalled_seconds=600)
    plan = world.step()
    assert (plan.status.attempt, plan.status.failed_attempts) == (2, 1)


def test_it_is_looked_at_again_when_the_time_is_over() -> None:
    world = stalled_world(200)
    plan = world.settle()
    assert (plan.requeue_seconds, phase_of(world)) == (400, "Running")


@pytest.mark.parametrize("seconds", [None, 0, 599])
def test_attempt_that_works_or_waits_for_nodes_is_left_alone(seconds: float | None) -> None:
    world = stalled_world(seconds)
    world.settle()
    assert phase_of(world) == "Running"


def test_without_a_limit_nothing_is_ended() -> None:
    world = running_world()
    world.observed = replace(world.observed, stalled_seconds=1e9)
    world.settle()
    assert phase_of(world) == "Running"


def test_suspended_run_is_not_ended() -> None:
    world = stalled_world()
    world.change_spec(lifecycle=LIMIT | {"suspend": True})
    plan = world.step()
    assert (plan.status.failed_attempts, phase_of(world)) == (None, "Suspended")


def test_how_an_attempt_really_ended_comes_first() -> None:
    world = stalled_world()
    fail(world, 1, 2, message="no such column")
    world.step()
    assert conditions(world, "Failed") == [("True", "InvalidConfiguration")]


@pytest.mark.parametrize("field", ["activeDeadlineSeconds", "progressDeadlineSeconds", "ttlSecondsAfterFinished"])
def test_limits_beyond_all_time_are_no_limits(field: str) -> None:
    world = running_world(lifecycle={field: 2**63 - 1})
    world.settle()
    assert phase_of(world) == "Running"
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    assert not world.settle().delete_run


# --- what is seen --------------------------------------------------------------------------------------------------


class Watched:
    """An operator's eyes with a clock that a test moves."""

    def __init__(self, **spec: Any) -> None:
        self.world = running_world(**spec)
        self.world.trainer_pod(metadata={"creationTimestamp": times.to_text(START)})
        self.world.observed = replace(self.world.observed, pods=tuple(pod | NODE for pod in self.world.observed.pods))
        self.now = 0.0
        self.stalls = StallClock(lambda: self.now)
        kinds = [kind for kind in CHILDREN if kind.name in ("Job", "StatefulSet")]
        informers: list[Any] = [SimpleNamespace(kind=POD, of_run=lambda _: list(self.world.observed.pods))]
        informers += [SimpleNamespace(kind=kind, of_run=lambda _, kind=kind: self._children(kind)) for kind in kinds]
        self.observer = Observer(None, informers, self.stalls, SETTINGS)  # type: ignore[arg-type]

    def _children(self, kind: Any) -> list[Json]:
        return [child for child in self.world.observed.children.values() if kind_of(child) == kind]

    async def after(self, seconds: float) -> float | None:
        """How long the attempt has stalled, so much later."""
        self.now += seconds
        # The pods are settled, and no events are asked for.
        now = START + timedelta(seconds=1)
        seen = await self.observer.observe(self.world.run, KEY, refusals=(), progress=None, now=now)
        return seen.stalled_seconds

    def tell(self, **fields: Any) -> None:
        """Rank 0 was asked for its progress."""
        self.stalls.note(KEY, "progress", seen_of_progress(progress_of(**fields).progress))


async def test_time_grows_while_nothing_changes() -> None:
    watched = Watched(lifecycle=LIMIT)
    assert [await watched.after(100) for _ in range(3)] == [0, 100, 200]


@pytest.mark.parametrize(
    "change",
    [{"activity": "evaluate"}, {"window": 2}, {"step": 21}, {"version": 3}, {"prompts_done": 5}, {"beats": 7}, {"attempt": 2}],
    ids=str,
)
async def test_whatever_the_trainer_gets_done_begins_the_time_again(change: Json) -> None:
    watched = Watched(lifecycle=LIMIT)
    await watched.after(0)
    watched.tell()
    assert await watched.after(500) == 500
    watched.tell()
    assert await watched.after(50) == 550
    watched.tell(**change)
    assert await watched.after(10) == 10


@pytest.mark.parametrize("change", [{"message": "waiting"}, {"eta_seconds": 5}, {"trouble": "the judge is down"}], ids=str)
async def test_what_the_trainer_only_says_does_not(change: Json) -> None:
    watched = Watched(lifecycle=LIMIT)
    await watched.after(0)
    watched.tell()
    await watched.after(100)
    watched.tell(**change)
    assert await watched.after(100) == 200


async def test_rollout_that_becomes_ready_and_pod_that_starts_are_progress() -> None:
    watched = Watched(lifecycle=LIMIT)
    await watched.after(0)
    await watched.after(300)
    watched.world.rollouts_ready(0)
    assert await watched.after(10) == 0
    (trainer,) = watched.world.observed.trainer_pods(watched.world.run)
    trainer["status"]["phase"] = "Pending"
    assert await watched.after(10) == 0
    assert await watched.after(10) == 10


async def test_time_stands_still_while_a_pod_waits_for_a_node() -> None:
    watched = Watched(lifecycle=LIMIT)
    await watched.after(0)
    watched.world.trainer_pod(1, 1, phase="Pending")
    assert [await watched.after(1000) for _ in range(2)] == [None, None]
    pods = watched.world.observed.pods
    watched.world.observed = replace(watched.world.observed, pods=(*pods[:-1], pods[-1] | NODE))
    assert await watched.after(1000) == 0


async def test_next_attempt_begins_with_its_own_time() -> None:
    watched = Watched(lifecycle=LIMIT)
    await watched.after(0)
    await watched.after(500)
    del watched.world.observed.children["Job", "demo-trainer-1"]
    assert await watched.after(100) is None


async def test_nothing_is_kept_of_runs_without_a_limit() -> None:
    watched = Watched()
    assert [await watched.after(1000) for _ in range(2)] == [None, None]
