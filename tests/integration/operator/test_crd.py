"""The CRD on a real API server: what it refuses, fills in and shows."""

import copy
from pathlib import Path
from typing import Any

import pytest

from integration.operator.cluster import Cluster, spin_run
from spinrun_api.documents import parse_run, read_documents
from spinrun_api.run import SpinRun
from spinrun_kube.api import ApiError
from spinrun_kube.kinds import SPIN_RUN
from unit.api.invalid_runs import INVALID, MINIMAL

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


async def refusal(cluster: Cluster, document: Json) -> str:
    """Why the API server does not take a document; empty when it does."""
    query = {"fieldValidation": "Strict", "dryRun": "All"}
    try:
        await cluster.api.request("POST", SPIN_RUN.path(cluster.namespace), query=query, body=document)
    except ApiError as error:
        return error.message
    return ""


async def test_every_invalid_document_is_refused_with_the_field_that_parse_run_names(cluster: Cluster) -> None:
    assert await refusal(cluster, MINIMAL) == ""
    said = {name: await refusal(cluster, invalid.document()) for name, invalid in INVALID.items()}
    assert {name: message for name, message in said.items() if INVALID[name].field not in message} == {}


async def test_every_example_is_taken_as_it_is_written(cluster: Cluster) -> None:
    written = {example.name: document for example in EXAMPLES.glob("*.yaml") for document in read_documents(example)}
    said = {name: await refusal(cluster, _in(document, cluster.namespace)) for name, document in written.items()}
    assert "sppo-advantage.yaml" in said
    assert {name: message for name, message in said.items() if message} == {}


def _in(document: Json, namespace: str) -> Json:
    document["metadata"]["namespace"] = namespace
    return document


async def test_defaults_are_filled_in_as_parse_run_does(cluster: Cluster) -> None:
    created = await cluster.create(MINIMAL)
    assert parse_run(created).spec == SpinRun.model_validate(MINIMAL).spec
    assert created["spec"]["rollout"]["samplesPerPrompt"] == 8
    assert created["spec"]["duration"] == {"epochs": 1}


@pytest.mark.parametrize(
    ("block", "value"),
    [
        ("model", {"source": "/models/other"}),
        ("data", {"prompts": {"shuffleSeed": 7}}),
        ("method", {"beta": 0.2}),
        ("preference", {"rule": {"kind": "exact"}}),
        ("storage", {"size": "2Gi"}),
    ],
)
async def test_block_that_made_the_ledger_can_change_only_before_the_start(cluster: Cluster, block: str, value: Json) -> None:
    created = await cluster.create(spin_run())
    changed = await cluster.change_spec("demo", **{block: value})
    assert changed["spec"][block] != created["spec"][block]
    started = copy.deepcopy(changed) | {"status": {"startTime": "2026-01-01T00:00:00Z"}}
    await cluster.api.replace_status(started)
    with pytest.raises(ApiError, match=f"spec.{block} cannot change once the run has started") as raised:
        await cluster.change_spec("demo", **{block: created["spec"][block]})
    assert raised.value.status == 422


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, {}), ({}, None), ({"rank": 8}, {"rank": 16}), ({"targets": ["q_proj"]}, {"targets": ["q_proj", "v_proj"]})],
    ids=["added", "removed", "of another rank", "of other layers"],
)
async def test_adapters_can_change_only_before_the_start(cluster: Cluster, before: Json | None, after: Json | None) -> None:
    await cluster.create(spin_run())
    await cluster.change_spec("demo", trainer={"lora": after})
    changed = await cluster.change_spec("demo", trainer={"lora": before})
    assert ("lora" in changed["spec"]["trainer"]) == (before is not None)
    await cluster.api.replace_status(changed | {"status": {"startTime": "2026-01-01T00:00:00Z"}})
    with pytest.raises(ApiError, match=r"spec.trainer.lora cannot change once the run has started"):
        await cluster.change_spec("demo", trainer={"lora": after})
    kept = await cluster.change_spec("demo", trainer={"lora": before, "learningRate": 1e-6})
    assert kept["spec"]["trainer"].get("lora") == changed["spec"]["trainer"].get("lora")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "kueue.x-k8s.io/multikueue"),
        ("kueue.x-k8s.io/multikueue", None),
        ("kueue.x-k8s.io/multikueue", "spinrun.dev/operator"),
        (None, "spinrun.dev/operator"),
    ],
    ids=str,
)
async def test_manager_never_changes(cluster: Cluster, before: str | None, after: str | None) -> None:
    await cluster.create(spin_run(lifecycle={"managedBy": before} if before else {}))
    with pytest.raises(ApiError, match="managedBy cannot change: make a new SpinRun") as raised:
        await cluster.change_spec("demo", lifecycle={"managedBy": after})
    assert raised.value.status == 422
    if before is None:
        with pytest.raises(ApiError, match="managedBy cannot change"):
            await cluster.patch("SpinRun", "demo", {"spec": {"lifecycle": {"managedBy": after, "suspend": True}}})
    else:
        with pytest.raises(ApiError, match="managedBy cannot change"):
            await cluster.change_spec("demo", lifecycle=None)
    kept = await cluster.change_spec("demo", lifecycle={"suspend": True, "managedBy": before})
    assert kept["spec"]["lifecycle"].get("managedBy") == before
    assert kept["spec"]["lifecycle"]["suspend"] is True


async def test_running_run_takes_what_may_change(cluster: Cluster) -> None:
    started = await cluster.create(spin_run()) | {"status": {"startTime": "2026-01-01T00:00:00Z"}}
    await cluster.api.replace_status(started)
    changed = await cluster.change_spec(
        "demo", rollout={"replicas": 4}, duration={"epochs": 2}, lifecycle={"suspend": True, "backoffLimit": 0}
    )
    assert changed["spec"]["rollout"]["replicas"] == 4


async def test_writing_the_spec_does_not_write_the_status(cluster: Cluster) -> None:
    created = await cluster.create(spin_run() | {"status": {"phase": "Complete"}})
    assert "status" not in created


async def test_table_shows_the_columns_that_people_look_for(cluster: Cluster) -> None:
    created = await cluster.create(spin_run())
    status = {"phase": "Running", "window": 3, "step": 48, "attempt": 2, "version": 3, "metrics": {"accuracy": 0.75}}
    await cluster.api.replace_status(created | {"status": status | {"rollouts": {"ready": 2, "desired": 2}}})
    table = await cluster.api.request(
        "GET", SPIN_RUN.path(cluster.namespace), accept="application/json;as=Table;v=v1;g=meta.k8s.io"
    )
    columns = [column["name"] for column in table["columnDefinitions"] if column["priority"] == 0]
    assert columns == ["Name", "Phase", "Window", "Step", "Accuracy", "Rollouts", "Version", "Attempt", "Age"]
    assert table["rows"][0]["cells"][:8] == ["demo", "Running", 3, 48, 0.75, 2, 3, 2]


async def test_short_name_and_category_are_known(cluster: Cluster) -> None:
    resources = await cluster.api.request("GET", "/apis/spinrun.dev/v1alpha1")
    (resource,) = [each for each in resources["resources"] if each["name"] == "spinruns"]
    assert (resource["shortNames"], resource["categories"]) == (["spin"], ["all"])
