"""The chart as a dependency of another one, which hands values down to it."""

from pathlib import Path

import pytest
import yaml

from unit.chart.helm import CHART, HelmError, Json, documents, environment, helm, one

pytestmark = pytest.mark.cluster

CONDITION = {"condition": "spinrun.enabled"}


def umbrella(folder: Path, values: Json, **dependency: object) -> Path:
    """A chart with ours as its dependency, by the condition `spinrun.enabled` unless the dependency says otherwise."""
    entry = {"name": "spinrun", "version": "*", "repository": f"file://{CHART}", **(dependency or CONDITION)}
    chart = {"apiVersion": "v2", "name": "platform", "version": "0.1.0", "dependencies": [entry]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    (folder / "templates").mkdir()
    helm("dependency", "update", folder)
    return folder


def rendered(chart: Path, *arguments: str) -> list[Json]:
    """The objects of a release `site`."""
    return documents(helm("template", "site", chart, "--namespace", "platform", *arguments))


def test_chart_is_installed_by_a_condition(tmp_path: Path) -> None:
    chart = umbrella(tmp_path, {"spinrun": {"enabled": True, "settings": {"workers": 8}}})
    found = rendered(chart)
    assert environment(one(found, "Deployment", "site-spinrun-operator"))["SPINRUN_WORKERS"] == "8"
    assert one(found, "CustomResourceDefinition", "spinruns.spinrun.dev")
    helm("lint", "--strict", chart)


def test_chart_is_left_out_by_the_same_condition(tmp_path: Path) -> None:
    chart = umbrella(tmp_path, {"spinrun": {"enabled": True}})
    assert rendered(chart, "--set", "spinrun.enabled=false") == []


def test_global_values_of_the_parent_do_not_harm(tmp_path: Path) -> None:
    values = {"global": {"imageRegistry": "registry.example.com", "storageClass": "fast", "cattle": {"systemProjectId": "p-1"}}}
    assert one(rendered(umbrella(tmp_path, values)), "Deployment", "site-spinrun-operator")


@pytest.mark.parametrize("tagged", [True, False])
def test_chart_is_installed_by_a_tag(tmp_path: Path, tagged: bool) -> None:
    chart = umbrella(tmp_path, {"tags": {"training": tagged}}, tags=["training"])
    assert bool(rendered(chart)) == tagged


def test_names_under_an_alias_are_names_for_kubernetes(tmp_path: Path) -> None:
    alias = {"alias": "trainingOperator", "condition": "trainingOperator.enabled"}
    chart = umbrella(tmp_path, {"trainingOperator": {"enabled": True}}, **alias)
    deployment = one(rendered(chart), "Deployment", "site-training-operator-operator")
    assert deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "training-operator"


def test_value_that_the_chart_does_not_know_is_still_refused(tmp_path: Path) -> None:
    chart = umbrella(tmp_path, {"spinrun": {"enabled": True, "replicas": 2}})
    with pytest.raises(HelmError, match="'replicas'"):
        rendered(chart)
