"""The Grafana dashboards: what they ask exists, what they show says what it is, and the chart ships them."""

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from unit.chart.helm import CHART, ROOT, Json, documents, template
from unit.chart.promql import known_labels, known_metrics, labels_of, promtool, queries_of

FILES = sorted((CHART / "files" / "dashboards").glob("*.json"))
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in FILES}
VARIABLES = {"$__rate_interval": "5m", "$__range": "6h", "$namespace": "team", "$run": "demo"}
MAX_CONFIG_MAP_BYTES = 1 << 20

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=list(DASHBOARDS))


def panels(dashboard: Json) -> list[Json]:
    """The panels of a dashboard without its headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(expr: str) -> str:
    """A query as Grafana sends it."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


def queries(dashboard: Json) -> list[str]:
    """Every query of a dashboard: of panels, of its vertical lines and of its variables."""
    exprs = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    exprs += [mark["expr"] for mark in dashboard["annotations"].get("list", [])]
    choices = [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    for choice in choices:
        found = re.fullmatch(r"label_values\((.+), \w+\)", choice)
        assert found is not None, choice
        exprs.append(found[1])
    return [filled(expr) for expr in exprs]


def test_there_are_the_four() -> None:
    assert list(DASHBOARDS) == ["fleet", "operator", "rollout", "run"]
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 4


@every_dashboard
def test_every_query_names_metrics_and_labels_that_exist(dashboard: Json) -> None:
    for expr in queries(dashboard):
        selected = {query.name for query in queries_of(expr)}
        assert selected, expr
        assert selected <= known_metrics(), expr
        assert labels_of(expr) <= known_labels(), expr


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    exprs = sorted({expr for dashboard in DASHBOARDS.values() for expr in queries(dashboard)})
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    check = subprocess.run([promtool(), "check", "rules", file], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    assert f"{len(exprs)} rules found" in check.stdout


@every_dashboard
def test_every_panel_has_a_unit_a_description_and_words_for_no_data(dashboard: Json) -> None:
    for panel in panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"], panel["title"]
    titles = [panel["title"] for panel in panels(dashboard) if panel["type"] == "timeseries"]
    assert len(titles) == len(set(titles))


@every_dashboard
def test_every_panel_asks_the_chosen_data_source(dashboard: Json) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert dashboard["templating"]["list"][0] | {"name": "datasource", "type": "datasource"} == dashboard["templating"]["list"][0]
    for panel in panels(dashboard):
        assert panel["datasource"] == chosen
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
        assert all(target["datasource"] == chosen for target in panel["targets"])


@every_dashboard
def test_every_variable_of_a_query_can_be_chosen(dashboard: Json) -> None:
    chosen = {each["name"] for each in dashboard["templating"]["list"]}
    named = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for panel in panels(dashboard) for target in panel["targets"])))
    assert {name for name in named if not name.startswith("__")} <= chosen


@every_dashboard
def test_panels_lie_on_the_grid_without_overlap(dashboard: Json) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_links_between_dashboards_lead_to_one() -> None:
    uids = {dashboard["uid"] for dashboard in DASHBOARDS.values()}
    linked = {uid for file in FILES for uid in re.findall(r"/d/([\w-]+)", file.read_text())}
    assert linked
    assert linked <= uids


def test_docs_list_every_row_and_no_other() -> None:
    page = (ROOT / "docs" / "dashboards.md").read_text()
    for name, dashboard in DASHBOARDS.items():
        section = page.partition(f"\n## {name.capitalize()}\n")[2].partition("\n## ")[0]
        rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
        assert re.findall(r"^- \*\*(.+?)\*\*", section, re.MULTILINE) == rows


def test_docs_count_the_series_of_rows_and_panels_that_exist() -> None:
    tables = re.findall(
        r"<!-- series of (\w+)[^\n]* -->\n(.*?)<!-- /series -->", (ROOT / "docs" / "dashboards.md").read_text(), re.DOTALL
    )
    assert {name for name, _ in tables} == set(DASHBOARDS)
    for name, table in tables:
        rows: dict[str, set[str]] = {"Vertical lines": {"New window"}}
        titles: set[str] = set()
        for panel in DASHBOARDS[name]["panels"]:
            if panel["type"] == "row":
                titles = rows[panel["title"]] = set()
            else:
                titles.add(panel["title"])
        counted = re.findall(r"^\| (.+) \| (.+ \d+) \|$", table, re.MULTILINE)
        assert counted, f"{name}: run tests/integration/monitoring and tests/engine/test_local_run.py with UPDATE_DOCS=1"
        for row, panels_of_row in counted:
            assert set(re.findall(r"(?:^|, )(.+?) \d+(?=,|$)", panels_of_row)) <= rows[row]


@pytest.mark.cluster
def test_chart_ships_them_unchanged_when_asked_to() -> None:
    found = documents(template("--set", "dashboards.enabled=true"))
    maps = [each for each in found if each["kind"] == "ConfigMap"]
    shipped = {name: json.loads(text) for each in maps for name, text in each["data"].items()}
    assert shipped == {f"spinrun-{name}.json": dashboard for name, dashboard in DASHBOARDS.items()}
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in maps} == {"1"}
    assert all(len(text) < MAX_CONFIG_MAP_BYTES for each in maps for text in each["data"].values())


@pytest.mark.cluster
def test_chart_ships_none_unless_asked_to() -> None:
    assert "grafana_dashboard" not in template()
