"""Two of what a pod template may have one of."""

from typing import Any

import pytest

from spinrun_api.documents import InvalidDocumentError, parse_run, parse_stored_run
from unit.api.invalid_runs import MINIMAL

Json = dict[str, Any]

TIME = {"periodSeconds": 9}
HTTP, TCP, EXEC = {"httpGet": {"path": "/", "port": 1}}, {"tcpSocket": {"port": 1}}, {"exec": {"command": ["true"]}}
FIELD, SECRET = {"fieldRef": {"fieldPath": "spec.nodeName"}}, {"secretKeyRef": {"name": "s", "key": "k"}}


def volumes(*entries: Json) -> Json:
    return {"spec": {"volumes": list(entries)}}


def container(kind: str = "containers", **fields: Any) -> Json:
    return {"spec": {kind: [{"name": "first"}, {"name": "vllm", **fields}]}}


def with_probe(name: str, probe: Json) -> Json:
    return {"spec": {"containers": [{"name": "first"}, {"name": "vllm", name: probe}]}}


def run_with(block: str, template: Any) -> Json:
    return MINIMAL | {"spec": MINIMAL["spec"] | {block: {"template": template}}}


@pytest.mark.parametrize(
    ("template", "path", "fields"),
    [
        pytest.param(
            volumes({"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}, "hostPath": {"path": "/x"}}),
            "spec.volumes.1", "emptyDir and hostPath", id="two sources of a volume",
        ),
        pytest.param(
            volumes({"name": "a", "csi": {}, "nfs": {}, "image": {}}), "spec.volumes.0", "csi, image and nfs", id="three sources"
        ),
        pytest.param(
            volumes({"name": "a", "somethingNew": {}, "emptyDir": {}}), "spec.volumes.0", "emptyDir and somethingNew",
            id="a source that is not known here",
        ),
        pytest.param(
            volumes({"name": "a", "projected": {"sources": [{"secret": {}}, {"secret": {}, "configMap": {}}]}}),
            "spec.volumes.0.projected.sources.1", "configMap and secret", id="two sources of a projected volume",
        ),
        *(
            pytest.param(with_probe(probe, HTTP | TCP | TIME), f"spec.containers.1.{probe}", "httpGet and tcpSocket", id=probe)
            for probe in ("livenessProbe", "readinessProbe", "startupProbe")
        ),
        pytest.param(
            container(lifecycle={"preStop": EXEC | {"sleep": {"seconds": 1}}}), "spec.containers.1.lifecycle.preStop",
            "exec and sleep", id="two handlers of a hook",
        ),
        pytest.param(
            container(env=[{"name": "A", "value": "x"}, {"name": "B", "value": "x", "valueFrom": FIELD}]),
            "spec.containers.1.env.1", "value and valueFrom", id="value and valueFrom",
        ),
        pytest.param(
            container(env=[{"name": "A", "valueFrom": FIELD | SECRET}]), "spec.containers.1.env.0.valueFrom",
            "fieldRef and secretKeyRef", id="two sources of a value",
        ),
        pytest.param(
            container("initContainers", env=[{"name": "B", "value": "x", "valueFrom": FIELD}]), "spec.initContainers.1.env.0",
            "value and valueFrom", id="of an init container",
        ),
        pytest.param(
            container(envFrom=[{"configMapRef": {"name": "a"}, "secretRef": {"name": "b"}}]), "spec.containers.1.envFrom.0",
            "configMapRef and secretRef", id="two sources of variables",
        ),
        pytest.param(
            container(volumeMounts=[{"name": "a", "mountPath": "/a", "subPath": "b", "subPathExpr": "c"}]),
            "spec.containers.1.volumeMounts.0", "subPath and subPathExpr", id="two paths in a volume",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", ["trainer", "rollout"])
def test_fields_that_exclude_each_other_are_a_problem_with_its_path(block: str, template: Json, path: str, fields: str) -> None:
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(run_with(block, template))
    (problem,) = raised.value.problems
    assert (problem.path, problem.message) == (f"spec.{block}.template.{path}", f"{fields} exclude each other: keep one of them")


@pytest.mark.parametrize(
    "template",
    [
        volumes({"name": "home", "persistentVolumeClaim": {"claimName": "hub-cache"}}),
        volumes({"name": "home", "emptyDir": None, "hostPath": {"path": "/x"}}),
        volumes({"name": "home"}),
        container(livenessProbe=TCP | {"periodSeconds": 3, "terminationGracePeriodSeconds": 9}),
        container(lifecycle={"preStop": EXEC, "postStart": HTTP}),
        container(env=[{"name": "A", "value": "", "valueFrom": FIELD}, {"name": "B", "value": "x"}, {"name": "C"}]),
        {"metadata": {"annotations": {"value": "x", "valueFrom": "y"}}},
        {"spec": {"volumes": "none", "containers": {"livenessProbe": 7}}},
        {"spec": {"volumes": [7, None, ["x"]]}},
    ],
)
def test_what_may_stand_together_is_no_problem(template: Json) -> None:
    assert parse_run(run_with("rollout", template)).spec.rollout.template == template


def test_clashes_are_told_beside_all_other_problems() -> None:
    document = run_with("trainer", volumes({"name": "a", "csi": {}, "nfs": {}}))
    document["spec"]["trainer"]["nodes"] = 0
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(document)
    assert {problem.path for problem in raised.value.problems} == {"spec.trainer.nodes", "spec.trainer.template.spec.volumes.0"}


@pytest.mark.parametrize("template", [7, "text", [], None, {7: 8}])
def test_what_is_not_a_template_is_left_to_others(template: Any) -> None:
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(run_with("trainer", template))
    assert {problem.path.split(".")[:3] == ["spec", "trainer", "template"] for problem in raised.value.problems} == {True}


def test_a_stored_run_is_read_as_it_is() -> None:
    template = volumes({"name": "a", "csi": {}, "nfs": {}})
    assert parse_stored_run(run_with("trainer", template)).spec.trainer.template == template
