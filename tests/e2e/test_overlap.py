"""Rollouts a window ahead of their trainer, and either of them killed."""

from pathlib import Path

import pytest

from e2e.runs import KILL_RANK, LONG, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_rollouts_that_are_ahead_answer_again_what_a_killed_trainer_has_lost(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("ahead", duration=LONG, method={"refUpdateFreq": 2, "overlap": 1}))
    runs.until_window("ahead", 2, "train")
    assert runs.kubectl("exec", runs.pod_names("trainer", "ahead")[0], "--", "python", "-c", KILL_RANK).strip()
    status = runs.goes_on("ahead")
    assert (status["attempt"], status["failedAttempts"]) == (2, 1)

    runs.kubectl("delete", "pod", runs.pod_names("rollout", "ahead")[0], "--grace-period=0", "--force")
    assert runs.goes_on("ahead")["attempt"] == 2, "the trainer waited"

    runs.finish("ahead")
    runs.ledger("ahead", tmp_path).assert_whole(ahead=1)
