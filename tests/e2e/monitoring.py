"""Curves by docs/dashboards.md without prometheus-operator: a real Prometheus collects from real pods."""

import json
import time
from pathlib import Path

from e2e.conftest import NAMESPACE, SYSTEM
from e2e.runs import Json, Runs
from integration.monitoring.prometheus import SCRAPE_SECONDS, Prometheus, running_prometheus
from integration.monitoring.queries import (
    ALERTS,
    NO_FAILURE,
    NO_GPU,
    NO_LOGPROBS,
    NO_MODEL,
    NO_SCORER,
    NO_TROUBLE,
    choices,
    questions,
    read_dashboard,
    unanswered,
)
from integration.monitoring.test_scrape_config import discovered, jobs

# Rates need a few collections, and so do the lines that a window begins.
SECONDS = 20


def assert_dashboards_have_data(runs: Runs, name: str, folder: Path) -> None:
    """Has a Prometheus collect from the pods of a run at work and from the operator, and asks every query of the dashboards."""
    run = {"namespace": NAMESPACE, "run": name}
    with running_prometheus(folder, [], ALERTS, jobs=page_jobs(runs)) as prometheus:
        time.sleep(SECONDS + 2 * SCRAPE_SECONDS)
        assert collected(prometheus, "spinrun") == runs.pod_names("rollout") + runs.pod_names("trainer")
        assert len(collected(prometheus, "spinrun-operator")) == 1
        assert choices(prometheus, read_dashboard("run"), run) == {"namespace": [NAMESPACE], "run": [name]}
        # kubelet_volume_stats: the kubelet is nobody's target in that configuration.
        without = (
            NO_GPU | NO_TROUBLE | NO_MODEL | NO_LOGPROBS | NO_FAILURE | NO_SCORER | {"kubelet_volume_stats_": "not collected"}
        )
        assert empty(prometheus, "run", run, without) == []
        assert empty(prometheus, "rollout", run, without) == []
        no_end = {"spinrun_operator_attempts_ended_total": "no attempt has ended since Prometheus began"}
        assert empty(prometheus, "operator", {"namespace": SYSTEM}, no_end) == []
        assert empty(prometheus, "fleet", {"namespace": ".+"}, without | no_end) == []


def page_jobs(runs: Runs) -> list[Json]:
    """The page's jobs. Debian's Prometheus is built without Kubernetes' discovery: the test asks for the pods in its place."""
    operators = json.loads(runs.control_plane.kubectl("get", "pods", "--namespace", SYSTEM, "--output=json"))["items"]
    pages = [page for pod in [*runs.pods(), *operators] for page in pages_of(pod)]
    return [
        {name: value for name, value in job.items() if name != "kubernetes_sd_configs"} | {"static_configs": pages}
        for job in jobs()
    ]


def pages_of(pod: Json) -> list[Json]:
    """Each port of a pod, as Kubernetes' discovery tells of it."""
    about = pod["metadata"]
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    return [
        {
            "targets": [f"{pod['status']['podIP']}:{port['containerPort']}"],
            "labels": discovered(about["name"], port.get("name", ""), about["labels"], about["namespace"]),
        }
        for port in ports
    ]


def collected(prometheus: Prometheus, job: str) -> list[str]:
    """The pods whose metrics a job gets."""
    return sorted(series["metric"]["pod"] for series in prometheus.now(f'up{{job="{job}"}} == 1'))


def empty(prometheus: Prometheus, dashboard: str, variables: dict[str, str], without: dict[str, str]) -> list[str]:
    """The queries of a dashboard that have no data and should have."""
    asked = questions(read_dashboard(dashboard), variables)
    return unanswered({question.expr: question.num_series(prometheus) for question in asked}, without)
