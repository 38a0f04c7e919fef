"""Suspended, resumed, scaled and deleted in the middle."""

from pathlib import Path

import pytest

from e2e.runs import LONG, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_a_suspended_run_has_no_pods_and_goes_on_where_it_was(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("paused", duration=LONG))
    before = runs.until_window("paused", 2)
    runs.change("paused", lifecycle={"suspend": True})
    runs.until("it is suspended", lambda: runs.condition("paused", "Suspended").get("status") == "True")
    runs.until("no pod is left", lambda: not runs.pods())
    runs.change("paused", lifecycle={"suspend": False})
    after = runs.until_window("paused", before["window"])
    assert after["attempt"] == 2

    assert after.get("failedAttempts", 0) == 0
    runs.finish("paused")
    runs.ledger("paused", tmp_path).assert_whole()


def test_rollouts_scaled_up_and_down_serve_the_same_run(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("scaled", duration=LONG))
    runs.until_window("scaled", 1)
    runs.change("scaled", rollout={"replicas": 3})
    runs.until("three serve", lambda: runs.rollouts("scaled") == (3, 3), seconds=600)
    runs.change("scaled", rollout={"replicas": 1})
    runs.until("one serves", lambda: runs.rollouts("scaled") == (1, 1))

    status = runs.goes_on("scaled")

    assert status["attempt"] == 1
    runs.finish("scaled")
    runs.ledger("scaled", tmp_path).assert_whole()


def test_a_deleted_run_takes_its_pods_along_and_leaves_a_ledger_without_damage(runs: Runs) -> None:
    runs.create(tiny_run("deleted", duration=LONG))
    runs.until_window("deleted", 1)
    folder = runs.folder("deleted")
    runs.kubectl("delete", "spinrun", "deleted", "--timeout=60s")

    runs.until("no pod is left", lambda: not runs.pods())
    runs.shell("spinrun", "ledger", "verify", folder)
