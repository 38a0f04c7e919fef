"""The PodMonitor that makes Prometheus collect the metrics of agents and trainer."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names

Json = dict[str, Any]


def pod_monitor(run: SpinRun) -> Json:
    """For clusters that know the kind PodMonitor."""
    spec = {
        "selector": {"matchLabels": {names.RUN_LABEL: run.metadata.name, names.UID_LABEL: run.metadata.uid}},
        "podTargetLabels": [names.RUN_LABEL, names.COMPONENT_LABEL, names.ATTEMPT_LABEL],
        "podMetricsEndpoints": [{"port": "agent", "path": "/metrics"}, {"port": "trainer", "path": "/metrics"}],
    }
    return names.child(run, "monitoring.coreos.com/v1", "PodMonitor", names.run_name(run), "monitor", spec=spec)
