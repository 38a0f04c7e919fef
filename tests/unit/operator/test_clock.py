"""A clock that somebody sets: waits do not become days, and runs are neither ended nor deleted before their time."""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from spinrun_kube import times
from spinrun_operator.clock import SteadyClock
from spinrun_operator.queue import LAST_RETRY_SECONDS, KeyedQueue, Retry
from unit.operator.world import SETTINGS, START, World, fail, phase_of, progress_of, run_of, running_world

DAY = 86_400.0


class Machine:
    """A machine whose time of day can be set."""

    def __init__(self) -> None:
        self.elapsed = 1000.0
        self.time_of_day = START

    def pass_time(self, seconds: float, *, drift: float = 0.0) -> None:
        """Time passes; drift: how much faster the time of day moves meanwhile."""
        self.elapsed += seconds
        self.time_of_day += timedelta(seconds=seconds + drift)

    def set_clock(self, seconds: float) -> None:
        """Somebody sets the time of day."""
        self.time_of_day += timedelta(seconds=seconds)

    def clock(self) -> SteadyClock:
        """The operator's clock on this machine, from now on."""
        return SteadyClock(lambda: self.time_of_day, lambda: self.elapsed)


@pytest.fixture
def machine() -> Machine:
    """A machine."""
    return Machine()


def test_clock_shows_the_time_of_day(machine: Machine) -> None:
    clock = machine.clock()
    machine.pass_time(3600, drift=0.5)
    assert clock() == machine.time_of_day


def test_clock_that_is_kept_right_is_followed(machine: Machine) -> None:
    clock = machine.clock()
    for _ in range(100):
        machine.pass_time(300, drift=30)
        assert clock() == machine.time_of_day


@pytest.mark.parametrize("jump", [DAY, -DAY, 30 * DAY, 3600, -3600, 120])
def test_jump_is_left_out_and_told_once(machine: Machine, jump: float, caplog: pytest.LogCaptureFixture) -> None:
    clock = machine.clock()
    machine.set_clock(jump)
    machine.pass_time(10)
    assert clock() == START + timedelta(seconds=10)
    machine.pass_time(10)
    assert clock() == START + timedelta(seconds=20)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    machine.set_clock(-jump)
    assert clock() == START + timedelta(seconds=20) == machine.time_of_day


def test_sleep_of_the_machine_is_time_that_passed(machine: Machine) -> None:
    clock = machine.clock()
    machine.pass_time(DAY)
    assert clock() == START + timedelta(days=1)


def test_clock_of_this_machine_shows_its_time() -> None:
    assert abs(SteadyClock()() - datetime.now(UTC)) < timedelta(seconds=1)


# --- waits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-DAY, -30 * DAY, -3600])
def test_wait_for_the_next_attempt_is_capped_when_the_clock_was_set_back(jump: float) -> None:
    world = failed_world()
    world.pass_time(jump)
    plan = world.step()
    assert plan.requeue_seconds is not None
    assert plan.requeue_seconds <= SETTINGS.max_restart_delay_seconds
    assert world.run.status is not None
    assert world.run.status.next_attempt_time == times.to_text(world.now + timedelta(seconds=SETTINGS.max_restart_delay_seconds))
    world.pass_time(SETTINGS.max_restart_delay_seconds)
    world.settle()
    assert world.jobs() == ["demo-trainer-1", "demo-trainer-2"]


def test_wait_is_over_at_once_when_the_clock_was_set_forward() -> None:
    world = failed_world()
    world.pass_time(DAY)
    world.settle()
    assert "demo-trainer-2" in world.jobs()


def test_wait_of_usual_length_is_left_alone() -> None:
    world = failed_world()
    before = world.run.status
    world.step()
    assert world.run.status == before


def failed_world() -> World:
    """A run whose second attempt waits."""
    world = running_world()
    fail(world, 1, 1)
    world.settle()
    assert world.run.status is not None
    assert world.run.status.next_attempt_time is not None
    return world


async def test_server_cannot_ask_for_an_endless_wait() -> None:
    async def work(_: Any) -> None:
        raise Retry("later", float("1e300"))

    queue = KeyedQueue(work, workers=1)
    await queue._run(("team", "demo"))
    assert queue._due[("team", "demo")] - time.monotonic() <= LAST_RETRY_SECONDS


# --- deadlines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_ttl_is_counted_by_time_that_passes(machine: Machine, jump: float) -> None:
    world, clock = world_on(machine, {"ttlSecondsAfterFinished": 3600})
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    world.settle()
    assert phase_of(world) == "Complete"
    machine.set_clock(jump)
    machine.pass_time(3500)
    world.now = clock()
    assert not world.step().delete_run
    machine.pass_time(200)
    world.now = clock()
    assert world.step().delete_run


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_deadline_is_counted_by_time_that_passes(machine: Machine, jump: float) -> None:
    world, clock = world_on(machine, {"activeDeadlineSeconds": 3600})
    machine.set_clock(jump)
    machine.pass_time(3500)
    world.now = clock()
    world.step()
    assert phase_of(world) == "Running"
    machine.pass_time(200)
    world.now = clock()
    world.step()
    assert phase_of(world) == "Failed"


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_pause_is_as_long_as_it_was(machine: Machine, jump: float) -> None:
    world, clock = world_on(machine, {"activeDeadlineSeconds": 3600, "suspend": True})
    world.no_pods()
    world.settle()
    machine.set_clock(jump)
    machine.pass_time(600)
    world.now = clock()
    world.change_spec(lifecycle={"activeDeadlineSeconds": 3600})
    world.settle()
    assert world.run.status is not None
    assert world.run.status.paused_seconds == 600


def world_on(machine: Machine, lifecycle: dict[str, Any]) -> tuple[World, SteadyClock]:
    """A run that has started, and the operator's clock."""
    world = running_world()
    world.change_spec(lifecycle=lifecycle)
    world.settle()
    return world, machine.clock()


@pytest.mark.parametrize("seconds", [10**12, 2**62])
def test_limits_beyond_the_calendar_never_come(seconds: int) -> None:
    world = World(run_of(lifecycle={"activeDeadlineSeconds": seconds, "ttlSecondsAfterFinished": seconds}))
    world.settle()
    world.trainer_pod()
    world.settle()
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    assert not world.settle().delete_run
    assert phase_of(world) == "Complete"


def test_end_beyond_the_calendar_is_shown_as_its_last_day() -> None:
    world = running_world()
    world.tell(progress_of(eta_seconds=1e300))
    world.step()
    assert world.run.status is not None
    assert world.run.status.eta == "9999-12-31T23:59:59Z"


def test_time_without_offset_is_utc() -> None:
    assert times.from_text("2026-01-01T12:00:00") == times.from_text("2026-01-01T12:00:00Z") == START
