"""What docs/dashboards.md tells a Prometheus without prometheus-operator: it finds the pods that it should, with their labels.

Static targets with the labels that Kubernetes' discovery gives stand for the pods: there is no cluster with pod networks here.
"""

import re
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from integration.monitoring.prometheus import Prometheus, running_prometheus
from integration.monitoring.queries import PAGE

Json = dict[str, Any]
META = "__meta_kubernetes_"


def jobs() -> list[Json]:
    """The jobs of the page."""
    (block,) = re.findall(r"```yaml\n(scrape_configs:\n.*?)```", PAGE.read_text(), re.DOTALL)
    return yaml.safe_load(block)["scrape_configs"]


@pytest.fixture(scope="module")
def port() -> Generator[int]:
    """A page of metrics with one gauge."""
    registry = CollectorRegistry()
    Gauge("spinrun_test", "Something to collect.", registry=registry).set(1)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield server.server_address[1]
    server.shutdown()
    thread.join()


def discovered(pod: str, port_name: str, labels: Mapping[str, str], namespace: str = "team") -> Json:
    """What Kubernetes' discovery says of a port of a pod with such labels."""
    found = {"namespace": namespace, "pod_name": pod, "pod_container_port_name": port_name}
    for name, value in labels.items():
        name = re.sub(r"\W", "_", name)
        found |= {f"pod_label_{name}": value, f"pod_labelpresent_{name}": "true"}
    return {META + name: value for name, value in found.items()}


OURS = {"app.kubernetes.io/name": "spinrun"}
DEMO = OURS | {"spinrun.dev/run": "demo"}
PODS = [
    discovered("demo-trainer-2-0", "trainer", DEMO | {"spinrun.dev/attempt": "2"}),
    discovered("demo-rollout-0", "agent", DEMO),
    discovered("demo-rollout-0", "", DEMO),
    discovered("spinrun-operator-0", "http", OURS),
    discovered("elsewhere", "http", {"app.kubernetes.io/name": "nginx"}),
    discovered("elsewhere", "agent", {"app.kubernetes.io/name": "vault"}),
]


@pytest.fixture(scope="module")
def prometheus(port: int, tmp_path_factory: pytest.TempPathFactory) -> Generator[Prometheus]:
    folder = tmp_path_factory.mktemp("scraped")
    pages = [{"targets": [f"127.0.0.1:{port}"], "labels": labels} for labels in PODS]
    found = [
        {name: value for name, value in job.items() if name != "kubernetes_sd_configs"} | {"static_configs": pages}
        for job in jobs()
    ]
    with running_prometheus(folder, [], folder / "none.yaml", jobs=found) as prometheus:
        deadline = time.monotonic() + 30
        while len(prometheus.now("up")) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        yield prometheus


def test_jobs_of_the_page_discover_pods() -> None:
    assert [job["kubernetes_sd_configs"] for job in jobs()] == [[{"role": "pod"}]] * 2


def test_pods_of_runs_and_the_operator_are_collected_and_no_others(prometheus: Prometheus) -> None:
    found = {(series["metric"]["job"], series["metric"]["pod"]): series["metric"] for series in prometheus.now("up")}
    assert set(found) == {
        ("spinrun", "demo-trainer-2-0"),
        ("spinrun", "demo-rollout-0"),
        ("spinrun-operator", "spinrun-operator-0"),
    }
    trainer = found["spinrun", "demo-trainer-2-0"]
    assert {name: trainer[name] for name in ("namespace", "spinrun_dev_run", "spinrun_dev_attempt")} == {
        "namespace": "team",
        "spinrun_dev_run": "demo",
        "spinrun_dev_attempt": "2",
    }


def test_a_run_is_what_is_asked_for_in_dashboards(prometheus: Prometheus) -> None:
    (series,) = prometheus.now('up{namespace="team", spinrun_dev_run="demo", pod="demo-rollout-0"}')
    assert series["metric"]["job"] == "spinrun"


def test_values_of_the_page_are_the_charts() -> None:
    (block,) = re.findall(r"```yaml\n( *serviceMonitor:.*?)```", PAGE.read_text(), re.DOTALL)
    values = yaml.safe_load(block)
    chart = yaml.safe_load((Path(__file__).resolve().parents[3] / "charts" / "spinrun" / "values.yaml").read_text())
    assert all(set(block) <= set(chart[name]) for name, block in values.items())
