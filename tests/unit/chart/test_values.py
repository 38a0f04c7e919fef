"""Values that reach the operator as its settings, and values that are refused."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from spinrun_operator.settings import PREFIX, Settings
from unit.chart.helm import HANDED_DOWN, HelmError, Json, documents, environment, one, template

pytestmark = pytest.mark.cluster

CASES = Path(__file__).parent / "cases"

# Another value for every setting, and how the chart is given it.
OTHER = {
    "watchNamespaces": ["team-a", "team-b"],
    "workerImage": {"repository": "team/worker"},
    "vllmImage": {"tag": "v0.33.0"},
    "settings": {
        "accelerator": "cpu",
        "imagePullPolicy": "Always",
        # As OpenShift gives them: Go writes such a number as 1.00068e+09 unless it is told otherwise.
        "runAsUser": 1000680000,
        "trainerGraceSeconds": 60,
        "podMonitor": False,
        "monitoringNamespaces": ["monitoring", "grafana"],
        "inheritedPrefixes": ["kueue.x-k8s.io", "team.example.com/"],
        "workers": 8,
        "coalesceSeconds": 0,
        "startingSeconds": 0,
        "resyncSeconds": 60,
        "troubleSeconds": 5,
        "unscheduledSeconds": 600,
        "restartDelaySeconds": 0.5,
        "maxRestartDelaySeconds": 3000000,
        "progressSeconds": 5,
        "progressWriteSeconds": 5,
        "requestTimeoutSeconds": 30,
        "watchSilenceSeconds": 120,
        "stuckSeconds": 600,
        "httpPort": 9090,
        "logLevel": "DEBUG",
        "logFormat": "text",
    },
}


def settings_of(*arguments: str | Path) -> Settings:
    """The settings as the operator of the rendered chart reads them."""
    deployment = one(documents(template(*arguments)), "Deployment")
    variables = environment(deployment)
    unknown = set(variables) - {PREFIX + field.name.upper() for field in fields(Settings)}
    assert unknown == set()
    return Settings.from_environment(variables)


def test_default_values_are_the_operators_defaults() -> None:
    # Some container runtimes take no image without a registry.
    want = replace(Settings(), vllm_image=f"docker.io/{Settings().vllm_image}")
    assert settings_of() == want


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(OTHER))
    found, default = settings_of("--values", file, "--namespace", "elsewhere"), Settings()
    assert [field.name for field in fields(Settings) if getattr(found, field.name) == getattr(default, field.name)] == []
    assert found.run_as_user == 1000680000
    assert found.max_restart_delay_seconds == 3000000
    assert (found.namespace, found.watch_namespaces) == ("elsewhere", ("team-a", "team-b"))
    assert (found.worker_image, found.vllm_image) == ("ghcr.io/team/worker:0.1.0", "docker.io/vllm/vllm-openai:v0.33.0")


def test_port_is_the_same_for_operator_probes_service_and_policy() -> None:
    found = documents(template("--set", "settings.httpPort=9090,networkPolicy.enabled=true"))
    (container,) = one(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 9090}]
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {"http"}
    assert one(found, "Service")["spec"]["ports"] == [{"name": "http", "port": 9090, "targetPort": "http"}]


def leaves(schema: Json, path: str = "") -> set[str]:
    """Paths of the values that have no further ones."""
    found: set[str] = set()
    for name, entry in schema["properties"].items():
        found |= leaves(entry, f"{path}{name}.") if "properties" in entry else {path + name}
    return found


def given(values: Json, known: set[str], path: str = "") -> set[str]:
    """Those of the known paths that the values give."""
    found: set[str] = set()
    for name, value in values.items():
        found |= {path + name} if path + name in known else given(value, known, f"{path}{name}.")
    return found


def test_no_value_is_without_a_test() -> None:
    known = leaves(json.loads((Path(__file__).parents[3] / "charts/spinrun/values.schema.json").read_text())) - {*HANDED_DOWN}
    tested = given(OTHER, known)
    for case in CASES.glob("*.yaml"):
        tested |= given(yaml.safe_load(case.read_text()), known)
    assert known - tested == set()


@pytest.mark.parametrize(
    ("assignment", "place"),
    [
        ("replicas=2", "'replicas'"),
        ("crds.kept=true", "'kept'"),
        ("settings.worker=3", "'worker'"),
        ("image.tga=1", "'tga'"),
        ("watchNamespaces={Team_A}", "/watchNamespaces/0"),
        ("watchNamespaces=team-a", "/watchNamespaces"),
        ("crds.enabled=maybe", "/crds/enabled"),
        ("image.digest=sha256:12", "/image/digest"),
        ("image.repository=Team/Operator", "/image/repository"),
        ("workerImage.tag=a b", "/workerImage/tag"),
        ("imageRegistry=https://registry.example.com", "/imageRegistry"),
        ("imagePullSecrets={mirror}", "/imagePullSecrets/0"),
        ("settings.accelerator=tpu", "/settings/accelerator"),
        ("settings.inheritedPrefixes={Team}", "/settings/inheritedPrefixes/0"),
        ("settings.workers=0", "/settings/workers"),
        ("settings.workers=1.5", "/settings/workers"),
        ("settings.troubleSeconds=0", "/settings/troubleSeconds"),
        ("settings.troubleSeconds=15s", "/settings/troubleSeconds"),
        ("settings.httpPort=80", "/settings/httpPort"),
        ("settings.logLevel=debug", "/settings/logLevel"),
        ("settings.logFormat=yaml", "/settings/logFormat"),
        ("serviceMonitor.interval=soon", "/serviceMonitor/interval"),
        ("networkPolicy.apiServerPorts={https}", "/networkPolicy/apiServerPorts/0"),
        ("dashboards.labels.grafana_dashboard=1", "/dashboards/labels/grafana_dashboard"),
        ("dashboards.namespace=Grafana", "/dashboards/namespace"),
        ("alerts.namespaces=monitoring", "'namespaces'"),
        ("podAnnotations.a=1", "/podAnnotations/a"),
    ],
)
def test_wrong_value_is_refused_by_name(assignment: str, place: str) -> None:
    with pytest.raises(HelmError) as raised:
        template("--set", assignment)
    assert place in str(raised.value)
