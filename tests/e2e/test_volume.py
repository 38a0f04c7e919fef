"""A volume that is full is named, and waited for."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.runs import ACCESS_MODE, LONG, Json, Runs, tiny_run, with_models

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SMALL = "small"


def test_a_run_on_a_full_volume_says_so_and_continues_when_there_is_space(
    runs: Runs, small_claim: Callable[[], None], tmp_path: Path
) -> None:
    run = tiny_run("full", storage={"claimName": SMALL}, duration=LONG)
    run["spec"]["model"]["source"] = "/models/tiny"
    run["spec"]["rollout"]["template"] = with_models("vllm")
    run["spec"]["trainer"]["template"] = with_models("trainer")
    runs.create(run)
    said = runs.until("it says that it cannot write", lambda: unavailable(runs))
    assert "No space left on device" in said
    small_claim()

    status = runs.until_continued("full")

    assert status.get("failedAttempts", 0) == 0, "nobody's failure but the volume's"
    runs.until("it has nothing to say of its volume", lambda: not unavailable(runs))
    runs.end("full")
    runs.ledger("full", tmp_path, pod=runs.reader(SMALL)).assert_whole()
    runs.kubectl("delete", f"pod/reader-{SMALL}")


def unavailable(runs: Runs) -> str:
    """What the run says of its volume, while it cannot write to it."""
    condition = runs.condition("full", "LedgerUnavailable")
    return condition["message"] if condition.get("status") == "True" else ""


@pytest.fixture
def small_claim(runs: Runs) -> Iterator[Callable[[], None]]:
    """A claim on a few megabytes, less than a run needs; called, it makes them more."""
    if runs.control_plane.state is None:
        pytest.skip("only on the node of `make cluster-up` can a volume be made small and enlarged")
    node = (runs.control_plane.state / "pids" / "node-1").read_text().strip()
    on_node = ["nsenter", f"--target={node}", "--mount"]
    folder = runs.control_plane.state / "volumes" / SMALL
    folder.mkdir()
    subprocess.run([*on_node, "mount", "-t", "tmpfs", "-o", "size=6m", SMALL, folder], check=True)
    everywhere = {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}
    size = {"storage": "6Mi"}
    volume: Json = {"accessModes": [ACCESS_MODE], "capacity": size, "local": {"path": str(folder)}}
    volume["nodeAffinity"] = {"required": {"nodeSelectorTerms": [everywhere]}}
    claim = {"accessModes": [ACCESS_MODE], "resources": {"requests": size}, "volumeName": SMALL, "storageClassName": ""}
    runs.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": SMALL}, "spec": volume})
    runs.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": SMALL}, "spec": claim})

    def enlarge() -> None:
        subprocess.run([*on_node, "mount", "-o", "remount,size=200m", folder], check=True)

    yield enlarge
    runs.kubectl("delete", "spinrun", "--all", "--timeout=60s")
    runs.until("no pod of a run is left", lambda: not runs.pods())
    runs.kubectl("delete", f"pvc/{SMALL}", f"pv/{SMALL}", "--timeout=60s")
    subprocess.run([*on_node, "umount", folder], check=True)
    folder.rmdir()
