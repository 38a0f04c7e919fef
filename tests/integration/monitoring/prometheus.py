"""A real Prometheus with a data folder of its own, and what a test asks it."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.ports import free_port

Json = dict[str, Any]

SCRAPE_SECONDS = 1
START_SECONDS = 60


@dataclass(frozen=True)
class Target:
    """A page of metrics, and the labels that a PodMonitor or ServiceMonitor gives to all that is on it."""

    port: int
    labels: dict[str, str]


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=60, trust_env=False)

    def now(self, expr: str) -> list[Json]:
        """The series of a query at this moment. Raises httpx.HTTPStatusError when Prometheus does not understand it."""
        return self._get("query", query=expr)["result"]

    def over_time(self, expr: str, seconds: float, step: float) -> list[Json]:
        """The series of a query over the time up to now."""
        end = time.time()
        return self._get("query_range", query=expr, start=end - seconds, end=end, step=step)["result"]

    def values(self, label: str, selector: str) -> list[str]:
        """Values of a label among the series that a selector finds."""
        return self._get(f"label/{label}/values", **{"match[]": selector})

    def is_up(self) -> bool:
        """Whether it answers queries."""
        try:
            return self._client.get(f"{self.url}/-/ready").is_success
        except httpx.HTTPError:
            return False

    def _get(self, path: str, **parameters: Any) -> Any:
        response = self._client.get(path, params=parameters)
        assert response.is_success, f"{parameters}: {response.text}"
        return response.json()["data"]


def binary() -> str:
    """The program; where it is not installed the test is skipped."""
    # `make prometheus` puts it beside the interpreter.
    found = shutil.which("prometheus") or shutil.which("prometheus", path=Path(sys.executable).parent)
    if found:
        return found
    pytest.skip("Prometheus is not installed (on Debian: make prometheus)")


@contextmanager
def running_prometheus(
    folder: Path, targets: Sequence[Target], rules: Path, *, jobs: Sequence[Json] = ()
) -> Generator[Prometheus]:
    """One that collects from the targets, with a file of rules, while the block runs. Its data stays in the folder.

    jobs: further ones, as its configuration has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = [{"targets": [f"127.0.0.1:{target.port}"], "labels": target.labels} for target in targets]
    seconds = f"{SCRAPE_SECONDS}s"
    config = {
        "global": {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": seconds},
        "rule_files": [str(rules)],
        "scrape_configs": [*jobs, *([{"job_name": "spinrun", "static_configs": pages}] if pages else [])],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    options = {"config.file": folder / "prometheus.yaml", "storage.tsdb.path": folder / "data", "web.listen-address": address}
    with (folder / "prometheus.log").open("ab") as log:
        command = [binary(), *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        prometheus = Prometheus(f"http://{address}")
        deadline = time.monotonic() + START_SECONDS
        while not prometheus.is_up():
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.1)
        yield prometheus
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)
