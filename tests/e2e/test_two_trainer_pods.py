"""A trainer of two pods, joined by gloo through its headless Service; one is killed, and a single pod takes their place."""

import math
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from e2e.conftest import SYSTEM
from e2e.runs import Json, Ledger, Runs, tiny_run
from spinrun_protocol.ledger import MetricsLine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "wide"
STEPS_A_WINDOW = 150
FIRST_STEPS = (1, 1 + STEPS_A_WINDOW)


@pytest.fixture(scope="module")
def of_two_pods(runs: Runs) -> list[MetricsLine]:
    """The steps of two pods: a whole window, and part of the next one, in which one of them is killed.

    A window is sampled once. Who dies in its middle trains it again, here with as many ranks in one pod.
    """
    trainer: Json = {"nodes": 2, "promptsPerStep": 4, "learningRate": 1e-4}
    runs.create(tiny_run(NAME, method={"refUpdateFreq": STEPS_A_WINDOW}, trainer=trainer, duration={"windows": 2}))
    runs.until("two pods train", lambda: len(runs.pod_names("trainer")) == 2)
    runs.until_window(NAME, 1)
    with without_operator(runs):
        runs.until("they have made steps", lambda: len(runs.steps(NAME)) > STEPS_A_WINDOW + 5)
        runs.kill_trainer(NAME)
        steps = runs.steps(NAME)
        # Else the operator may see the change first, and end the attempt for that.
        runs.kubectl("wait", "job", f"--selector=spinrun.dev/run={NAME}", "--for=condition=Failed", "--timeout=120s")
        runs.change(NAME, trainer={"nodes": 1, "procsPerNode": 2})
    return steps


@pytest.fixture(scope="module")
def status(runs: Runs, of_two_pods: list[MetricsLine]) -> Json:
    """The status of the run at its end."""
    return runs.until_phase(NAME, "Complete")


@pytest.fixture(scope="module")
def ledger(runs: Runs, status: Json, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """What the run has left."""
    return runs.ledger(NAME, tmp_path_factory.mktemp("ledger"))


def test_a_pod_that_is_killed_ends_the_attempt_of_both(status: Json, ledger: Ledger) -> None:
    assert (status["attempt"], status["failedAttempts"]) == (2, 1)
    ledger.assert_whole()


def test_two_pods_begin_each_window_with_the_weights_that_were_published(of_two_pods: list[MetricsLine]) -> None:
    losses = {line.step: line.values["loss"] for line in of_two_pods}
    for first in FIRST_STEPS:
        # At its own reference the loss is ln 2.
        assert losses[first] == pytest.approx(math.log(2), abs=1e-4)


def test_two_pods_and_one_have_the_same_losses_on_the_same_pairs(of_two_pods: list[MetricsLine], ledger: Ledger) -> None:
    in_second_window = [line for line in of_two_pods if line.step > STEPS_A_WINDOW]
    assert 5 < len(in_second_window) < STEPS_A_WINDOW, "killed in the middle"
    assert {line.attempt for line in of_two_pods} == {1}
    of_one_pod = {line.step: line for line in ledger.metrics if line.event == "step" and line.attempt == 2}
    assert sorted(of_one_pod) == list(range(STEPS_A_WINDOW + 1, 2 * STEPS_A_WINDOW + 1))
    for line in in_second_window:
        assert of_one_pod[line.step].values["loss"] == pytest.approx(line.values["loss"], rel=1e-5)


@contextmanager
def without_operator(runs: Runs) -> Generator[None]:
    """Pods run without anyone to look after them meanwhile."""
    selector = "--selector=app.kubernetes.io/component=operator"
    scale = ["scale", "deployment/spinrun-operator", "-n", SYSTEM]
    runs.control_plane.kubectl(*scale, "--replicas=0")
    runs.control_plane.kubectl("wait", "pod", "-n", SYSTEM, selector, "--for=delete", "--timeout=60s")
    yield
    runs.control_plane.kubectl(*scale, "--replicas=1")
