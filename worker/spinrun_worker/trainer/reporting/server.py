"""What rank 0 serves over HTTP: `/progress`, `/metrics`, `/healthz`."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from spinrun_protocol.wire import Activity
from spinrun_worker.errors import RunError
from spinrun_worker.trainer.model.memory import peak_bytes, peak_cuda_bytes
from spinrun_worker.trainer.reporting.board import ProgressBoard

logger = logging.getLogger(__name__)


class Gauges:
    """Prometheus gauges made from figures by name: `rewards/margins` becomes spinrun_trainer_rewards_margins."""

    def __init__(self, *, namespace: str, run: str, method: str) -> None:
        self.registry = CollectorRegistry()
        self.labels = {"namespace": namespace, "run": run, "method": method}
        """Labels of every metric."""
        self._gauges: dict[str, Gauge] = {}

    def follow(self, board: ProgressBoard) -> None:
        """Also show the state of the board, as of each scrape."""
        self.registry.register(BoardCollector(board, self.labels))

    def set(self, values: dict[str, float]) -> None:
        """Set gauges; a new name creates a new gauge."""
        for name, value in values.items():
            metric = "spinrun_trainer_" + name.replace("/", "_")
            if metric not in self._gauges:
                self._gauges[metric] = Gauge(
                    metric, f"Latest value of {name}.", labelnames=list(self.labels), registry=self.registry
                )
            self._gauges[metric].labels(**self.labels).set(value)


class BoardCollector(Collector):
    """What rank 0 is doing and how far it has come, turned into metrics at each scrape."""

    def __init__(self, board: ProgressBoard, labels: Mapping[str, str]) -> None:
        self._board = board
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
        board, now = self._board, self._board.now
        activities = {name: float(name == now.activity) for name in get_args(Activity)}
        yield self._gauge("activity", "1 for the trainer's current activity, 0 for all others.", "activity", activities)
        yield self._counter(
            "activity_seconds", "Time this attempt has spent in each activity, seconds.", "activity", board.seconds()
        )
        yield self._counter(
            "written_bytes", "Bytes this attempt has written to the ledger, by kind.", "kind", board.written_bytes
        )
        yield self._figure("windows", "Total number of windows in the run.", now.windows or None)
        yield self._figure("steps", "Total number of optimizer steps in the run.", now.total_steps or None)
        yield self._figure(
            "end_timestamp_seconds", "Estimated end of the run at its current pace, Unix time in seconds.", board.end
        )
        yield self._figure("initial_accuracy", "Accuracy of version 0.", board.accuracies.get(0))
        yield self._figure("memory_peak_bytes", "Peak resident memory of rank 0, bytes.", peak_bytes())
        yield self._figure("cuda_memory_peak_bytes", "Peak GPU memory of rank 0, bytes.", peak_cuda_bytes())

    def _figure(self, name: str, meaning: str, value: float | None) -> Metric:
        """A gauge without labels of its own; None gives no sample."""
        family = GaugeMetricFamily(f"spinrun_trainer_{name}", meaning, labels=list(self._labels))
        if value is not None:
            family.add_metric(list(self._labels.values()), value)
        return family

    def _gauge(self, name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"spinrun_trainer_{name}", meaning, labels=[*self._labels, label])
        return self._filled(family, values)

    def _counter(self, name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(f"spinrun_trainer_{name}", meaning, labels=[*self._labels, label])
        return self._filled(family, values)

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
        for key, value in values.items():
            family.add_metric([*self._labels.values(), key], value)
        return family


class _Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are few, each for a short time: the trainer needs its memory itself."""

    daemon_threads = True
    request_queue_size = 64
    max_connections = 64
    connection_seconds = 10.0
    """From a connection's beginning to its end; each answers one request."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._since: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection; where there are too many, the oldest makes room."""
        open_now = list(self._since)
        for oldest in open_now[: max(0, len(open_now) - self.max_connections + 1)]:
            self._end(oldest)
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection that has been answered, or given up."""
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: end the connections whose time is over, such as those that send a byte now and then."""
        now = time.monotonic()
        for request, since in list(self._since.items()):
            if now - since > self.connection_seconds:
                self._end(request)

    def _end(self, request: socket.socket) -> None:
        """Have a connection's thread read its end."""
        self._since.pop(request, None)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class gives it
        """A client that went away is no news: its traceback would stand in the trainer's log."""
        logger.debug("progress server: connection from %s failed", client_address, exc_info=True)


class ProgressServer:
    """HTTP server of rank 0, in threads of its own; it holds nothing but references."""

    def __init__(self, *, host: str, port: int, board: ProgressBoard, gauges: Gauges) -> None:
        """Start serving.

        Args:
            host: Address to listen on; empty means all.
            port: Port to listen on; 0 means any free one.
            board: What `/progress` shows.
            gauges: What `/metrics` shows, besides the board.

        Raises:
            RunError: The port cannot be opened.
        """
        gauges.follow(board)
        routes: dict[str, Callable[[], tuple[str, bytes]]] = {
            "/progress": lambda: ("application/json", board.snapshot().model_dump_json(by_alias=True).encode()),
            "/metrics": lambda: (CONTENT_TYPE_LATEST, generate_latest(gauges.registry)),
            "/healthz": lambda: ("text/plain", b"ok\n"),
        }

        class Handler(BaseHTTPRequestHandler):
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
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise RunError(f"rank 0 cannot listen on {host or '*'}:{port}: {error}; free the port or choose another") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress-server", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_address[1]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
