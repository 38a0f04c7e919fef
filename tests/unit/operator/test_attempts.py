"""How one attempt of the trainer follows another, step by step, without a cluster."""

from datetime import timedelta
from typing import Any

from spinrun_api.status import Metrics
from spinrun_kube import times
from spinrun_protocol.termination import TerminationMessage
from unit.operator.world import START, fail, phase_of, running_world

Json = dict[str, Any]


def test_start_is_recorded_once_and_told_once() -> None:
    world = running_world()
    world.pass_time(60)
    world.settle()
    assert world.run.status is not None
    assert world.run.status.start_time == world.run.status.attempt_start_time == times.to_text(START)
    assert world.told() == ["TrainerStarted"]


def test_completion_keeps_the_last_figures_and_lets_the_rollouts_go() -> None:
    world = running_world()
    words = TerminationMessage(
        result="Complete", reason="Completed", message="all done", exit_code=0, window=5, step=80, version=5, accuracy=0.91239
    )
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0, "message": words.model_dump_json()})
    world.job(1, "SuccessCriteriaMet", "Complete")
    world.pass_time(90)
    world.settle()
    status = world.run.status
    assert status is not None
    assert (status.phase, status.window, status.step, status.version) == ("Complete", 5, 80, 5)
    assert status.metrics == Metrics(accuracy=0.9124)
    assert status.completion_time == times.to_text(START + timedelta(seconds=90))
    assert world.replicas() == 0
    assert world.jobs() == ["demo-trainer-1"]
    assert world.told()[-1] == "Completed"


def test_failed_attempt_is_counted_in_the_status_before_the_next_job_is_made() -> None:
    world = running_world()
    fail(world, 1, 1, message="boom")
    plan = world.step()
    assert (plan.status.attempt, plan.status.failed_attempts) == (2, 1)
    assert plan.status.next_attempt_time == times.to_text(START + timedelta(seconds=10))
    assert world.jobs() == ["demo-trainer-1"]
    assert plan.requeue_seconds == 10
    world.pass_time(10)
    world.settle()
    assert world.jobs() == ["demo-trainer-1", "demo-trainer-2"]
    assert phase_of(world) == "Restarting"


def test_failure_is_counted_once_however_often_it_is_seen() -> None:
    world = running_world()
    fail(world, 1, 1)
    for _ in range(5):
        world.step()
    assert world.run.status is not None
    assert world.run.status.failed_attempts == 1


def test_next_attempt_waits_for_the_last_pod_of_the_one_before() -> None:
    world = running_world(trainer={"nodes": 2})
    world.trainer_pod(1, 1, metadata={"deletionTimestamp": times.to_text(START)})
    fail(world, 1, 3)
    world.pass_time(30)
    world.settle()
    assert world.jobs() == ["demo-trainer-1"]
    world.trainer_pod(1, 1, phase="Failed", ended={"exitCode": 3})
    world.settle()
    assert world.jobs() == ["demo-trainer-1", "demo-trainer-2"]


def test_pod_that_outlives_its_deletion_is_lost_with_its_node() -> None:
    world = running_world()
    world.trainer_pod(metadata={"deletionTimestamp": times.to_text(START + timedelta(seconds=300))})
    world.pass_time(359)
    world.settle()
    assert world.run.status is not None
    assert world.run.status.attempt == 1
    world.pass_time(2)
    world.settle()
    assert (world.run.status.attempt, world.run.status.failed_attempts) == (2, None)
    assert world.jobs() == ["demo-trainer-2"]


def test_job_that_is_gone_after_its_start_is_followed_by_another_number() -> None:
    world = running_world()
    world.no_pods()
    del world.observed.children["Job", "demo-trainer-1"]
    world.settle()
    assert world.jobs() == ["demo-trainer-2"]
    assert "TrainerLost" in world.told()


def test_deadline_counts_from_the_first_start_without_the_pauses() -> None:
    world = running_world(lifecycle={"activeDeadlineSeconds": 100})
    world.pass_time(40)
    assert world.settle().requeue_seconds == 60
    world.change_spec(lifecycle={"activeDeadlineSeconds": 100, "suspend": True})
    world.step()
    world.no_pods()
    world.settle()
    world.pass_time(1000)
    world.settle()
    assert phase_of(world) == "Suspended"
    world.change_spec(lifecycle={"activeDeadlineSeconds": 100})
    world.settle()
    assert phase_of(world) != "Failed"
    world.pass_time(61)
    world.settle()
    condition = world.condition("Failed")
    assert condition is not None
    assert condition.reason == "DeadlineExceeded"
    assert world.jobs() == []
