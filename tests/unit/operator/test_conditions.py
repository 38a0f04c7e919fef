"""What the conditions and the phase of a run say, step by step, without a cluster."""

from dataclasses import replace
from typing import Any

import pytest

from spinrun_api.documents import MAX_SPEC_BYTES, InvalidDocumentError, size_problem
from spinrun_api.status import ScorerStatus, SpinRunStatus
from spinrun_kube import times
from spinrun_operator.conditions import with_invalid_spec
from spinrun_operator.draft import Draft
from spinrun_operator.observed import Refusal
from unit.operator.world import OWN_MODEL, START, World, fail, phase_of, progress_of, run_of, running_world

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("trainer", "ready", "want"),
    [
        ("Pending", 0, "Pending"),
        ("Pending", 2, "Pending"),
        ("Running", 0, "Starting"),
        ("Running", 1, "Starting"),
        ("Running", 2, "Running"),
    ],
)
def test_phase_follows_trainer_and_rollouts(trainer: str, ready: int, want: str) -> None:
    world = World(run_of(rollout={"replicas": 2}))
    world.settle()
    world.trainer_pod(phase=trainer)
    world.rollouts_ready(ready)
    world.settle()
    assert phase_of(world) == want
    condition = world.condition("Ready")
    assert condition is not None
    assert (condition.status == "True") == (want == "Running")


def test_run_is_ready_once_its_scorers_are_too() -> None:
    world = running_world(**OWN_MODEL)
    condition = world.condition("Ready")
    assert condition is not None
    assert (condition.status, condition.message) == ("True", "trainer is running, all rollouts and scorers ready")
    world.scorers_ready(0)
    plan = world.step()
    condition = world.condition("Ready")
    assert condition is not None
    assert (condition.status, condition.message) == ("False", "not all scorers are ready")
    assert (plan.status.phase, plan.status.scorers) == ("Starting", ScorerStatus(ready=0, desired=1))


def test_reason_of_the_restart_stays_readable_until_the_trainer_runs() -> None:
    world = running_world()
    fail(world, 1, 1, message="cuda error")
    world.settle()
    world.pass_time(10)
    world.settle()
    condition = world.condition("Progressing")
    assert condition is not None
    assert condition.reason == "Restarting"
    assert "cuda error" in condition.message


def test_suspension_takes_the_trainer_first_and_then_the_rollouts() -> None:
    world = running_world()
    world.rollout_pod()
    world.change_spec(lifecycle={"suspend": True})
    world.step()
    assert (world.jobs(), world.replicas(), phase_of(world)) == ([], 1, "Suspended")
    world.trainer_pod(metadata={"deletionTimestamp": times.to_text(world.now)})
    world.step()
    assert world.replicas() == 1
    world.trainer_pod(phase="Failed", ended={"exitCode": 3})
    world.step()
    assert world.replicas() == 0
    condition = world.condition("Suspended")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "Suspending")
    world.no_pods()
    world.step()
    condition = world.condition("Suspended")
    assert condition is not None
    assert condition.status == "True"


def test_pauses_are_measured_and_the_next_attempt_follows() -> None:
    world = running_world()
    world.change_spec(lifecycle={"suspend": True})
    world.step()
    world.no_pods()
    world.settle()
    world.pass_time(500)
    world.settle()
    world.change_spec(lifecycle={"suspend": False})
    world.settle()
    status = world.run.status
    assert status is not None
    assert (status.paused_seconds, status.attempt, status.failed_attempts) == (500, 2, None)
    assert world.jobs() == ["demo-trainer-2"]
    assert world.told()[-2:] == ["Suspended", "Resumed"]


def test_run_that_completes_while_it_is_being_suspended_is_complete() -> None:
    world = running_world()
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    world.change_spec(lifecycle={"suspend": True})
    world.settle()
    assert phase_of(world) == "Complete"


def test_ledger_is_unavailable_until_a_trainer_gets_beyond_its_start() -> None:
    world = running_world()
    fail(world, 1, 4, message="read-only file system")
    world.settle()
    condition = world.condition("LedgerUnavailable")
    assert condition is not None
    assert (condition.status, "read-only file system" in condition.message) == ("True", True)
    world.pass_time(10)
    world.settle()
    world.trainer_pod(2)
    world.tell(progress_of(attempt=2, activity="starting"))
    world.settle()
    assert (world.condition("LedgerUnavailable") or condition).status == "True"
    world.tell(progress_of(attempt=2, activity="publish"))
    world.settle()
    condition = world.condition("LedgerUnavailable")
    assert condition is not None
    assert condition.status == "False"


def test_a_judge_that_is_down_degrades_the_run_until_it_is_back() -> None:
    world = running_world()
    world.tell(progress_of(trouble="preference.judge does not answer: status 503"))
    world.settle()
    condition = world.condition("Degraded")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "PreferenceUnavailable")
    assert condition.message == "preference.judge does not answer: status 503"
    assert [event.reason for event in world.events].count("PreferenceUnavailable") == 1
    world.tell(progress_of())
    world.settle()
    assert (world.condition("Degraded") or condition).status == "False"


def test_the_trouble_of_an_attempt_ends_with_it() -> None:
    world = running_world()
    world.tell(progress_of(trouble="the judge is down"))
    world.settle()
    fail(world, 1, 3)
    world.settle()
    condition = world.condition("Degraded")
    assert condition is not None
    assert condition.status == "False"


def test_refused_child_degrades_the_run_and_is_told_once() -> None:
    world = running_world()
    refusal = Refusal(("StatefulSet", "demo-rollout"), "ChildRefused", "no such field")
    world.observed = replace(world.observed, refusals=(refusal,))
    world.settle()
    world.settle()
    condition = world.condition("Degraded")
    assert condition is not None
    assert (condition.status, condition.reason, condition.message) == ("True", "ChildRefused", "no such field")
    assert world.told().count("ChildRefused") == 1


def test_child_of_a_deleted_run_of_the_same_name_is_waited_for(world: World) -> None:
    refusal = Refusal(("Job", "demo-trainer-1"), "WaitingForCleanup", "Job demo-trainer-1 of a deleted run is still there")
    world.observed = replace(world.observed, refusals=(refusal,))
    world.settle()
    progressing, degraded = world.condition("Progressing"), world.condition("Degraded")
    assert progressing is not None
    assert degraded is not None
    assert (progressing.reason, degraded.status) == ("WaitingForCleanup", "False")


def test_neither_conditions_nor_events_tell_a_secret() -> None:
    draft = Draft(SpinRunStatus(), 1, START)
    draft.set("Degraded", True, "PodCrashLooping", "pod a: vllm ended: https://user:s3cr3t@host refuses --api-key s3cr3t")
    draft.record_event("Warning", "PodCrashLooping", "HF_TOKEN=s3cr3t")
    assert "s3cr3t" not in str(draft.conditions) + str(draft.events)
    assert "vllm ended: https://[redacted]@host refuses" in draft.conditions[0].message


@pytest.mark.parametrize("name", ["\ud83d", "a\udc80b" * 40])
def test_a_spec_with_half_a_character_in_a_name_is_told_of(name: str) -> None:
    problem = size_problem({"trainer": {name: "x" * MAX_SPEC_BYTES}})
    deep: Any = {}
    for _ in range(200):
        deep = {name: deep}
    problems = [each for each in (problem, size_problem({name: deep})) if each is not None]
    assert len(problems) == 2
    for each in problems:
        status = with_invalid_spec(SpinRunStatus(), InvalidDocumentError("the run", [each]), 1, START)
        message = next(condition.message for condition in status.conditions if condition.type == "Degraded")
        assert message.encode()


def test_whatever_a_condition_quotes_it_is_text() -> None:
    draft = Draft(SpinRunStatus(), 1, START)
    draft.set("Degraded", True, "ChildRefused", "the name \ud83d")
    assert draft.conditions[0].message == "the name ?"
