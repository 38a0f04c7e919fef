"""What the operator decides, step by step, without a cluster."""

from datetime import timedelta
from typing import Any

import pytest

from spinrun_api.status import Best, Metrics, RolloutStatus, ScorerStatus
from spinrun_kube import names, times
from spinrun_operator.observed import Refusal, TrainerProgress
from spinrun_operator.reconcile import is_managed
from spinrun_protocol.termination import LastWords
from spinrun_protocol.wire import Progress
from unit.operator.world import START, UID, World, run_of, running_world

Json = dict[str, Any]


def phase_of(world: World) -> str | None:
    """The run's phase."""
    return world.run.status.phase if world.run.status else None


def fail(world: World, attempt: int, code: int, **ended: Any) -> None:
    """The trainer of an attempt ends by itself."""
    world.trainer_pod(attempt, phase="Failed", ended={"exitCode": code} | ended)
    world.job(attempt, "FailureTarget", "Failed")


# --- the way to the end --------------------------------------------------------------------------------------------


def test_new_run_gets_all_children_with_what_they_mount_before_its_pods(world: World) -> None:
    plan = world.step()
    made = [f"{child['kind']}/{child['metadata']['name']}" for child in plan.apply]
    assert made == [
        "PersistentVolumeClaim/demo-ledger",
        "Secret/demo-token",
        "ServiceAccount/demo-spinrun",
        "ConfigMap/demo-run",
        "Service/demo-rollout",
        "Service/demo-trainer",
        "NetworkPolicy/demo-rollout",
        "NetworkPolicy/demo-trainer",
        "StatefulSet/demo-rollout",
        "Job/demo-trainer-1",
    ]
    assert (phase_of(world), plan.status.attempt, plan.requeue_seconds) == ("Pending", 1, None)


OWN_MODEL: Json = {"preference": {"rewardModel": {"source": "org/stern"}}}


def test_scorers_are_made_for_a_run_that_serves_the_model_of_its_preference() -> None:
    plan = World(run_of(**OWN_MODEL)).step()
    made = [f"{child['kind']}/{child['metadata']['name']}" for child in plan.apply]
    assert made[-4:] == ["Service/demo-scorer", "NetworkPolicy/demo-scorer", "StatefulSet/demo-scorer", "Job/demo-trainer-1"]
    assert plan.status.scorers == ScorerStatus(ready=0, desired=1)


def test_run_is_ready_once_its_scorers_are_too() -> None:
    world = running_world(**OWN_MODEL)
    condition = world.condition("Ready")
    assert condition is not None
    assert (condition.status, condition.message) == ("True", "the trainer runs and all rollouts and scorers are ready")
    world.scorers_ready(0)
    plan = world.step()
    condition = world.condition("Ready")
    assert condition is not None
    assert (condition.status, condition.message) == ("False", "not all scorers are ready")
    assert (plan.status.phase, plan.status.scorers) == ("Starting", ScorerStatus(ready=0, desired=1))


def test_suspension_takes_the_scorers_with_the_rollouts() -> None:
    world = running_world(**OWN_MODEL)
    world.change_spec(lifecycle={"suspend": True})
    world.step()
    assert world.replicas(names.SCORER) == 1, "the trainer may still need them"
    world.trainer_pod(phase="Failed", ended={"exitCode": 3})
    world.step()
    assert (world.replicas(), world.replicas(names.SCORER)) == (0, 0)
    world.no_pods()
    world.scorer_pod()
    world.step()
    condition = world.condition("Suspended")
    assert condition is not None
    assert condition.status == "False", "a pod is left"
    world.no_pods()
    world.step()
    condition = world.condition("Suspended")
    assert condition is not None
    assert condition.status == "True"


def test_scorers_leave_when_the_run_is_over() -> None:
    world = running_world(**OWN_MODEL)
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    world.settle()
    assert (phase_of(world), world.replicas(names.SCORER)) == ("Complete", 0)


def test_scorers_of_a_preference_that_was_changed_before_the_start_have_no_pods() -> None:
    world = World(run_of(**OWN_MODEL))
    world.settle()
    world.change_spec(preference={"rule": {"kind": "lastNumber"}})
    plan = world.settle()
    assert world.replicas(names.SCORER) == 0
    assert plan.status.scorers is None
    (left,) = [child for child in plan.apply if child["metadata"]["name"] == "demo-scorer"]
    assert left["metadata"].keys() == {"name", "namespace", "labels", "ownerReferences"}


def test_what_is_made_once_is_not_made_again(world: World) -> None:
    world.settle()
    kinds = {child["kind"] for child in world.step().apply}
    assert not kinds & {"Job", "Secret", "PersistentVolumeClaim"}


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


def test_steady_run_is_at_rest() -> None:
    world = running_world()
    world.pass_time(1000)
    before = world.run.status
    plan = world.step()
    assert (plan.status, plan.delete, plan.events, plan.requeue_seconds) == (before, [], [], None)


def test_start_is_recorded_once_and_told_once() -> None:
    world = running_world()
    world.pass_time(60)
    world.settle()
    assert world.run.status is not None
    assert world.run.status.start_time == world.run.status.attempt_start_time == times.to_text(START)
    assert world.told() == ["TrainerStarted"]


def test_completion_keeps_the_last_figures_and_lets_the_rollouts_go() -> None:
    world = running_world()
    words = LastWords(
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


# --- attempts ------------------------------------------------------------------------------------------------------


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


def test_job_that_is_gone_before_its_start_is_made_again(world: World) -> None:
    world.settle()
    del world.observed.children["Job", "demo-trainer-1"]
    world.settle()
    assert world.jobs() == ["demo-trainer-1"]


def test_only_the_last_failed_job_is_kept() -> None:
    world = running_world(lifecycle={"backoffLimit": 9})
    for attempt in (1, 2, 3):
        fail(world, attempt, 1)
        world.pass_time(1)
        world.settle()
        world.pass_time(300)
        world.settle()
        world.trainer_pod(attempt + 1)
        world.settle()
    assert world.jobs() == ["demo-trainer-3", "demo-trainer-4"]


def test_job_of_a_later_attempt_is_another_operators_and_left_alone(world: World) -> None:
    world.settle()
    later = {**world.observed.children["Job", "demo-trainer-1"]}
    later["metadata"] = later["metadata"] | {"name": "demo-trainer-2", "labels": {"spinrun.dev/attempt": "2"}}
    world.observed.children["Job", "demo-trainer-2"] = later
    assert world.step().delete == []


@pytest.mark.parametrize(
    ("changed", "restarts"),
    [
        ({"duration": {"windows": 3}}, True),
        ({"trainer": {"learningRate": 1e-6}}, True),
        ({"rollout": {"temperature": 1.0}}, True),
        ({"rollout": {"replicas": 4}}, False),
        ({"rollout": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}, False),
        ({"rollout": {"engineArgs": {"max-num-seqs": 64}}}, False),
        ({"scorer": {"replicas": 2, "engineArgs": {"max-num-seqs": 64}}}, False),
        ({"lifecycle": {"backoffLimit": 1}}, False),
    ],
    ids=str,
)
def test_trainer_starts_anew_only_for_what_it_reads(changed: Json, restarts: bool) -> None:
    world = running_world(**OWN_MODEL)
    world.change_spec(**changed)
    world.step()
    assert world.jobs() == ([] if restarts else ["demo-trainer-1"])


def test_newer_operator_does_not_disturb_a_running_trainer() -> None:
    world = running_world()
    world.settings = type(world.settings)(accelerator="cpu", worker_image="worker:2", trainer_grace_seconds=60)
    world.settle()
    assert world.jobs() == ["demo-trainer-1"]
    assert world.run.status is not None
    assert world.run.status.attempt == 1


# --- suspension ----------------------------------------------------------------------------------------------------


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


def test_suspended_run_that_never_started_keeps_its_number() -> None:
    world = World(run_of(lifecycle={"suspend": True}))
    world.settle()
    assert (world.jobs(), world.replicas()) == ([], 0)
    world.change_spec(lifecycle={"suspend": False})
    world.settle()
    assert world.jobs() == ["demo-trainer-1"]


# --- time ----------------------------------------------------------------------------------------------------------


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


def test_finished_run_is_deleted_when_its_time_is_over() -> None:
    world = running_world(lifecycle={"ttlSecondsAfterFinished": 60})
    world.trainer_pod(phase="Succeeded", ended={"exitCode": 0})
    world.job(1, "Complete")
    plan = world.settle()
    assert (plan.delete_run, plan.requeue_seconds) == (False, 60)
    world.pass_time(60)
    assert world.step().delete_run


# --- what else is seen ---------------------------------------------------------------------------------------------


def progress_of(**fields: Any) -> TrainerProgress:
    """What rank 0 says."""
    base = {"uid": UID, "attempt": 1, "activity": "train", "window": 1, "windows": 4, "step": 20, "total_steps": 64}
    return TrainerProgress(Progress.model_validate(base | fields), START + timedelta(seconds=30))


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


def test_refused_child_degrades_the_run_and_is_told_once() -> None:
    world = running_world()
    refusal = Refusal(("StatefulSet", "demo-rollout"), "ChildRefused", "no such field")
    world.observed = type(world.observed)(**{**vars(world.observed), "refusals": (refusal,)})
    world.settle()
    world.settle()
    condition = world.condition("Degraded")
    assert condition is not None
    assert (condition.status, condition.reason, condition.message) == ("True", "ChildRefused", "no such field")
    assert world.told().count("ChildRefused") == 1


def test_child_of_a_deleted_run_of_the_same_name_is_waited_for(world: World) -> None:
    refusal = Refusal(("Job", "demo-trainer-1"), "WaitingForCleanup", "Job demo-trainer-1 of a deleted run is still there")
    world.observed = type(world.observed)(**{**vars(world.observed), "refusals": (refusal,)})
    world.settle()
    progressing, degraded = world.condition("Progressing"), world.condition("Degraded")
    assert progressing is not None
    assert degraded is not None
    assert (progressing.reason, degraded.status) == ("WaitingForCleanup", "False")


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


def test_pod_monitor_is_made_where_the_cluster_knows_the_kind(world: World) -> None:
    world.observed = type(world.observed)(**{**vars(world.observed), "has_pod_monitors": True})
    world.settle()
    assert ("PodMonitor", "demo") in world.observed.children
