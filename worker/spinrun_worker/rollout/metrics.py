"""The agent's Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

NO_VERSION = -1

# Staging reads gigabytes over a network; a switch reads them from local space.
_STAGING_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)
_SWITCH_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RolloutMetrics:
    """All metrics of one agent, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.staging_seconds = Histogram(
            "spinrun_rollout_staging_seconds",
            "Time to bring a version to scratch space and verify it, seconds.",
            registry=registry,
            buckets=_STAGING_BUCKETS,
        )
        self.switch_seconds = Histogram(
            "spinrun_rollout_switch_seconds",
            "Time during which no sample could be requested because the version was changing; running samples finish within it.",
            registry=registry,
            buckets=_SWITCH_BUCKETS,
        )
        self.pause_seconds = Histogram(
            "spinrun_rollout_pause_seconds",
            "Time for which vLLM was paused to load weights, seconds.",
            registry=registry,
            buckets=_SWITCH_BUCKETS,
        )
        self.staged_bytes = Counter("spinrun_rollout_staged_bytes", "Bytes read to stage versions.", registry=registry)
        self.staging_failures = Counter(
            "spinrun_rollout_staging_failures", "Failed attempts to stage a version; they are retried.", registry=registry
        )
        self.switch_failures = Counter("spinrun_rollout_switch_failures", "Failed switches; they are retried.", registry=registry)
        self.samples = Counter("spinrun_rollout_samples", "Samples generated.", ["finish_reason"], registry=registry)
        self.tokens = Counter("spinrun_rollout_tokens", "Completion tokens generated.", registry=registry)
        self.prompt_failures = Counter(
            "spinrun_rollout_prompt_failures", "Prompts that got no samples.", ["reason"], registry=registry
        )
        self.requests_in_flight = Gauge(
            "spinrun_rollout_requests_in_flight", "Prompts that vLLM is currently answering.", registry=registry
        )
        self.refused = Counter("spinrun_rollout_refused", "Calls refused.", ["reason"], registry=registry)
        self.version = Gauge("spinrun_rollout_version", f"Version being served; {NO_VERSION} while none is.", registry=registry)
        self.version_info = Gauge(
            "spinrun_rollout_version_info", "1 for the version being served.", ["version", "digest"], registry=registry
        )
        self.version.set(NO_VERSION)

    def serving(self, version: int, digest: str) -> None:
        """Show which version is served."""
        self.version.set(version)
        self.version_info.clear()
        self.version_info.labels(str(version), digest).set(1)

    def serving_none(self) -> None:
        """Show that no version is served."""
        self.version.set(NO_VERSION)
        self.version_info.clear()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
