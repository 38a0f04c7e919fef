"""The chart on a real API server, by a real Helm: installing, upgrading and uninstalling it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from integration.chart.release import Json, Release, may
from integration.control_plane import KubectlError
from integration.fake_kubelet import FakeKubelet
from integration.operator.cluster import Cluster, spin_run
from integration.operator.process import Process
from support.ports import free_port
from unit.chart.helm import CHART, HelmError

pytestmark = pytest.mark.cluster

CRD = ("crd", "spinruns.spinrun.dev")


async def create_run(cluster: Cluster) -> str:
    """Makes a SpinRun and returns its uid."""
    return (await cluster.create(spin_run()))["metadata"]["uid"]


async def uid_of_run(cluster: Cluster) -> str | None:
    """The uid of that SpinRun; None when it is gone."""
    run = await cluster.get("SpinRun", "demo")
    return run["metadata"]["uid"] if run else None


async def is_there(release: Release, kind: str, name: str) -> bool:
    """Whether an object of the cluster, or of the operator's namespace, is there."""
    try:
        await release.get(kind, name)
    except KubectlError:
        return False
    return True


def condition(document: Json, kind: str) -> str:
    """The status of a condition."""
    return next(each["status"] for each in document["status"]["conditions"] if each["type"] == kind)


async def test_installed_chart_has_an_established_crd_and_a_pod_that_a_restricted_namespace_takes(release: Release) -> None:
    await release.install()
    assert condition(await release.get(*CRD), "Established") == "True"
    deployment = await release.get("deployment", "spinrun-operator")
    assert condition(deployment, "Available") == "True"
    namespace = await release.get("namespace", release.namespace)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (pod,) = json.loads(await release.control_plane.kubectl_async("get", "pods", "-n", release.namespace, "-o", "json"))["items"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "ghcr.io/spinrun/operator:0.1.0"
    assert pod["spec"]["serviceAccountName"] == "spinrun-operator"
    # A network policy of a run lets the operator in by this name.
    assert {"name": "SPINRUN_NAMESPACE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}} in (
        container["env"]
    )
    endpoints = await release.get("endpoints", "spinrun-operator")
    assert endpoints["subsets"][0]["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]


async def test_run_that_the_notes_show_is_taken_by_the_api_server(release: Release) -> None:
    said = await release.install()
    (run,) = re.findall(r"<<'EOF'\n(.*?)EOF\n", said, flags=re.DOTALL)
    made = await release.control_plane.kubectl_async("create", "-f", "-", "--dry-run=server", "-o", "name", input=run)
    assert made.strip() == "spinrun.spinrun.dev/gsm8k"


async def test_everything_that_can_be_switched_on_is_taken_by_the_api_server(release: Release, tmp_path: Path) -> None:
    values = {
        "serviceMonitor": {"enabled": True, "interval": "30s"},
        "networkPolicy": {"enabled": True},
        "settings": {"monitoringNamespaces": ["monitoring"]},
        "imagePullSecrets": [{"name": "mirror"}],
        "tolerations": [{"operator": "Exists"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "training"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "priorityClassName": "system-cluster-critical",
        "extraEnv": [{"name": "PYTHONASYNCIODEBUG", "value": "1"}],
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    await release.install("--values", file)
    policy = await release.get("networkpolicy", "spinrun-operator")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert await is_there(release, "servicemonitor", "spinrun-operator")


def older_chart(folder: Path) -> Path:
    """The chart as it might have been: an older version, and a CRD that lacks a field and a column."""
    chart = shutil.copytree(CHART, folder / "older")
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9", "appVersion": "0.0.9"}))
    file = chart / "files" / "spinrun.dev_spinruns.yaml"
    crd = yaml.safe_load(file.read_text())
    version = crd["spec"]["versions"][0]
    del version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["eta"]
    version["additionalPrinterColumns"] = version["additionalPrinterColumns"][:1]
    file.write_text(yaml.safe_dump(crd, sort_keys=False))
    return chart


async def test_upgrade_brings_the_new_crd_and_operator_and_leaves_the_runs(
    release: Release, cluster: Cluster, tmp_path: Path
) -> None:
    await release.install(chart=older_chart(tmp_path))
    assert len((await release.get(*CRD))["spec"]["versions"][0]["additionalPrinterColumns"]) == 1
    uid = await create_run(cluster)
    await release.install()
    version = (await release.get(*CRD))["spec"]["versions"][0]
    assert len(version["additionalPrinterColumns"]) > 1
    assert "eta" in version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    (container,) = (await release.get("deployment", "spinrun-operator"))["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "ghcr.io/spinrun/operator:0.1.0"
    assert await uid_of_run(cluster) == uid


async def test_same_chart_again_changes_nothing(release: Release) -> None:
    await release.install()
    kinds = "crd,deployment,service,serviceaccount,clusterrole,clusterrolebinding"
    show = ("get", kinds, "-n", release.namespace, "-l", "app.kubernetes.io/name=spinrun", "-o")
    show = (*show, "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.generation} {.metadata.uid}{'\\n'}{end}")
    before = await release.control_plane.kubectl_async(*show)
    assert len(before.splitlines()) == 8
    await release.install()
    assert await release.control_plane.kubectl_async(*show) == before


async def test_uninstalled_chart_leaves_the_runs_and_takes_them_over_again(release: Release, cluster: Cluster) -> None:
    await release.install()
    uid = await create_run(cluster)
    await release.helm("uninstall", "spinrun", "--wait")
    assert not await is_there(release, "deployment", "spinrun-operator")
    assert not await is_there(release, "clusterrole", "spinrun-operator")
    assert await uid_of_run(cluster) == uid
    await release.install()
    assert await uid_of_run(cluster) == uid


async def test_release_of_another_name_takes_the_runs_over_when_told_to(release: Release, cluster: Cluster) -> None:
    await release.install()
    uid = await create_run(cluster)
    await release.helm("uninstall", "spinrun", "--wait")
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        await release.helm("install", "other", CHART)
    await release.helm("install", "other", CHART, "--take-ownership")
    assert await uid_of_run(cluster) == uid
    await release.helm("uninstall", "other", "--wait")


async def test_without_keep_uninstalling_deletes_the_crd_and_the_runs(release: Release, cluster: Cluster) -> None:
    await release.install("--set", "crds.keep=false")
    await create_run(cluster)
    await release.helm("uninstall", "spinrun", "--wait", "--timeout", "60s")
    assert not await is_there(release, *CRD)


async def test_second_release_serves_other_namespaces(release: Release, namespace: str) -> None:
    await release.install("--set", f"watchNamespaces={{{release.namespace}}}")
    others = ("crds.enabled=false", "rbac.userRoles=false", f"watchNamespaces={{{namespace}}}")
    await release.helm("install", "other", CHART, "--wait", "--set", ",".join(others))
    role = await release.get("role", "other-spinrun-operator", namespace)
    assert role["rules"] == (await release.get("role", "spinrun-operator"))["rules"]
    await release.helm("uninstall", "other", "--wait")


async def test_operator_that_starts_before_the_crd_is_there_serves_runs_once_it_is(
    release: Release, cluster: Cluster, fake_kubelet: FakeKubelet, tmp_path: Path
) -> None:
    port = free_port()
    await release.install("--set", f"crds.enabled=false,settings.httpPort={port},settings.accelerator=cpu")
    async with release.operator(tmp_path) as operator:
        await cluster.until("the operator lives", lambda: has_status(operator, "/healthz", 200))
        assert await has_status(operator, "/readyz", 503)
        await release.control_plane.kubectl_async(
            "apply", "--server-side", "-f", str(CHART / "files" / "spinrun.dev_spinruns.yaml")
        )
        await operator.until_ready()
        await create_run(cluster)
        await cluster.until_phase("Running")


async def has_status(operator: Process, path: str, status: int) -> bool:
    """Whether the operator answers so."""
    return (await operator.ask(path))[0] == status


EVERYTHING = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]


async def test_roles_of_the_cluster_include_spinruns(release: Release, cluster: Cluster) -> None:
    await release.install()
    in_namespace = ("-n", cluster.namespace)
    for role, want in {"view": EVERYTHING[:3], "edit": EVERYTHING, "admin": EVERYTHING}.items():
        user = f"one-with-{role}"
        binding = ("create", "rolebinding", role, f"--clusterrole={role}", f"--user={user}", *in_namespace)
        await release.control_plane.kubectl_async(*binding)

        async def has_them(user: str = user, want: list[str] = want) -> bool:
            may_do = [verb for verb in EVERYTHING if await may(release, user, verb, "spinruns.spinrun.dev", *in_namespace)]
            return may_do == want

        # The controller that joins roles takes a moment.
        await cluster.until(f"{role} includes {want}", has_them)
        assert not await may(release, user, "update", "spinruns.spinrun.dev", "--subresource=status", *in_namespace)
    assert not await may(release, "one-without-a-role", "get", "spinruns.spinrun.dev", *in_namespace)
