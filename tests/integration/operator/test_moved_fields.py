"""Runs from before the settings of a loss had a block, on a real API server."""

import json
from typing import Any

import pytest

from integration.control_plane import ControlPlane
from integration.operator.cluster import Cluster, spin_run
from integration.operator.test_crd import ApiError, refusal
from spinrun_api.crd import custom_resource_definition
from spinrun_api.documents import parse_stored_run
from spinrun_api.spec import SppoAdvantage
from spinrun_api.spec.method import LOSS_BLOCKS, MOVED
from support.documents import method_before

pytestmark = pytest.mark.cluster

Json = dict[str, Any]


def crd_before() -> Json:
    """The CRD as it was before the settings of a loss had a block, but for the rules over them."""
    document = custom_resource_definition()
    spec = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    method = spec["properties"]["method"]
    for loss in LOSS_BLOCKS.keys() - {"cringe"}:
        del method["properties"][loss]
    defaults = method_before()
    for moved in MOVED:
        if moved.old in defaults:
            method["properties"][moved.old]["default"] = defaults[moved.old]
    del method["x-kubernetes-validations"]
    spec["x-kubernetes-validations"] = [each for each in spec["x-kubernetes-validations"] if "Advantage" not in each["rule"]]
    return document


@pytest.fixture
async def stored_before(control_plane: ControlPlane, cluster: Cluster) -> Json:
    """A started run with settings where they were, stored under the CRD of before; the CRD of today is back."""
    method = {"name": "sppo", "loss": "sppoAdvantage", "advantage": "batch", "eta": 5.0}
    document = spin_run(method=method, rollout={"samplesPerPrompt": 1})
    apply = ("apply", "--server-side", "--force-conflicts", "--filename", "-")
    try:
        await control_plane.kubectl_async(*apply, input=json.dumps(crd_before()))
        await cluster.until("the CRD of before is served", lambda: _is_taken(cluster, document))
        created = await cluster.create(document)
    finally:
        await control_plane.kubectl_async(*apply, input=json.dumps(custom_resource_definition()))

        async def is_back() -> bool:
            return not await _is_taken(cluster, document)

        await cluster.until("the CRD of today is served", is_back)
    await cluster.api.replace_status(created | {"status": {"phase": "Starting", "startTime": "2026-01-01T00:00:00Z"}})
    return created


async def _is_taken(cluster: Cluster, document: Json) -> bool:
    return await refusal(cluster, document) == ""


async def test_run_that_was_stored_before_its_settings_moved_goes_through_its_life(cluster: Cluster, stored_before: Json) -> None:
    stored = await cluster.get("SpinRun", "demo")
    assert stored is not None
    assert stored["spec"]["method"] == stored_before["spec"]["method"], "nothing is pruned"
    run = parse_stored_run(stored)
    assert run.spec.method.sppo_advantage == SppoAdvantage(advantage="batch", eta=5.0)

    written = await cluster.api.replace_status(stored | {"status": stored["status"] | {"phase": "Running"}})
    assert written["status"]["phase"] == "Running"
    changed = await cluster.change_spec("demo", lifecycle={"suspend": True}, rollout={"replicas": 2})
    assert parse_stored_run(changed).spec.method == run.spec.method
    labelled = await cluster.patch("SpinRun", "demo", {"metadata": {"labels": {"team": "sums"}, "finalizers": ["example.com/a"]}})
    assert labelled["metadata"]["labels"] == {"team": "sums"}
    await cluster.patch("SpinRun", "demo", {"metadata": {"finalizers": None}})
    with pytest.raises(ApiError, match=r"spec\.method cannot change once the run has started"):
        await cluster.change_spec("demo", method={"beta": 0.2})


async def test_what_was_stored_before_is_refused_where_it_is_applied_today(cluster: Cluster, stored_before: Json) -> None:
    again = stored_before | {"metadata": {"name": "again", "namespace": cluster.namespace}}
    said = await refusal(cluster, again)
    assert [moved.refusal for moved in MOVED if moved.refusal not in said] == []


async def test_explain_shows_the_settings_of_a_loss_and_where_old_fields_have_gone(
    control_plane: ControlPlane, cluster: Cluster
) -> None:
    block = await control_plane.kubectl_async("explain", "spinrun.spec.method.ipo")
    assert "Settings of the loss ipo." in block
    assert "average\t<boolean>" in block
    assert "Moved to spec.method.ipo.average." in await control_plane.kubectl_async("explain", "spinrun.spec.method.ipoAverage")
