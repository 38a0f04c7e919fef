"""The operator's process with the chart's rights alone: they are enough for the life of a run, and none is idle."""

import asyncio
import json
from pathlib import Path

import pytest

from integration.chart.audit import Right, granted, refused, requests_of, used
from integration.chart.release import Release, may
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import Exit, Waiting
from integration.operator.cluster import Cluster, spin_run
from support.ports import free_port

pytestmark = pytest.mark.cluster

# What makes the operator as impatient as a test.
IMPATIENT = {
    "accelerator": "cpu",
    "coalesceSeconds": 0.02,
    "troubleSeconds": 0.5,
    "unscheduledSeconds": 0,
    "restartDelaySeconds": 0.2,
}

# Granted for what these tests do not wait for.
RARELY_USED = {
    # The same news again after half a minute raises the count of its Event.
    Right("", "events", "patch"),
    # What has a child's name, and is not known as the run's, is looked at.
    *(Right("", resource, "get") for resource in ("persistentvolumeclaims", "secrets")),
    Right("batch", "jobs", "get"),
    # A Job that has lost its labels before its trainer ran.
    Right("batch", "jobs", "patch"),
    # A PodMonitor that somebody has changed.
    *(Right("monitoring.coreos.com", "podmonitors", verb) for verb in ("get", "patch")),
}


async def live_through_a_run(cluster: Cluster, kubelet: FakeKubelet) -> None:
    """Starts a run, spoils a child, suspends and resumes, completes, and lets the run's time pass."""
    kubelet.script(Exit(0, after=3600), name="demo-trainer-*", on_delete=Exit(3))
    await cluster.create(spin_run(lifecycle={"ttlSecondsAfterFinished": 1}))
    await cluster.until_phase("Running", attempt=1)
    await cluster.patch("Service", "demo-rollout", {"spec": {"publishNotReadyAddresses": False}})
    await cluster.until("the Service is repaired", lambda: publishes_all_addresses(cluster))
    await cluster.delete("ConfigMap", "demo-run")
    await cluster.until("the ConfigMap is there again", lambda: cluster.get("ConfigMap", "demo-run"))
    await cluster.patch("ConfigMap", "demo-run", {"data": {"run.yaml": "spoilt"}})
    await cluster.patch("NetworkPolicy", "demo-spinrun", {"spec": {"ingress": [{}]}})
    await cluster.patch("ServiceAccount", "demo-spinrun", {"automountServiceAccountToken": True})
    await cluster.until("all is repaired", lambda: is_as_it_was(cluster))
    await cluster.change_spec("demo", lifecycle={"suspend": True})
    await cluster.until_condition("Suspended", "True", "Suspended")
    await cluster.change_spec("demo", lifecycle={"suspend": False})
    await cluster.until_phase("Running", attempt=2)
    kubelet.script(Exit(0), name="demo-trainer-2-*")
    await cluster.until_gone("SpinRun", "demo")
    assert {event["reason"] for event in await cluster.events()} >= {"Suspended", "Resumed", "Completed"}


async def publishes_all_addresses(cluster: Cluster) -> bool:
    """Whether the rollouts' Service is as the operator wants it."""
    service = await cluster.get("Service", "demo-rollout")
    return service is not None and service["spec"].get("publishNotReadyAddresses", False)


async def is_as_it_was(cluster: Cluster) -> bool:
    """Whether ConfigMap, NetworkPolicy and ServiceAccount are as the operator wants them."""
    config, policy = await cluster.get("ConfigMap", "demo-run"), await cluster.get("NetworkPolicy", "demo-spinrun")
    account = await cluster.get("ServiceAccount", "demo-spinrun")
    return bool(
        config
        and policy
        and account
        and config["data"]["run.yaml"] != "spoilt"
        and policy["spec"]["ingress"] != [{}]
        and account["automountServiceAccountToken"] is False
    )


async def live_through_trouble(cluster: Cluster, kubelet: FakeKubelet, release: Release) -> None:
    """Has a run whose trainer does not start, until the operator looks for others' events about it; then deletes the run."""
    kubelet.script(Waiting("ContainerCreating"), name="stuck-trainer-*")
    await cluster.create(spin_run("stuck"))
    await cluster.until("the operator looks at events", lambda: has_used(release, Right("", "events", "list")))
    await cluster.delete("SpinRun", "stuck")
    await cluster.until_gone("SpinRun", "stuck")


async def has_used(release: Release, right: Right) -> bool:
    """Whether the operator has made such a request."""
    return right in used(requests_of(release.audit_log, release.user))


@pytest.mark.parametrize("scope", ["cluster", "namespaces"])
async def test_rights_of_the_chart_are_enough_for_a_runs_life_and_all_are_used(
    release: Release, cluster: Cluster, fake_kubelet: FakeKubelet, tmp_path: Path, scope: str
) -> None:
    values = {
        "watchNamespaces": [cluster.namespace] if scope == "namespaces" else [],
        "settings": IMPATIENT | {"httpPort": free_port()},
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    await release.install("--values", file)
    async with release.operator(tmp_path) as operator:
        await operator.until_ready()
        await asyncio.gather(live_through_a_run(cluster, fake_kubelet), live_through_trouble(cluster, fake_kubelet, release))
        assert await operator.ask("/healthz") == (200, "ok")
    kind = "role" if scope == "namespaces" else "clusterrole"
    role = await release.get(kind, "spinrun-operator", cluster.namespace)
    requests = requests_of(release.audit_log, release.user)
    assert refused(requests) == []
    assert sorted(map(str, granted(role) - RARELY_USED - used(requests))) == []
    assert sorted(map(str, (used(requests) | RARELY_USED) - granted(role))) == []


async def test_operator_of_some_namespaces_has_no_right_elsewhere(release: Release, namespace: str) -> None:
    await release.install("--set", f"watchNamespaces={{{namespace}}}")
    for verb, resource in (("list", "secrets"), ("create", "jobs.batch"), ("list", "spinruns.spinrun.dev")):
        assert await may(release, release.user, verb, resource, "-n", namespace)
        assert not await may(release, release.user, verb, resource, "-n", release.namespace)
        assert not await may(release, release.user, verb, resource, "--all-namespaces")
