"""The operator's own metrics."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WRITES = ("POST", "PUT", "PATCH", "DELETE")


class Metrics:
    """Counters of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "spinrun_operator_reconcile_seconds",
            "Duration of a reconcile by its result: ok, conflict or error.",
            ["result"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self._requests = Histogram(
            "spinrun_operator_api_request_seconds",
            "Duration of requests to the API server by verb and result; watches are not in it.",
            ["verb", "result"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self._writes = Counter(
            "spinrun_operator_api_writes",
            "Writes to the API server by verb and resource.",
            ["verb", "resource"],
            registry=self.registry,
        )
        self._queue_depth = Gauge(
            "spinrun_operator_queue_depth", "Runs that are due or being reconciled.", registry=self.registry
        )
        self._queue_age = Gauge(
            "spinrun_operator_queue_oldest_seconds", "Time that the run waits which waits longest.", registry=self.registry
        )
        self._runs = Gauge("spinrun_operator_runs", "SpinRuns by phase.", ["phase"], registry=self.registry)

    def api_request(self, verb: str, path: str, result: str, seconds: float) -> None:
        """Counts a request that has been answered or not."""
        self._requests.labels(verb, result).observe(seconds)
        if verb in _WRITES:
            self._writes.labels(verb, _resource(path)).inc()

    def follow_queue(self, depth: Callable[[], float], oldest: Callable[[], float]) -> None:
        """Reads the queue whenever the metrics are read."""
        self._queue_depth.set_function(depth)
        self._queue_age.set_function(oldest)

    def count_runs(self, phases: Iterable[str]) -> None:
        """Sets the number of runs of each phase."""
        self._runs.clear()
        for phase in phases:
            self._runs.labels(phase).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _resource(path: str) -> str:
    """The plural of what a path is about, with its subresource."""
    parts = path.strip("/").split("/")
    after = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts else parts[-1:]
    return "/".join([after[0], *after[2:]])
