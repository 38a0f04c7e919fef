"""The operator's own metrics."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spinrun_operator import reasons

RunPhase = tuple[str, str, str]
"""Namespace, name and phase of a run."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WRITES = ("POST", "PUT", "PATCH", "DELETE")


class Metrics:
    """Counters of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "spinrun_operator_reconcile_seconds",
            "Duration of a reconcile, seconds, by result: ok, conflict or error.",
            ["result"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self._requests = Histogram(
            "spinrun_operator_api_request_seconds",
            "Duration of requests to the API server, seconds, by verb and result; without watches.",
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
            "spinrun_operator_queue_oldest_seconds", "Age of the oldest run in the queue, seconds.", registry=self.registry
        )
        self._attempts = Counter(
            "spinrun_operator_attempts_ended",
            "Ended attempts of trainers by reason.",
            ["reason"],
            registry=self.registry,
        )
        for reason in reasons.ATTEMPT_ENDS:
            # Prometheus sees the first increase of a counter only when it has seen the counter before.
            self._attempts.labels(reason)
        self._watch_failures = Counter(
            "spinrun_operator_watch_failures",
            "Lists and watches that failed, by resource and reason.",
            ["resource", "reason"],
            registry=self.registry,
        )
        self._ignored = Counter(
            "spinrun_operator_ignored_objects",
            "Objects and events that were left out, by resource and reason.",
            ["resource", "reason"],
            registry=self.registry,
        )
        self._runs = _Runs()
        self.registry.register(self._runs)

    def api_request(self, verb: str, path: str, result: str, seconds: float) -> None:
        """Counts a request; see `RequestObserver`."""
        self._requests.labels(verb, result).observe(seconds)
        if verb in _WRITES:
            self._writes.labels(verb, _resource(path)).inc()

    def follow_queue(self, depth: Callable[[], float], oldest: Callable[[], float]) -> None:
        """Reads the queue whenever the metrics are read."""
        self._queue_depth.set_function(depth)
        self._queue_age.set_function(oldest)

    def follow_runs(self, runs: Callable[[], Iterable[RunPhase]]) -> None:
        """Asks for the runs whenever the metrics are read."""
        self._runs.list_runs = runs

    def count_attempt_end(self, reason: str) -> None:
        """Counts the end of an attempt if the reason is that of an Event that tells of one."""
        if reason in reasons.ATTEMPT_ENDS:
            self._attempts.labels(reason).inc()

    def count_watch_failure(self, resource: str, reason: str) -> None:
        """Counts a list or watch that failed."""
        self._watch_failures.labels(resource, reason).inc()

    def count_ignored(self, resource: str, reason: str) -> None:
        """Counts an object or event that is left out."""
        self._ignored.labels(resource, reason).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Runs(Collector):
    """Phases of runs: how many there are of each, and that of each run."""

    list_runs: Callable[[], Iterable[RunPhase]] = staticmethod(lambda: ())

    def collect(self) -> Iterator[Metric]:
        """The phases of this moment."""
        runs = list(self.list_runs())
        counts = GaugeMetricFamily("spinrun_operator_runs", "SpinRuns by phase.", labels=["phase"])
        for phase, count in Tally(phase for _, _, phase in runs).items():
            counts.add_metric([phase], count)
        yield counts
        # Not `namespace`: that is the label of the operator's own, which Prometheus gives to all that it collects from it.
        names = ["run_namespace", "run", "phase"]
        phases = GaugeMetricFamily("spinrun_operator_run_phase", "1 for the current phase of a SpinRun.", labels=names)
        for run in runs:
            phases.add_metric(run, 1)
        yield phases


def _resource(path: str) -> str:
    """The plural of what a path is about, with its subresource."""
    parts = path.strip("/").split("/")
    after = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts else parts[-1:]
    return "/".join([after[0], *after[2:]])
