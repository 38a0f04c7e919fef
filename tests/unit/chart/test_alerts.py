"""The alerts: Prometheus reads them, each fires when it should and not else, and each has its page."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from spinrun_api.documents import parse_run
from spinrun_kube import names
from unit.api.invalid_runs import MINIMAL
from unit.chart.helm import CHART, ROOT, Json, documents, one, template
from unit.chart.promql import KUBELET, KUBELET_LABELS, known_labels, known_metrics, labels_of, promtool, queries_of

FILE = CHART / "files" / "alerts.yaml"
CASES = Path(__file__).parent / "alert_cases.yaml"
RULES: list[Json] = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RUNBOOKS = ROOT / "docs" / "runbooks"


def test_prometheus_reads_the_rules() -> None:
    check = subprocess.run([promtool(), "check", "rules", FILE], capture_output=True, text=True)
    assert (check.returncode, check.stderr) == (0, "")
    assert f"{len(RULES)} rules found" in check.stdout


def test_every_alert_fires_and_is_silent_as_its_cases_say() -> None:
    check = subprocess.run([promtool(), "test", "rules", CASES], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    tests = [test for case in yaml.safe_load(CASES.read_text())["tests"] for test in case["alert_rule_test"]]
    fired = [bool(test.get("exp_alerts")) for test in tests if test["alertname"] == name]
    assert set(fired) == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert", "record"))
def test_every_rule_names_metrics_and_labels_that_exist(rule: Json) -> None:
    recorded = {each["record"] for each in RULES if "record" in each}
    assert {query.name for query in queries_of(rule["expr"])} <= known_metrics() | recorded | KUBELET
    assert labels_of(rule["expr"]) <= known_labels() | KUBELET_LABELS


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert alert["annotations"]["summary"].endswith(".")
    assert alert["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md")
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Meaning", "Likely causes", "What to look at", "What to do"]


def test_no_page_is_of_an_alert_that_is_gone() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == set(ALERTS)


def test_docs_list_every_alert_and_no_other() -> None:
    page = (ROOT / "docs" / "dashboards.md").read_text()
    assert re.findall(r"^\| \[(\w+)\]\(runbooks/\1\.md\) \|", page, re.MULTILINE) == list(ALERTS)


def test_alert_about_the_ledger_finds_the_claims_that_the_operator_makes() -> None:
    (pattern,) = set(re.findall(r'persistentvolumeclaim=~"([^"]+)"', ALERTS["SpinRunLedgerAlmostFull"]["expr"]))
    assert re.fullmatch(pattern, names.claim_name(parse_run(MINIMAL)))


@pytest.mark.cluster
def test_chart_ships_the_rules_unchanged_when_asked_to() -> None:
    rule = one(documents(template("--set", "alerts.enabled=true")), "PrometheusRule", "spinrun")
    assert rule["spec"] == yaml.safe_load(FILE.read_text())


@pytest.mark.cluster
def test_chart_ships_none_unless_asked_to() -> None:
    assert "PrometheusRule" not in template()
