"""Merging pod templates."""

from typing import Any

import pytest

from spinrun_operator.merge import merge

BASE: dict[str, Any] = {
    "replicas": 1,
    "labels": {"a": "1"},
    "containers": [{"name": "main", "image": "x:1", "env": [{"name": "A", "value": "1"}], "args": ["p", "q"]}],
}


@pytest.mark.parametrize(
    ("over", "want"),
    [
        pytest.param({}, BASE, id="nothing"),
        pytest.param({"labels": {"b": "2"}}, BASE | {"labels": {"a": "1", "b": "2"}}, id="objects-are-merged"),
        pytest.param({"labels": {"a": None}}, BASE | {"labels": {}}, id="null-removes"),
        pytest.param({"new": [1]}, BASE | {"new": [1]}, id="new-field"),
        pytest.param(
            {"containers": [{"name": "main", "image": "y:2"}]},
            BASE | {"containers": [BASE["containers"][0] | {"image": "y:2"}]},
            id="entry-of-the-same-name",
        ),
        pytest.param(
            {"containers": [{"name": "side", "image": "z"}]},
            BASE | {"containers": [*BASE["containers"], {"name": "side", "image": "z"}]},
            id="entry-of-another-name",
        ),
        pytest.param(
            {"containers": [{"name": "main", "args": ["r"]}]},
            BASE | {"containers": [BASE["containers"][0] | {"args": ["r"]}]},
            id="list-without-names-is-replaced",
        ),
        pytest.param(
            {"containers": [{"name": "main", "env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}]},
            BASE | {"containers": [BASE["containers"][0] | {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}]},
            id="value-from-replaces-value",
        ),
        pytest.param({"containers": "none"}, BASE | {"containers": "none"}, id="wrong-type-is-left-to-the-api-server"),
        pytest.param(
            {"containers": [{"name": ["odd"]}, 7]},
            BASE | {"containers": [*BASE["containers"], {"name": ["odd"]}, 7]},
            id="odd-entries",
        ),
    ],
)
def test_merge(over: Any, want: Any) -> None:
    assert merge(BASE, over) == want


def test_arguments_stay_as_they_were() -> None:
    over = {"containers": [{"name": "main", "env": [{"name": "B", "value": "2"}]}]}
    before = repr((BASE, over))
    merge(BASE, over)["containers"][0]["env"].append("changed")
    assert repr((BASE, over)) == before


def volume(**source: Any) -> dict[str, Any]:
    """A volume of the operator's, or the user's in its place."""
    return {"name": "scratch", **source}


TIMES = {"periodSeconds": 10, "failureThreshold": 6}
EXEC, HTTP = {"exec": {"command": ["true"]}}, {"httpGet": {"path": "/healthz", "port": "agent"}}


@pytest.mark.parametrize(
    ("field", "base", "over", "want"),
    [
        pytest.param(
            "volumes",
            [volume(emptyDir={})],
            [volume(hostPath={"path": "/mnt/nvme"})],
            [volume(hostPath={"path": "/mnt/nvme"})],
            id="volume-of-another-kind",
        ),
        pytest.param(
            "volumes",
            [volume(secret={"secretName": "ours", "defaultMode": 288})],
            [volume(csi={"driver": "secrets"})],
            [volume(csi={"driver": "secrets"})],
            id="volume-of-a-kind-that-is-not-listed-anywhere",
        ),
        pytest.param(
            "volumes",
            [volume(emptyDir={"medium": "Memory"})],
            [volume(emptyDir={"sizeLimit": "8Gi"})],
            [volume(emptyDir={"medium": "Memory", "sizeLimit": "8Gi"})],
            id="volume-of-the-same-kind",
        ),
        pytest.param(
            "volumes",
            [volume(emptyDir={})],
            [volume(emptyDir=None, ephemeral={"volumeClaimTemplate": {}})],
            [volume(ephemeral={"volumeClaimTemplate": {}})],
            id="volume-with-null-as-kubectl-needs",
        ),
        pytest.param("volumes", [volume(emptyDir={})], [volume()], [volume(emptyDir={})], id="volume-named-alone"),
        pytest.param(
            "volumes",
            [volume(emptyDir={}), {"name": "home", "emptyDir": {}}],
            [{"name": "home", "nfs": {"server": "s", "path": "/"}}],
            [volume(emptyDir={}), {"name": "home", "nfs": {"server": "s", "path": "/"}}],
            id="other-volumes-stay",
        ),
        *(
            pytest.param(probe, TIMES | base, over, TIMES | over, id=f"{probe}-{next(iter(over))}")
            for probe in ("livenessProbe", "readinessProbe", "startupProbe")
            for base, over in ((EXEC, HTTP), (HTTP, {"tcpSocket": {"port": 8000}}), (EXEC, {"grpc": {"port": 9}}), (HTTP, EXEC))
        ),
        pytest.param(
            "livenessProbe",
            TIMES | EXEC,
            HTTP | {"periodSeconds": 99},
            TIMES | HTTP | {"periodSeconds": 99},
            id="probe-and-its-times",
        ),
        pytest.param(
            "livenessProbe", TIMES | EXEC, {"periodSeconds": 99}, TIMES | EXEC | {"periodSeconds": 99}, id="times-alone"
        ),
        pytest.param(
            "readinessProbe",
            HTTP,
            {"httpGet": {"path": "/mine"}},
            {"httpGet": {"path": "/mine", "port": "agent"}},
            id="handler-of-the-same-kind",
        ),
        pytest.param(
            "lifecycle",
            {"preStop": EXEC},
            {"preStop": {"sleep": {"seconds": 5}}},
            {"preStop": {"sleep": {"seconds": 5}}},
            id="hook",
        ),
        pytest.param(
            "lifecycle", {"preStop": EXEC}, {"postStart": HTTP}, {"preStop": EXEC, "postStart": HTTP}, id="another-hook"
        ),
        pytest.param(
            "env",
            [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            [{"name": "A", "value": "1"}],
            [{"name": "A", "value": "1"}],
            id="value-replaces-value-from",
        ),
        pytest.param(
            "env",
            [{"name": "A", "value": "1"}],
            [{"name": "A", "value": "", "valueFrom": None}],
            [{"name": "A", "value": ""}],
            id="empty-value",
        ),
        pytest.param(
            "env",
            [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
            [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            id="value-from-another-source",
        ),
        pytest.param(
            "volumeMounts",
            [{"name": "home", "mountPath": "/tmp", "subPath": "trainer-tmp"}],
            [{"name": "home", "mountPath": "/tmp", "subPathExpr": "$(POD)"}],
            [{"name": "home", "mountPath": "/tmp", "subPathExpr": "$(POD)"}],
            id="path-inside-a-volume",
        ),
        pytest.param(
            "labels", {"value": "a", "exec": "b"}, {"valueFrom": "c", "grpc": "d"}, None, id="labels-do-not-exclude-each-other"
        ),
    ],
)
def test_fields_that_exclude_each_other_replace_each_other(field: str, base: Any, over: Any, want: Any) -> None:
    before = repr((base, over))
    assert merge({field: base}, {field: over}) == {field: base | over if want is None else want}
    assert repr((base, over)) == before
