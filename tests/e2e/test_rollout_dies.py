"""Rollout pods deleted and their containers killed: the run goes on, and no sample of another version gets in."""

from contextlib import suppress
from pathlib import Path

import pytest

from e2e.runs import ANSWERING, LONG, Runs, tiny_run
from integration.control_plane import KubectlError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

# In a container, process 1 cannot be killed by SIGKILL from inside. vLLM's engine is a child, without which the server ends.
KILL_ENGINE = """
import os, pathlib, signal
for folder in pathlib.Path('/proc').iterdir():
    if folder.name.isdigit() and int(folder.name) != 1 and b'EngineCore' in (folder / 'cmdline').read_bytes():
        os.kill(int(folder.name), signal.SIGKILL)
"""
END = "import os, signal; os.kill(1, signal.SIGTERM)"


def test_pods_deleted_while_they_generate_stage_and_switch(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("deleted", rollout=two_rollouts(), duration=LONG))
    runs.until_window("deleted", 1, *ANSWERING)
    runs.kubectl("delete", "pod", runs.pod_names("rollout")[0], "--wait=false")
    # A version is staged and switched to in the second in which this phase is seen.
    runs.until_window("deleted", 2, "activate")
    runs.kubectl("delete", "pod", runs.pod_names("rollout")[-1], "--grace-period=0", "--force")

    status = runs.goes_on("deleted")
    runs.until("both serve again", lambda: runs.rollouts("deleted") == (2, 2))

    assert status["attempt"] == 1, "the trainer was left alone"
    runs.finish("deleted")
    runs.ledger("deleted", tmp_path).assert_whole()


def test_vllm_and_agent_killed_in_their_containers(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("killed", duration=LONG))
    runs.until_window("killed", 1, *ANSWERING)
    pod = runs.pod_names("rollout")[0]
    with suppress(KubectlError):  # the container may end under it
        runs.kubectl("exec", pod, "--container=vllm", "--", "python", "-c", KILL_ENGINE)
    runs.until("vLLM is started again", lambda: restarts(runs, pod, "vllm") == 1)
    runs.until_window("killed", 3, *ANSWERING)
    with suppress(KubectlError):
        runs.kubectl("exec", pod, "--container=agent", "--", "python", "-c", END)
    runs.until("the agent is started again", lambda: restarts(runs, pod, "agent") == 1)

    status = runs.goes_on("killed")

    assert status["attempt"] == 1
    assert (restarts(runs, pod, "vllm"), restarts(runs, pod, "agent")) == (1, 1)
    runs.finish("killed")
    runs.ledger("killed", tmp_path).assert_whole()


def two_rollouts() -> dict[str, object]:
    return {"replicas": 2, "samplesPerPrompt": 4, "maxTokens": 8, "engineArgs": {"kv-cache-memory-bytes": 64 << 20}}


def restarts(runs: Runs, pod: str, container: str) -> int:
    """How often a container of a pod was started again."""
    found = [each for each in runs.pods("rollout") if each["metadata"]["name"] == pod]
    statuses = found[0]["status"].get("containerStatuses", ()) if found else ()
    return next((each["restartCount"] for each in statuses if each["name"] == container), 0)
