"""A trainer of two pods, joined by gloo through the trainer's headless Service."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.conftest import SYSTEM
from e2e.runs import ANSWERING, KILL_RANK, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_two_pods_train_one_model(runs: Runs, tmp_path: Path) -> None:
    trainer = {"nodes": 2, "promptsPerStep": 16, "learningRate": 1e-4}
    runs.create(tiny_run("wide", trainer=trainer, duration={"windows": 3}))
    runs.until("two pods train", lambda: len(runs.pod_names("trainer")) == 2)

    runs.until_phase("wide", "Complete")

    ledger = runs.ledger("wide", tmp_path)
    ledger.assert_whole()
    steps = {line.step: line.values for line in ledger.metrics if line.event == "step"}
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    for first in (1, 3, 5):
        # Both pods start a window with the weights that were published: at its own reference the loss is ln 2.
        assert steps[first]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_two_pods_and_one_have_the_same_losses_on_the_same_pairs(runs: Runs, tmp_path: Path) -> None:
    # A window is sampled once. Who dies in its middle trains it again, here with as many ranks in one pod.
    trainer = {"promptsPerStep": 4, "learningRate": 1e-4}
    runs.create(tiny_run("widths", method={"refUpdateFreq": 300}, trainer=trainer | {"nodes": 2}, duration={"windows": 1}))
    runs.until("two pods train", lambda: len(runs.pod_names("trainer")) == 2)
    runs.until_window("widths", 0, *ANSWERING)
    with without_operator(runs):
        runs.until("they have made steps", lambda: len(runs.steps("widths")) > 5)
        runs.kubectl("exec", runs.pod_names("trainer")[0], "--", "python", "-c", KILL_RANK)
        of_two_pods = runs.steps("widths")
        # Else the operator may see the change first, and end the attempt for that.
        runs.kubectl("wait", "job", "--selector=spinrun.dev/run=widths", "--for=condition=Failed", "--timeout=120s")
        runs.change("widths", trainer={"nodes": 1, "procsPerNode": 2})

    status = runs.until_phase("widths", "Complete")

    assert (status["attempt"], status["failedAttempts"]) == (2, 1)
    of_one_pod = {line.step: line for line in runs.ledger("widths", tmp_path).metrics if line.event == "step"}
    assert 5 < len(of_two_pods) < 300, "killed in the middle"
    assert {line.attempt for line in of_two_pods} == {1}
    assert {line.attempt for line in of_one_pod.values()} == {2}
    for line in of_two_pods:
        assert of_one_pod[line.step].values["loss"] == pytest.approx(line.values["loss"], rel=1e-5)


@contextmanager
def without_operator(runs: Runs) -> Generator[None]:
    """Pods go on by themselves meanwhile."""
    selector = "--selector=app.kubernetes.io/component=operator"
    scale = ["scale", "deployment/spinrun-operator", "-n", SYSTEM]
    runs.control_plane.kubectl(*scale, "--replicas=0")
    runs.control_plane.kubectl("wait", "pod", "-n", SYSTEM, selector, "--for=delete", "--timeout=60s")
    yield
    runs.control_plane.kubectl(*scale, "--replicas=1")
