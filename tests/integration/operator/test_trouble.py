"""What stands in a run's way is said in a condition that names the remedy, and the run continues once that is gone."""

from typing import Any

import pytest

from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.fake_pod import OOM_KILLED, Waiting
from integration.operator.cluster import Cluster, spin_run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]

Json = dict[str, Any]


async def is_well(cluster: Cluster) -> None:
    """Waits until the run runs and nothing is wrong any more."""
    await cluster.until_phase("Running")
    await cluster.until_condition("Degraded", "False", "AsExpected")


async def test_missing_claim_is_named_until_it_is_there(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(storage={"claimName": "shared"}))
    condition = await cluster.until_condition("Degraded", "True", "ClaimNotFound")
    assert "there is no claim shared: create it, or name another in spec.storage.claimName" in condition["message"]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await cluster.create(claim)
    await is_well(cluster)


async def test_unknown_storage_class_is_named(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(storage={"size": "1Gi", "storageClassName": "no-such-class"}))
    condition = await cluster.until_condition("Degraded", "True", "ClaimPending")
    assert "no-such-class" in condition["message"]


async def test_image_that_does_not_pull_is_named(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    stuck = fake_kubelet.script(Waiting("ImagePullBackOff"), name="demo-rollout-0")
    await cluster.create(spin_run(rollout={"image": "no.such/image:1"}))
    condition = await cluster.until_condition("Degraded", "True", "ImageNotPulled")
    assert "no.such/image:1 cannot be pulled" in condition["message"]
    stuck.cancel()
    await is_well(cluster)


async def test_missing_secret_is_named(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    waiting = Waiting("CreateContainerConfigError", 'secret "hub-token" not found')
    stuck = fake_kubelet.script(waiting, name="demo-trainer-*")
    await cluster.create(spin_run())
    condition = await cluster.until_condition("Degraded", "True", "ConfigMissing")
    assert 'secret "hub-token" not found: create what is missing' in condition["message"]
    stuck.cancel()
    await is_well(cluster)


async def test_pod_that_fits_no_node_is_named_until_the_template_is_corrected(
    cluster: Cluster, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run(trainer={"template": {"spec": {"nodeSelector": {"gpu": "h200"}}}}))
    condition = await cluster.until_condition("Degraded", "True", "PodUnschedulable")
    assert "is unschedulable" in condition["message"]
    await cluster.change_spec("demo", trainer={"template": {"spec": {"nodeSelector": {"gpu": None}}}})
    await is_well(cluster)


async def test_quota_is_named_until_it_is_raised(
    cluster: Cluster, fake_kubelet: FakeKubelet, control_plane: ControlPlane
) -> None:
    await control_plane.kubectl_async("create", "quota", "tight", "--hard=pods=1", "-n", cluster.namespace)
    await cluster.create(spin_run())
    condition = await cluster.until_condition("Degraded", "True", "QuotaExceeded")
    assert "raise the quota" in condition["message"]
    await control_plane.kubectl_async("delete", "quota", "tight", "-n", cluster.namespace)
    # Kubernetes' own controllers try again more and more slowly.
    await cluster.until_phase("Running")


async def test_pod_template_that_the_api_server_refuses_is_named_until_it_is_corrected(
    cluster: Cluster, fake_kubelet: FakeKubelet
) -> None:
    await cluster.create(spin_run(rollout={"template": {"spec": {"nodeSelektor": {"a": "b"}}}}))
    condition = await cluster.until_condition("Degraded", "True", "ChildRefused")
    assert "nodeSelektor" in condition["message"]
    await cluster.change_spec("demo", rollout={"template": None})
    await is_well(cluster)


async def test_privileged_pod_template_is_named(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    await cluster.create(spin_run(trainer={"template": {"spec": {"hostNetwork": True}}}))
    condition = await cluster.until_condition("Degraded", "True", "PodsRefused")
    assert "violates PodSecurity" in condition["message"]
    await cluster.change_spec("demo", trainer={"template": None})
    await is_well(cluster)


async def test_crashing_rollout_is_named(cluster: Cluster, fake_kubelet: FakeKubelet) -> None:
    crash = fake_kubelet.script(OOM_KILLED, name="demo-rollout-0")
    await cluster.create(spin_run())
    await cluster.until("an end is told", lambda: crashed(cluster))
    crash.cancel()
    await is_well(cluster)


async def crashed(cluster: Cluster) -> bool:
    """Whether an event told of a container that is crash-looping."""
    return "ContainerCrashing" in {event["reason"] for event in await cluster.events()}
