"""How an attempt ended, and what follows."""

from datetime import timedelta
from typing import Any

import pytest

from spinrun_api.spec import FailureRule, Lifecycle
from spinrun_operator.policies.failure import AttemptEnd, Cause, attempt_end, follow_up, read_termination
from spinrun_protocol.termination import TerminationMessage
from unit.operator.world import SETTINGS, START, pod_of

Json = dict[str, Any]

FAILED: Json = {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}
COMPLETE: Json = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}]


def pod(name: str = "a", *, phase: str = "Failed", deleted: bool = False, **more: Any) -> Json:
    """A pod of the attempt."""
    metadata = {"name": name, **({"deletionTimestamp": "2026-01-01T12:00:00Z"} if deleted else {})}
    return pod_of(metadata, phase, **more)


@pytest.mark.parametrize(
    ("pods", "cause", "code"),
    [
        pytest.param([pod(ended={"exitCode": 1})], Cause.EXIT, 1, id="exit"),
        pytest.param([pod(ended={"exitCode": 137, "reason": "OOMKilled"})], Cause.OUT_OF_MEMORY, 137, id="oom"),
        pytest.param([pod(ended={"exitCode": 137})], Cause.EXIT, 137, id="killed-but-not-for-memory"),
        pytest.param([pod(ended={"exitCode": 3}, conditions=DISRUPTED)], Cause.DISRUPTION, 3, id="drain"),
        pytest.param([pod(reason="Evicted", message="low on memory")], Cause.DISRUPTION, None, id="eviction-by-kubelet"),
        pytest.param([pod(ended={"exitCode": 143}, deleted=True)], Cause.DISRUPTION, 143, id="deleted-by-hand"),
        pytest.param([pod(ended={"exitCode": 137, "reason": "ContainerStatusUnknown"})], Cause.DISRUPTION, 137, id="lost-node"),
        pytest.param([], Cause.DISRUPTION, None, id="pod-removed"),
        pytest.param(
            [
                pod("a", ended={"exitCode": 3, "finishedAt": "2026-01-01T12:00:31Z"}, deleted=True),
                pod("b", ended={"exitCode": 1}),
            ],
            Cause.EXIT,
            1,
            id="first-to-end-decides",
        ),
        pytest.param(
            [pod("a", ended={"exitCode": 3}, deleted=True), pod("b", ended={"exitCode": 1})], Cause.EXIT, 1, id="same-second"
        ),
        pytest.param([pod("a", ended={"exitCode": 3}), pod("b", ended={"exitCode": 2})], Cause.EXIT, 2, id="preempted-says-less"),
    ],
)
def test_cause_of_a_failed_job(pods: list[Json], cause: Cause, code: int | None) -> None:
    end = attempt_end(FAILED, pods)
    assert end is not None
    assert (end.cause, end.exit_code) == (cause, code)


def test_attempt_has_not_ended_before_its_job() -> None:
    failing: Json = {"status": {"conditions": [{"type": "FailureTarget", "status": "True"}]}}
    assert attempt_end(failing, [pod(ended={"exitCode": 1})]) is None


def test_out_of_memory_names_the_limit_and_where_it_is_set() -> None:
    end = attempt_end(FAILED, [pod(ended={"exitCode": 137, "reason": "OOMKilled"})])
    assert end is not None
    assert "memory limit of 4Gi" in end.message
    assert "spec.trainer.template.spec.containers[trainer].resources.limits.memory" in end.message


@pytest.mark.parametrize("text", ["", "Killed", "{}", '{"result": "Complete"', "[1]", '{"result": 7}'])
def test_other_text_is_not_taken_for_termination_message(text: str) -> None:
    assert read_termination(text) is None


def test_termination_message_are_read() -> None:
    words = TerminationMessage(result="Failed", reason="NoPairs", message="all rewards are equal", exit_code=1)
    end = attempt_end(FAILED, [pod(ended={"exitCode": 1, "message": words.model_dump_json()})])
    assert end is not None
    assert end.termination == words
    assert end.message == "pod a exited with code 1: all rewards are equal"


RULES = [
    FailureRule(exit_codes=[42], action="Fail"),
    FailureRule(exit_codes=[43, 2], action="RestartUncounted"),
    FailureRule(exit_codes=[3], action="Restart"),
]
FAIL_AT_ONCE = [FailureRule(exit_codes=[1, 137], action="Fail")]


@pytest.mark.parametrize(
    ("cause", "code", "rules", "want"),
    [
        (Cause.COMPLETE, 0, [], ("Complete", "Completed", False)),
        (Cause.EXIT, 1, [], ("Restart", "TrainerFailed", True)),
        (Cause.EXIT, 2, [], ("Fail", "InvalidConfiguration", False)),
        (Cause.EXIT, 3, [], ("Restart", "TrainerPreempted", False)),
        (Cause.EXIT, 4, [], ("Restart", "LedgerUnavailable", False)),
        (Cause.EXIT, 139, [], ("Restart", "TrainerFailed", True)),
        (Cause.OUT_OF_MEMORY, 137, [], ("Restart", "TrainerOOMKilled", True)),
        (Cause.DISRUPTION, 137, [], ("Restart", "TrainerDisrupted", False)),
        (Cause.EXIT, 42, RULES, ("Fail", "FailurePolicy", False)),
        (Cause.EXIT, 43, RULES, ("Restart", "TrainerFailed", False)),
        (Cause.EXIT, 2, RULES, ("Restart", "TrainerFailed", False)),
        (Cause.EXIT, 3, RULES, ("Restart", "TrainerFailed", True)),
        (Cause.DISRUPTION, 42, RULES, ("Restart", "TrainerDisrupted", False)),
        (Cause.DISRUPTION, 0, [], ("Restart", "TrainerDisrupted", False)),
        (Cause.DISRUPTION, None, [], ("Restart", "TrainerDisrupted", False)),
        (Cause.EXIT, 0, [], ("Restart", "TrainerFailed", True)),
        (Cause.EXIT, None, [], ("Restart", "TrainerFailed", True)),
        (Cause.OUT_OF_MEMORY, 3, [], ("Restart", "TrainerOOMKilled", True)),
        (Cause.OUT_OF_MEMORY, 43, RULES, ("Restart", "TrainerOOMKilled", False)),
        (Cause.EXIT, 1, FAIL_AT_ONCE, ("Fail", "FailurePolicy", False)),
        (Cause.EXIT, None, FAIL_AT_ONCE, ("Restart", "TrainerFailed", True)),
        (Cause.OUT_OF_MEMORY, None, FAIL_AT_ONCE, ("Restart", "TrainerOOMKilled", True)),
    ],
)
def test_what_follows(cause: Cause, code: int | None, rules: list[FailureRule], want: tuple[str, str, bool]) -> None:
    end = AttemptEnd(cause, "it ended", code)
    lifecycle = Lifecycle(failure_policy=rules)
    follows = follow_up(end, lifecycle, SETTINGS, failed_attempts=0, ledger_unavailable_since=None, now=START)
    assert (follows.action, follows.reason, follows.counted) == want


@pytest.mark.parametrize(("failed", "limit", "want"), [(0, 0, "Fail"), (5, 6, "Restart"), (6, 6, "Fail"), (0, 1, "Restart")])
def test_run_fails_when_restarts_are_used_up(failed: int, limit: int, want: str) -> None:
    end, lifecycle = AttemptEnd(Cause.EXIT, "boom", 1), Lifecycle(backoff_limit=limit)
    follows = follow_up(end, lifecycle, SETTINGS, failed_attempts=failed, ledger_unavailable_since=None, now=START)
    assert follows.action == want


@pytest.mark.parametrize(("failed", "want"), [(0, 10), (1, 20), (2, 40), (4, 160), (5, 300), (400, 300)])
def test_wait_doubles_with_each_failure_up_to_five_minutes(failed: int, want: float) -> None:
    end, lifecycle = AttemptEnd(Cause.EXIT, "boom", 1), Lifecycle(backoff_limit=1000)
    follows = follow_up(end, lifecycle, SETTINGS, failed_attempts=failed, ledger_unavailable_since=None, now=START)
    assert follows.delay_seconds == want


@pytest.mark.parametrize(("lasted", "want"), [(None, 10), (5, 10), (40, 40), (4000, 300)])
def test_wait_for_the_ledger_is_as_long_again_as_it_has_lasted(lasted: float | None, want: float) -> None:
    since = None if lasted is None else START - timedelta(seconds=lasted)
    follows = follow_up(
        AttemptEnd(Cause.EXIT, "full", 4), Lifecycle(), SETTINGS, failed_attempts=0, ledger_unavailable_since=since, now=START
    )
    assert follows.delay_seconds == want


@pytest.mark.parametrize(("lived", "want"), [(0.0, 10), (4.0, 6), (3600.0, 0)])
def test_preempted_trainer_that_hardly_lived_is_not_followed_at_once(lived: float, want: float) -> None:
    end = AttemptEnd(Cause.EXIT, "preempted", 3, lived_seconds=lived)
    follows = follow_up(end, Lifecycle(), SETTINGS, failed_attempts=0, ledger_unavailable_since=None, now=START)
    assert follows.delay_seconds == want
