"""The dashboards and alerts about runs, asked of a real Prometheus that collects from a real run."""

import time
from collections.abc import Generator

import pytest

from integration.monitoring.local_run import NAMESPACE, RUN, local_run
from integration.monitoring.prometheus import SCRAPE_SECONDS, Prometheus, binary, running_prometheus
from integration.monitoring.queries import (
    ALERTS,
    NO_FAILURE,
    NO_GPU,
    NO_KUBELET,
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
from support.models import tiny_llama

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

VARIABLES = {"namespace": NAMESPACE, "run": RUN}
NUM_WINDOWS = 5
# Alerts look at every minute: so long there must be data that none of them lies between two looks.
SECONDS = 65

OPERATOR = {"spinrun_operator_": "a local run has no operator"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Generator[Prometheus]:
    """A Prometheus that has watched some windows of a run, which goes on."""
    binary()
    folder = tmp_path_factory.mktemp("monitored")
    model = tiny_llama(folder / "model", seed=0)
    with local_run(model, folder) as run, running_prometheus(folder / "prometheus", run.targets(), ALERTS) as prometheus:
        run.until("windows are done", lambda: run.windows_done() > 0)
        began = time.monotonic()
        run.until("windows are done", lambda: run.windows_done() >= NUM_WINDOWS and time.monotonic() > began + SECONDS)
        # What the last window said must have been collected.
        time.sleep(2 * SCRAPE_SECONDS)
        yield prometheus


def test_every_query_about_a_run_has_data(prometheus: Prometheus) -> None:
    check(prometheus, "run", VARIABLES, NO_GPU | NO_TROUBLE | NO_MODEL)


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
