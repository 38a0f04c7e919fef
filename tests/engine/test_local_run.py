"""One `spinrun local` with everything real: Prometheus watches it, it is stopped and resumed, and loses a vLLM.

The run starts once, and the tests come in its order. Each of them also passes alone.
"""

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from integration.monitoring.local_run import NAMESPACE, RUN, START_SECONDS, LocalRun
from integration.monitoring.prometheus import SCRAPE_SECONDS, Prometheus, binary, running_prometheus
from integration.monitoring.queries import (
    ALERTS,
    NO_FAILURE,
    NO_GPU,
    NO_KUBELET,
    NO_LOGPROBS,
    NO_MODEL,
    NO_SCORER,
    NO_TROUBLE,
    alerts,
    check,
    choices,
    probes,
    read_dashboard,
    unanswered,
)
from spinrun_protocol.commands import CPU_SERVER
from spinrun_worker.ledger import verify_tree

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

VARIABLES = {"namespace": NAMESPACE, "run": RUN}
NUM_WINDOWS = 5
# Alerts look at every minute: so long there must be data that none of them lies between two looks.
SECONDS = 65

OPERATOR = {"spinrun_operator_": "a local run has no operator"}


@pytest.fixture(scope="module")
def run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[LocalRun]:
    """The run, at work."""
    run = LocalRun(base_model, tmp_path_factory.mktemp("local"))
    run.start()
    try:
        yield run
    finally:
        run.stop()


@pytest.fixture(scope="module")
def prometheus(run: LocalRun, tmp_path_factory: pytest.TempPathFactory) -> Generator[Prometheus]:
    """A Prometheus that has watched some windows of the run, which continues."""
    binary()
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), run.targets(), ALERTS) as prometheus:
        run.until("a window is done", lambda: run.windows_done() > 0)
        began, done = time.monotonic(), run.windows_done()
        run.until("more are", lambda: run.windows_done() >= done + NUM_WINDOWS and time.monotonic() > began + SECONDS)
        # What the last window said must have been collected.
        time.sleep(2 * SCRAPE_SECONDS)
        yield prometheus


def test_every_query_about_a_run_has_data(prometheus: Prometheus) -> None:
    check(prometheus, "run", VARIABLES, NO_GPU | NO_TROUBLE | NO_MODEL | NO_LOGPROBS)


def test_every_query_about_rollouts_has_data(prometheus: Prometheus) -> None:
    check(prometheus, "rollout", VARIABLES, NO_FAILURE | NO_SCORER)


def test_every_query_about_all_runs_has_data_but_what_the_operator_knows(prometheus: Prometheus) -> None:
    check(prometheus, "fleet", {"namespace": ".+"}, OPERATOR, part=", of a run")


@pytest.mark.parametrize("name", ["run", "rollout"])
def test_grafana_offers_the_run(prometheus: Prometheus, name: str) -> None:
    assert choices(prometheus, read_dashboard(name), VARIABLES) == {"namespace": [NAMESPACE], "run": [RUN]}


@pytest.mark.parametrize("group", ["spinrun-learning", "spinrun-serving"])
def test_every_alert_about_runs_has_data_to_judge(prometheus: Prometheus, group: str) -> None:
    exprs = alerts(group)
    assert exprs
    counts = {probe: len(prometheus.now(probe)) for expr in exprs.values() for probe in probes(expr)}
    assert unanswered(counts, NO_KUBELET) == []


def test_no_alert_fires_in_a_sound_run(prometheus: Prometheus) -> None:
    firing = {series["metric"]["alertname"] for series in prometheus.now('ALERTS{alertstate="firing"}')}
    assert firing <= {"SpinRunOperatorAbsent"}


def test_a_run_that_is_stopped_resumes_with_two_rollouts_and_survives_the_death_of_one(run: LocalRun) -> None:
    run.until("two windows are done", lambda: run.windows_done() >= 2)
    children = run.descendants()
    assert any(map(is_vllm, children))
    stopped = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    run.process.wait(60)

    assert run.process.returncode == 130, run.output
    assert time.monotonic() - stopped < 45
    assert survivors(children) == []
    assert [finding for finding in verify_tree(run.ledger) if finding.state != "committed"] == []
    done = run.windows_done()
    assert 2 <= done < 1000

    wanted = done + 12
    run.start("--resume", "--set", f"spec.duration.windows={wanted}", "--set", "spec.rollout.replicas=2")
    run.until("the run trains again", lambda: run.windows_done() > done)
    children = run.descendants()
    victims = [child for child in children if is_vllm(child)]
    assert len(victims) == 2
    os.kill(victims[0].pid, signal.SIGKILL)
    run.process.wait(START_SECONDS)

    assert run.process.returncode == 0, run.output
    assert "complete: held-out accuracy" in run.output
    assert (run.folder / "report.html").exists()
    lines = run.metrics()
    assert [line.version for line in lines if line.event == "evaluation"] == list(range(wanted + 1))
    assert [line.step for line in lines if line.event == "window"] == list(range(2, 2 * wanted + 1, 2))
    assert {line.attempt for line in lines} == {1, 2}
    assert survivors(children) == []


def survivors(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def is_vllm(process: psutil.Process) -> bool:
    return CPU_SERVER in process.cmdline() and "child_process.py" not in " ".join(process.cmdline())
