"""The examples that a user copies, on a real API server."""

import json
from pathlib import Path
from typing import Any

import pytest

from integration.control_plane import ControlPlane
from spinrun_api.documents import parse_run, read_documents
from spinrun_operator.children.rollout_statefulset import rollout_statefulset
from spinrun_operator.children.scorer_statefulset import scorer_statefulset
from spinrun_operator.children.trainer_job import trainer_job
from spinrun_operator.settings import Settings

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*.yaml"))


def pod(owner: Json) -> Json:
    """A pod of a Job or StatefulSet: unlike these, the API server refuses one that misses the restricted security level."""
    template = owner["spec"]["template"]
    # The pod's own ServiceAccount is made by an operator, which is not there.
    spec = template["spec"] | {"serviceAccountName": "default"}
    metadata = template["metadata"] | {"name": owner["metadata"]["name"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("example", [pytest.param(path, id=path.stem) for path in EXAMPLES])
def test_example_and_its_pods_are_taken(example: Path, control_plane: ControlPlane, crd: None, namespace: str) -> None:
    (document,) = read_documents(example)
    run = parse_run(
        document | {"metadata": document["metadata"] | {"namespace": namespace, "uid": "00000000-0000-4000-8000-000000000000"}}
    )
    pods = [pod(trainer_job(run, Settings(), attempt=1)), pod(rollout_statefulset(run, Settings(), replicas=1))]
    if run.spec.scorers is not None:
        pods.append(pod(scorer_statefulset(run, Settings(), replicas=1)))

    for each in (document, *pods):
        dry_run = ("create", "--dry-run=server", "--validate=strict", "--namespace", namespace, "--filename", "-")
        control_plane.kubectl(*dry_run, input=json.dumps(each))
