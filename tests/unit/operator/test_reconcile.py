"""What the operator decides, step by step, without a cluster."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from spinrun_api.status import Best, Metrics, RolloutStatus
from spinrun_kube import times
from spinrun_operator.reconcile import is_managed
from unit.operator.world import START, World, fail, phase_of, progress_of, run_of, running_world

Json = dict[str, Any]


def test_steady_run_is_at_rest() -> None:
    world = running_world()
    world.pass_time(1000)
    before = world.run.status
    plan = world.step()
    assert (plan.status, plan.delete, plan.events, plan.requeue_seconds) == (before, [], [], None)


def test_only_a_start_that_goes_as_it_should_may_be_told_later() -> None:
    world = World()
    assert world.step().only_starts, "nothing but that it is pending"
    world.trainer_pod()
    plan = world.step()
    assert (phase_of(world), plan.only_starts) == ("Starting", True)
    world.rollout_pod()
    world.rollouts_ready(1)
    plan = world.step()
    assert (phase_of(world), plan.only_starts) == ("Running", False)
    world.rollouts_ready(0)
    plan = world.step()
    assert (phase_of(world), plan.only_starts) == ("Starting", False), "a rollout is lost"


def test_what_goes_wrong_at_a_start_is_told_at_once() -> None:
    world = World()
    world.settle()
    world.rollout_pod(phase="Pending", containerStatuses=[{"name": "vllm", "state": {"waiting": {"reason": "ErrImagePull"}}}])
    assert not world.step().only_starts
    world.rollout_pod(phase="Pending")
    plan = world.step()
    assert not plan.only_starts, "that it is well again"
    world.change_spec(lifecycle={"suspend": True})
    assert not world.step().only_starts
    world = World()
    world.settle()
    fail(world, 1, 1)
    assert not world.step().only_starts, "an attempt is numbered"


def test_ledger_is_read_in_the_operators_image_whatever_the_run_names() -> None:
    world = running_world(
        trainer={"image": "mine:1", "template": {"spec": {"containers": [{"name": "trainer", "image": "mine:2"}]}}}
    )
    assert world.run.status is not None
    assert world.run.status.ledger_image == "worker:1"
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    world.settle()
    world.settings = replace(world.settings, worker_image="worker:2")
    status = world.step().status
    assert (phase_of(world), status.ledger_image) == ("Complete", "worker:2"), "an upgrade reads what is over, too"


def test_finished_run_stays_as_it_is_whatever_happens() -> None:
    world = running_world()
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    world.settle()
    world.no_pods()
    del world.observed.children["Job", "demo-trainer-1"]
    world.change_spec(lifecycle={"suspend": True})
    world.settle()
    assert phase_of(world) == "Complete"
    assert world.jobs() == []


def test_finished_run_is_deleted_when_its_time_is_over() -> None:
    world = running_world(lifecycle={"ttlSecondsAfterFinished": 60})
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    plan = world.settle()
    assert (plan.delete_run, plan.requeue_seconds) == (False, 60)
    world.pass_time(60)
    assert world.step().delete_run


def test_progress_is_shown() -> None:
    world = running_world()
    best = Best(window=1, version=1, accuracy=0.5)
    rollouts = RolloutStatus(ready=1, desired=1, version=1)
    world.tell(progress_of(version=1, metrics=Metrics(loss=0.123456), best=best, eta_seconds=90, rollouts=rollouts))
    world.settle()
    status = world.run.status
    assert status is not None
    assert (status.window, status.windows, status.step, status.total_steps, status.version) == (1, 4, 20, 64, 1)
    assert (status.activity, status.best, status.metrics) == ("train", best, Metrics(loss=0.1235))
    assert status.eta == times.to_text(START + timedelta(seconds=120))
    assert status.rollouts == RolloutStatus(ready=1, desired=1, version=1)


def test_progress_of_an_earlier_attempt_is_ignored() -> None:
    world = running_world()
    fail(world, 1, 3)
    world.settle()
    world.tell(progress_of(attempt=1, window=7))
    world.settle()
    assert world.run.status is not None
    assert world.run.status.window is None


@pytest.mark.parametrize(
    ("lifecycle", "want"),
    [({}, True), ({"managedBy": "spinrun.dev/operator"}, True), ({"managedBy": "kueue.x-k8s.io/multikueue"}, False)],
    ids=str,
)
def test_managed_by_says_whose_run_it_is(lifecycle: Json, want: bool) -> None:
    assert is_managed(run_of(lifecycle=lifecycle)) == want


def test_run_that_is_being_deleted_is_left_alone() -> None:
    run = run_of()
    run.metadata.model_extra["deletionTimestamp"] = "2026-01-01T00:00:00Z"  # type: ignore[index]
    assert not is_managed(run)
