"""Trainer pods killed, out of memory, evicted and drained: each is told apart, and the run goes on from its checkpoint."""

import json
from pathlib import Path

import pytest

from e2e.runs import ANSWERING, KILL_RANK, LONG, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("activity", ["generate", "train", "publish"])
def test_a_killed_trainer_is_counted_and_goes_on_from_its_checkpoint(runs: Runs, tmp_path: Path, activity: str) -> None:
    name = f"killed-{activity}"
    runs.create(tiny_run(name, duration=LONG))
    # The kill comes a moment later, mostly in the same window: what matters is that another comes at another place.
    runs.until_window(name, 2, *(ANSWERING if activity == "generate" else (activity,)))
    assert runs.kubectl("exec", runs.pod_names("trainer", name)[0], "--", "python", "-c", KILL_RANK).strip()

    status = runs.goes_on(name)

    assert (status["attempt"], status["failedAttempts"]) == (2, 1)
    runs.finish(name)
    ledger = runs.ledger(name, tmp_path)
    ledger.assert_whole()
    assert {line.attempt for line in ledger.metrics} >= {1, 2}


def test_an_evicted_trainer_is_not_counted_as_a_failure(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("evicted", duration=LONG))
    runs.until_window("evicted", 1)
    pod = runs.pod_names("trainer")[0]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": runs.namespace}}
    path = f"/api/v1/namespaces/{runs.namespace}/pods/{pod}/eviction"
    runs.kubectl("create", "--raw", path, "--filename=-", input=json.dumps(eviction))

    status = runs.goes_on("evicted")

    assert (status["attempt"], status.get("failedAttempts", 0)) == (2, 0)
    runs.finish("evicted")
    runs.ledger("evicted", tmp_path).assert_whole()


def test_a_trainer_out_of_memory_is_reported_as_such(runs: Runs) -> None:
    # Enough for Python, and not for what it imports.
    limit = {"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "300Mi"}}}]}}
    trainer = {"promptsPerStep": 16, "learningRate": 1e-4, "template": limit}
    runs.create(tiny_run("oom", trainer=trainer, lifecycle={"backoffLimit": 0}))

    status = runs.until_phase("oom", "Failed")

    assert status["failedAttempts"] == 1
    assert "container trainer reached its memory limit of 300Mi: raise" in runs.condition("oom", "Failed")["message"]


def test_a_drained_node_moves_the_run_on_when_it_is_back(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("drained", duration=LONG))
    runs.until_window("drained", 1)
    node = runs.pods("trainer")[0]["spec"]["nodeName"]
    runs.kubectl("drain", node, "--pod-selector=spinrun.dev/run=drained", "--ignore-daemonsets", "--delete-emptydir-data")
    try:
        runs.until("the trainer's pod waits for a node", lambda: waits_for_a_node(runs))
    finally:
        runs.kubectl("uncordon", node)

    status = runs.goes_on("drained")

    assert (status["attempt"], status.get("failedAttempts", 0)) == (2, 0)
    runs.finish("drained")
    runs.ledger("drained", tmp_path).assert_whole()


def waits_for_a_node(runs: Runs) -> bool:
    """Whether the run says that its pods find no node."""
    degraded = runs.condition("drained", "Degraded")
    return degraded.get("status") == "True" and degraded.get("reason") == "PodUnschedulable"
