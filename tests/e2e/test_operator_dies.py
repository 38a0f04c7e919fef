"""The operator killed and upgraded in the middle of a run: pods stay what they are, and nothing is missed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.conftest import SYSTEM
from e2e.runs import ANSWERING, LONG, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_an_operator_killed_at_every_stage_and_upgraded_leaves_the_pods_alone(
    runs: Runs, tmp_path: Path, upgrade: Callable[..., str]
) -> None:
    runs.create(tiny_run("steady", duration=LONG))
    runs.until("pods are there", lambda: len(runs.pods()) == 2)
    kill_operator(runs)
    runs.until_window("steady", 1, *ANSWERING)
    pods = {pod["metadata"]["uid"] for pod in runs.pods()}
    kill_operator(runs)
    runs.until_window("steady", 2)
    upgrade("settings.workers=16")
    runs.until_window("steady", 3)
    kill_operator(runs)

    status = runs.goes_on("steady")

    assert status["attempt"] == 1
    assert {pod["metadata"]["uid"] for pod in runs.pods()} == pods
    runs.finish("steady")
    runs.ledger("steady", tmp_path).assert_whole()


def kill_operator(runs: Runs) -> None:
    """Kills the operator's pod without a word; its Deployment makes another."""
    selector = "--selector=app.kubernetes.io/component=operator"
    runs.control_plane.kubectl("delete", "pod", "-n", SYSTEM, selector, "--grace-period=0", "--force")
