"""The agent's Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

NO_VERSION = -1

# Staging reads gigabytes over a network; a switch reads them from local space.
_STAGING_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)
_SWITCH_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RolloutMetrics:
    """All metrics of one agent in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.staging_seconds = Histogram(
            "spinrun_rollout_staging_seconds",
            "Time to take a version to scratch space and check it.",
            registry=registry,
            buckets=_STAGING_BUCKETS,
        )
        self.switch_seconds = Histogram(
            "spinrun_rollout_switch_seconds",
            "Time in which no sample could be asked for because the version changed; samples under way finish within it.",
            registry=registry,
            buckets=_SWITCH_BUCKETS,
        )
        self.pause_seconds = Histogram(
            "spinrun_rollout_pause_seconds",
            "Time for which vLLM was paused to load weights.",
            registry=registry,
            buckets=_SWITCH_BUCKETS,
        )
        self.staged_bytes = Counter("spinrun_rollout_staged_bytes", "Bytes of versions read to be served.", registry=registry)
        self.staging_failures = Counter(
            "spinrun_rollout_staging_failures", "Versions whose files could not be staged; tried again.", registry=registry
        )
        self.switch_failures = Counter("spinrun_rollout_switch_failures", "Switches that failed; tried again.", registry=registry)
        self.samples = Counter("spinrun_rollout_samples", "Samples made.", ["finish_reason"], registry=registry)
        self.tokens = Counter("spinrun_rollout_tokens", "Tokens sampled.", registry=registry)
        self.prompt_failures = Counter(
            "spinrun_rollout_prompt_failures", "Prompts that got no samples.", ["reason"], registry=registry
        )
        self.requests_in_flight = Gauge(
            "spinrun_rollout_requests_in_flight", "Prompts that vLLM is answering now.", registry=registry
        )
        self.refused = Counter("spinrun_rollout_refused", "Calls refused.", ["reason"], registry=registry)
        self.version = Gauge("spinrun_rollout_version", f"Version that is served; {NO_VERSION} while none is.", registry=registry)
        self.version_info = Gauge(
            "spinrun_rollout_version_info", "1 for the version that is served.", ["version", "digest"], registry=registry
        )
        self.version.set(NO_VERSION)

    def serving(self, version: int, digest: str) -> None:
        """Say which version is served."""
        self.version.set(version)
        self.version_info.clear()
        self.version_info.labels(str(version), digest).set(1)

    def serving_none(self) -> None:
        """Say that no version is served."""
        self.version.set(NO_VERSION)
        self.version_info.clear()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
