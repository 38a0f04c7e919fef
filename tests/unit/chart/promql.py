"""What the queries of dashboards and alerts name, and what there is to be named."""

import ast
import importlib.util
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import promql_parser
import pytest
from prometheus_client import CollectorRegistry

from spinrun_kube import names
from spinrun_operator.metrics import Metrics
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.scorer.app import ScorerMetrics
from unit.cli.test_cluster_docs import gauges_of_trainer, trainer_registry

PARTS = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
"""What a metric's name gets when it is exposed."""

LABELS = (names.RUN_LABEL, names.COMPONENT_LABEL, names.ATTEMPT_LABEL)
TARGET_LABELS = {"namespace", "pod", *(re.sub(r"\W", "_", label) for label in LABELS)}
"""Labels that PodMonitor and ServiceMonitor give to all that they collect."""

MADE_LABELS = {"run", "le"}
"""Labels that queries make: a run's name from the target's label, and the bounds of a histogram's buckets."""

KUBELET = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
"""Of the kubelet, and not of ours: a process cannot say how full a volume that it may not read is."""
KUBELET_LABELS = {"persistentvolumeclaim"}


def queries_of(expr: str) -> list[promql_parser.VectorSelector]:
    """The metrics that an expression selects. Raises ValueError when it cannot be read."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def labels_of(expr: str) -> set[str]:
    """The labels that an expression selects or groups by."""
    found: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.update(matcher.name for matcher in node.matchers.matchers)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            found.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def _registries() -> list[CollectorRegistry]:
    operator = Metrics()
    operator.follow_runs(lambda: [("team", "demo", "Running")])
    return [operator.registry, RolloutMetrics().registry, ScorerMetrics().registry, trainer_registry()]


def _vllm_metrics() -> set[str]:
    """Names of vLLM's metrics as its source declares them: to import it takes a minute."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.submodule_search_locations is not None
    tree = ast.parse(Path(package.submodule_search_locations[0], "v1", "metrics", "loggers.py").read_text())
    return {
        keyword.value.value + part
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        for kind in re.findall(r"_(gauge|counter|histogram)_cls", call.func.attr)
        for keyword in call.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str)
        for part in PARTS[kind]
    }


@cache
def known_metrics() -> frozenset[str]:
    """Every name that operator, agents, trainers and vLLM expose."""
    ours = {family.name + part for registry in _registries() for family in registry.collect() for part in PARTS[family.type]}
    return frozenset(ours | gauges_of_trainer() | _vllm_metrics())


@cache
def known_labels() -> frozenset[str]:
    """Every label of our metrics, and those that their collection adds."""
    registries = _registries()
    collectors = [collector for registry in registries for collector in registry._collector_to_names]
    ours = {label for collector in collectors for label in getattr(collector, "_labelnames", ())}
    families = [family for registry in registries for family in registry.collect()]
    ours |= {label for family in families for sample in family.samples for label in sample.labels}
    return frozenset(ours | TARGET_LABELS | MADE_LABELS)


def promtool() -> str:
    """Prometheus' own tool; where it is not installed the test is skipped, or fails on CI, which has to have it."""
    # `make prometheus` puts it beside the interpreter.
    found = shutil.which("promtool") or shutil.which("promtool", path=Path(sys.executable).parent)
    if found:
        return found
    reason = "promtool is not installed (on Debian: make prometheus)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
