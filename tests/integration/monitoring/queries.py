"""The queries of dashboards and alerts as Prometheus gets them, and how many series each panel has."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from integration.monitoring.prometheus import Prometheus

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[3]
FILES = ROOT / "charts" / "spinrun" / "files"
ALERTS = FILES / "alerts.yaml"
PAGE = ROOT / "docs" / "dashboards.md"
RANGE_SECONDS = 120.0
RATE_SECONDS = 20

# Metrics, by how their names begin, that a run may have no data of, and why.
NO_GPU = {"spinrun_trainer_cuda_memory_peak_bytes": "there is no GPU"}
NO_TROUBLE = {"spinrun_trainer_window_rollouts_": "nothing went wrong between trainer and rollouts"}
NO_LOGPROBS = {
    "spinrun_trainer_clip_ratio_": "only grpo clips",
    "spinrun_trainer_window_entropy": "the rollouts do not say log-probs by token",
    "spinrun_trainer_logps_mismatch": "likewise",
}
NO_MODEL = {"spinrun_trainer_window_preference_": "a rule gives the rewards"}
NO_SCORER = {"spinrun_scorer_": "a rule gives the rewards"}
NO_FAILURE = {
    "spinrun_rollout_prompt_failures_total": "no prompt failed",
    "spinrun_rollout_refused_total": "no call was refused, or one for a moment",
}
NO_KUBELET = {"kubelet_volume_stats_": "of the kubelet, and there is none"}


@dataclass(frozen=True)
class Question:
    """One query of a panel."""

    row: str
    panel: str
    expr: str
    is_instant: bool
    """Asked for this moment, not over time."""

    def num_series(self, prometheus: Prometheus) -> int:
        """How many series the answer has in which there is a number."""
        if self.is_instant:
            return sum(math.isfinite(float(series["value"][1])) for series in prometheus.now(self.expr))
        answer = prometheus.over_time(self.expr, RANGE_SECONDS, step=1)
        return sum(any(math.isfinite(float(value)) for _, value in series["values"]) for series in answer)


def read_dashboard(name: str) -> Json:
    """A dashboard as the chart ships it."""
    return json.loads((FILES / "dashboards" / f"{name}.json").read_text())


def filled(expr: str, variables: Mapping[str, str]) -> str:
    """A query as Grafana sends it. variables: what is chosen above the dashboard."""
    built_in = {"__rate_interval": f"{RATE_SECONDS}s", "__range": f"{RANGE_SECONDS:.0f}s"}
    for name, value in {**built_in, **variables}.items():
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr, expr
    return expr


def questions(dashboard: Json, variables: Mapping[str, str]) -> Iterator[Question]:
    """Every query of every panel, and that of the vertical lines."""
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        for target in panel["targets"]:
            yield Question(row, panel["title"], filled(target["expr"], variables), bool(target.get("instant")))
    for mark in dashboard["annotations"].get("list", []):
        yield Question("", mark["name"], filled(mark["expr"], variables), False)


def choices(prometheus: Prometheus, dashboard: Json, variables: Mapping[str, str]) -> dict[str, list[str]]:
    """What Grafana offers for each variable."""
    offered: dict[str, list[str]] = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
            offered[variable["name"]] = prometheus.values(label, filled(selector, variables))
    return offered


def alerts(group: str) -> dict[str, str]:
    """Alerts of a group and their expressions."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for each in groups if each["name"] == group for rule in each["rules"]}


def probes(expr: str) -> list[str]:
    """The parts of an alert's expression, so changed that they have a value whether or not it fires."""
    node = promql_parser.parse(expr)
    if isinstance(node, promql_parser.BinaryExpr) and str(node.op) == "unless":
        return probes(str(node.lhs)) + probes(str(node.rhs))
    if isinstance(node, promql_parser.Call) and node.func.name == "absent":
        return [str(argument) for argument in node.args]
    # A comparison with `bool` gives 0 or 1, where else it gives nothing.
    return [re.sub(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", str(node))]


def unanswered(exprs: Mapping[str, int], without: Mapping[str, str]) -> list[str]:
    """The queries without a series, but for those that hold one of the words that say why they have none."""
    return [expr for expr, num_series in exprs.items() if not num_series and not any(word in expr for word in without)]


def check(prometheus: Prometheus, name: str, variables: Mapping[str, str], without: Mapping[str, str], *, part: str = "") -> None:
    """Asks every query of a dashboard, records how many series each panel has, and fails for one that has none.

    without: what a query holds that has no data here, and why. part: what is then left of the dashboard, for the record.
    """
    asked = list(questions(read_dashboard(name), variables))
    counts = {question.expr: question.num_series(prometheus) for question in asked}
    expected = [question for question in asked if not any(word in question.expr for word in without)]
    record(name + part, table(expected, counts))
    assert unanswered(counts, without) == []
    unused = [word for word in without if not any(word in question.expr for question in asked)]
    assert unused == []


def table(asked: Sequence[Question], counts: Mapping[str, int]) -> str:
    """A line for each row of panels: each panel with its number of series."""
    rows: dict[str, dict[str, int]] = {}
    for question in asked:
        panels = rows.setdefault(question.row or "Vertical lines", {})
        panels[question.panel] = panels.get(question.panel, 0) + counts[question.expr]
    lines = [f"| {row} | {', '.join(f'{panel} {count}' for panel, count in panels.items())} |" for row, panels in rows.items()]
    return "\n".join(["| row | panels, and the series of each |", "|---|---|", *lines]) + "\n"


def record(name: str, text: str) -> None:
    """Prints a table and, where UPDATE_DOCS is set, writes it to docs/dashboards.md."""
    print(f"\n{name}\n{text}")
    if os.environ.get("UPDATE_DOCS"):
        before, found, rest = PAGE.read_text().partition(f"<!-- series of {name} -->\n")
        assert found, f"{PAGE} has no place for the series of {name}"
        PAGE.write_text(before + found + text + rest[rest.index("<!-- /series -->") :])
