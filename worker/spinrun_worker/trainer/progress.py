"""What rank 0 tells those who watch: `/progress`, `/metrics`, `/healthz`."""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from spinrun_api.status import Best, Metrics, RolloutStatus
from spinrun_api.wire import Activity, Progress
from spinrun_worker.errors import RunError

logger = logging.getLogger(__name__)


class ProgressBoard:
    """The newest Progress. One thread writes, others read: a Progress is immutable and replaced as a whole."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rollouts: Callable[[], RolloutStatus] = RolloutStatus
        self.activity_seconds: dict[str, float] = {}
        """Seconds spent in each activity since `take_seconds` was last called."""
        self.accuracies: dict[int, float] = {}
        """Accuracy of each version that was evaluated."""

    @property
    def now(self) -> Progress:
        """The newest state."""
        return self._progress

    def follow(self, rollouts: Callable[[], RolloutStatus]) -> None:
        """Where to ask how the rollouts stand, whenever somebody asks here. It may be called from any thread."""
        self._rollouts = rollouts

    def snapshot(self) -> Progress:
        """The newest state with that of the rollouts."""
        return self._progress.model_copy(update={"rollouts": self._rollouts()})

    def update(self, **changes: Any) -> None:
        """Replace fields of the state."""
        self._progress = self._progress.model_copy(update=changes)

    def update_metrics(self, **changes: float) -> None:
        """Replace some of the newest figures."""
        self.update(metrics=Metrics.model_validate(self._progress.metrics.model_dump() | changes))

    def evaluated(self, *, window: int, version: int, accuracy: float) -> None:
        """Note an evaluation; the first of equally good versions stays the best."""
        self.accuracies[version] = accuracy
        self.update_metrics(accuracy=accuracy)
        best = self._progress.best
        if best is None or accuracy > best.accuracy:
            self.update(best=Best(window=window, version=version, accuracy=accuracy))

    @contextmanager
    def during(self, activity: Activity) -> Generator[None]:
        """Show an activity while the block runs, and add its seconds."""
        previous, started = self._progress.activity, time.monotonic()
        self.update(activity=activity, message="")
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.activity_seconds[activity] = self.activity_seconds.get(activity, 0.0) + seconds
            self.update(activity=previous, message="")

    def take_seconds(self) -> dict[str, float]:
        """Seconds by activity since the last call, by their metric names."""
        seconds = {f"timing/{activity}_seconds": spent for activity, spent in self.activity_seconds.items()}
        self.activity_seconds.clear()
        return seconds


class Gauges:
    """Prometheus gauges made from figures by name: `rewards/margins` becomes spinrun_trainer_rewards_margins."""

    def __init__(self, *, namespace: str, run: str, method: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"namespace": namespace, "run": run, "method": method}
        self._gauges: dict[str, Gauge] = {}

    def set(self, values: dict[str, float]) -> None:
        """Set gauges; a new name makes a new gauge."""
        for name, value in values.items():
            metric = "spinrun_trainer_" + name.replace("/", "_")
            if metric not in self._gauges:
                self._gauges[metric] = Gauge(
                    metric, f"Newest value of {name}.", labelnames=list(self._labels), registry=self.registry
                )
            self._gauges[metric].labels(**self._labels).set(value)


class ProgressServer:
    """HTTP server of rank 0, in threads of its own; it holds nothing but references."""

    def __init__(self, *, host: str, port: int, board: ProgressBoard, gauges: Gauges) -> None:
        routes: dict[str, Callable[[], tuple[str, bytes]]] = {
            "/progress": lambda: ("application/json", board.snapshot().model_dump_json(by_alias=True).encode()),
            "/metrics": lambda: (CONTENT_TYPE_LATEST, generate_latest(gauges.registry)),
            "/healthz": lambda: ("text/plain", b"ok\n"),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds that an idle client may hold a thread

            def do_GET(self) -> None:
                route = routes.get(self.path.partition("?")[0])
                if route is None:
                    self.send_error(404)
                    return
                content_type, body = route()
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                logger.debug("progress server: " + format, *args)

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise RunError(f"rank 0 cannot listen on {host or '*'}:{port}: {error}; free the port or choose another") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress-server", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return self._server.server_address[1]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
