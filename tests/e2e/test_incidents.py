"""One run that everything befalls in turn, its operator, rollouts, trainer, node and volume, until it is deleted in the middle.

It starts once. Each test needs it at work, leaves it at work, and compares with what was before, so that it also passes alone.
"""

import base64
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.conftest import SYSTEM
from e2e.monitoring import assert_dashboards_have_data
from e2e.runs import ANSWERING, LONG, Attempts, Runs, tiny_run
from integration.control_plane import KubectlError
from integration.monitoring.prometheus import binary
from spinrun_protocol.commands import AGENT_PORT, VLLM_PORT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "beset"

# In a container, process 1 cannot be killed by SIGKILL from inside. vLLM's engine is a child, without which the server ends.
KILL_ENGINE = """
import os, pathlib, signal
for folder in pathlib.Path('/proc').iterdir():
    if folder.name.isdigit() and int(folder.name) != 1 and b'EngineCore' in (folder / 'cmdline').read_bytes():
        os.kill(int(folder.name), signal.SIGKILL)
"""
END = "import os, signal; os.kill(1, signal.SIGTERM)"

REQUEST = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})
try:
    print(urllib.request.urlopen(request, timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

FLIP = """
import sys
with open(sys.argv[1], 'r+b') as file:
    file.seek(-100, 2)
    byte = file.read(1)
    file.seek(-100, 2)
    file.write(bytes([byte[0] ^ 1]))
"""


@pytest.fixture(scope="module")
def beset(runs: Runs) -> Runs:
    """The namespace with the run, which has just been created."""
    runs.create(tiny_run(NAME, duration=LONG))
    return runs


# --- the operator -----------------------------------------------------------------------------------------------------


def test_an_operator_killed_at_every_stage_and_upgraded_leaves_the_pods_alone(beset: Runs, upgrade: Callable[..., str]) -> None:
    beset.until("pods are there", lambda: len(beset.pods()) >= 2)
    kill_operator(beset)
    window = beset.until_window(NAME, 1, *ANSWERING)["window"]
    attempts = Attempts.of(beset.status(NAME))
    pods = {pod["metadata"]["uid"] for pod in beset.pods()}
    kill_operator(beset)
    beset.until_window(NAME, window + 1)
    upgrade("settings.workers=16")
    beset.until_window(NAME, window + 2)
    kill_operator(beset)

    status = beset.until_continued(NAME)

    assert Attempts.of(status) == attempts
    assert {pod["metadata"]["uid"] for pod in beset.pods()} == pods


def kill_operator(runs: Runs) -> None:
    """Kills the operator's pod without a word; its Deployment makes another."""
    selector = "--selector=app.kubernetes.io/component=operator"
    runs.control_plane.kubectl("delete", "pod", "-n", SYSTEM, selector, "--grace-period=0", "--force")


# --- who reaches it, and what is seen of it -----------------------------------------------------------------------------


def test_vllm_is_out_of_reach_and_the_agent_wants_the_token(beset: Runs) -> None:
    beset.at_work(NAME)
    address = beset.pods("rollout")[0]["status"]["podIP"]
    secret = beset.kubectl("get", "secret", f"{NAME}-token", "--output=jsonpath={.data.token}")

    # NetworkPolicies may not be enforced here: these hold without any.
    with pytest.raises(KubectlError, match="Connection refused"):
        answer(beset, f"http://{address}:{VLLM_PORT}/health", "")
    assert answer(beset, f"http://{address}:{AGENT_PORT}/v1/version", "wrong") == "401"
    assert answer(beset, f"http://{address}:{AGENT_PORT}/v1/version", base64.b64decode(secret).decode()) == "200"


def answer(runs: Runs, url: str, token: str) -> str:
    """The status of an answer to a pod that is not of the run."""
    return runs.shell("python", "-c", REQUEST, url, token).strip()


def test_dashboards_have_data_of_real_pods(beset: Runs, tmp_path: Path) -> None:
    binary()
    beset.at_work(NAME)
    beset.control_plane.kubectl("rollout", "status", "deployment/spinrun-operator", "-n", SYSTEM, "--timeout=120s")
    assert_dashboards_have_data(beset, NAME, tmp_path / "prometheus")


# --- rollouts ---------------------------------------------------------------------------------------------------------


def test_a_rollout_that_is_added_serves_the_same_run(beset: Runs) -> None:
    attempts = beset.at_work(NAME)
    scale(beset, 2)
    assert Attempts.of(beset.until_continued(NAME)) == attempts


def test_rollout_pods_deleted_while_they_generate_and_switch_come_back(beset: Runs) -> None:
    scale(beset, 2)
    attempts = beset.at_work(NAME)
    window = beset.until_window(NAME, 0, *ANSWERING)["window"]
    beset.kubectl("delete", "pod", beset.pod_names("rollout")[0], "--wait=false")
    # A version is staged and switched to in the second in which this activity is seen.
    beset.until_window(NAME, window + 1, "activate")
    beset.kubectl("delete", "pod", beset.pod_names("rollout")[-1], "--grace-period=0", "--force")

    status = beset.until_continued(NAME)
    beset.until("both serve again", lambda: beset.rollouts(NAME) == (2, 2))

    assert Attempts.of(status) == attempts, "the trainer was left alone"


def test_vllm_and_agent_killed_in_their_containers_come_back(beset: Runs) -> None:
    attempts = beset.at_work(NAME)
    beset.until_window(NAME, 0, *ANSWERING)
    pod = beset.pod_names("rollout")[0]
    vllm, agent = restarts(beset, pod, "vllm"), restarts(beset, pod, "agent")
    with suppress(KubectlError):  # the container may end under it
        beset.kubectl("exec", pod, "--container=vllm", "--", "python", "-c", KILL_ENGINE)
    beset.until("vLLM is started again", lambda: restarts(beset, pod, "vllm") == vllm + 1)
    window = beset.at_window(NAME)
    beset.until_window(NAME, window + 2, *ANSWERING)
    with suppress(KubectlError):
        beset.kubectl("exec", pod, "--container=agent", "--", "python", "-c", END)
    beset.until("the agent is started again", lambda: restarts(beset, pod, "agent") == agent + 1)

    status = beset.until_continued(NAME)

    assert Attempts.of(status) == attempts
    assert (restarts(beset, pod, "vllm"), restarts(beset, pod, "agent")) == (vllm + 1, agent + 1)


def test_a_rollout_that_is_taken_away_is_not_missed(beset: Runs) -> None:
    attempts = beset.at_work(NAME)
    scale(beset, 1)
    assert Attempts.of(beset.until_continued(NAME)) == attempts


def scale(runs: Runs, replicas: int) -> None:
    """Has the run so many rollouts, and waits until all of them serve."""
    runs.change(NAME, rollout={"replicas": replicas})
    runs.until(f"{replicas} serve", lambda: runs.rollouts(NAME) == (replicas, replicas), seconds=600)


def restarts(runs: Runs, pod: str, container: str) -> int:
    """How often a container of a pod was started again."""
    found = [each for each in runs.pods("rollout") if each["metadata"]["name"] == pod]
    statuses = found[0]["status"].get("containerStatuses", ()) if found else ()
    return next((each["restartCount"] for each in statuses if each["name"] == container), 0)


# --- the trainer: killed, evicted and drained are told apart ------------------------------------------------------------


@pytest.mark.parametrize("activity", ["generate", "train", "publish"])
def test_a_killed_trainer_is_counted_and_resumes_from_its_checkpoint(beset: Runs, activity: str) -> None:
    attempts = beset.at_work(NAME)
    beset.kill_trainer(NAME, *(ANSWERING if activity == "generate" else (activity,)))

    status = beset.until_continued(NAME, attempt=attempts.total + 1)

    assert Attempts.of(status) == attempts.after(total=1, failed=1)
    assert {line.attempt for line in beset.steps(NAME)} >= {attempts.total, attempts.total + 1}


def test_an_evicted_trainer_is_not_counted_as_a_failure(beset: Runs) -> None:
    attempts = beset.at_work(NAME)
    pod = beset.pod_names("trainer")[0]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": beset.namespace}}
    path = f"/api/v1/namespaces/{beset.namespace}/pods/{pod}/eviction"
    beset.kubectl("create", "--raw", path, "--filename=-", input=json.dumps(eviction))

    status = beset.until_continued(NAME, attempt=attempts.total + 1)

    assert Attempts.of(status) == attempts.after(total=1)


def test_a_drained_node_moves_the_run_on_when_it_is_back(beset: Runs) -> None:
    attempts = beset.at_work(NAME)
    node = beset.pods("trainer")[0]["spec"]["nodeName"]
    beset.kubectl("drain", node, f"--pod-selector=spinrun.dev/run={NAME}", "--ignore-daemonsets", "--delete-emptydir-data")
    try:
        beset.until("the trainer's pod waits for a node", lambda: waits_for_a_node(beset))
    finally:
        beset.kubectl("uncordon", node)

    status = beset.until_continued(NAME, attempt=attempts.total + 1)

    assert Attempts.of(status) == attempts.after(total=1)


def waits_for_a_node(runs: Runs) -> bool:
    """Whether the run says that its pods find no node."""
    degraded = runs.condition(NAME, "Degraded")
    return degraded.get("status") == "True" and degraded.get("reason") == "PodUnschedulable"


# --- the user ---------------------------------------------------------------------------------------------------------


def test_a_suspended_run_has_no_pods_and_resumes_where_it_was(beset: Runs) -> None:
    attempts = beset.at_work(NAME)
    window = beset.at_window(NAME)
    beset.change(NAME, lifecycle={"suspend": True})
    beset.until("it is suspended", lambda: beset.condition(NAME, "Suspended").get("status") == "True")
    beset.until("no pod is left", lambda: not beset.pods())
    beset.change(NAME, lifecycle={"suspend": False})

    status = beset.until_continued(NAME, attempt=attempts.total + 1)

    assert status["window"] >= window
    assert Attempts.of(status) == attempts.after(total=1)


def test_a_damaged_weights_file_is_refused_by_name_until_it_is_whole(beset: Runs) -> None:
    scale(beset, 1)
    attempts = beset.at_work(NAME)
    node = beset.pods("rollout")[0]["spec"]["nodeName"]
    # The successor of the rollout finds no node before the version that it will read is damaged.
    beset.kubectl("cordon", node)
    try:
        beset.kubectl("delete", "pod", beset.pod_names("rollout")[0], "--grace-period=0", "--force")
        beset.until("the rollout is missed", lambda: beset.rollouts(NAME)[0] == 0)
        weights = f"{beset.folder(NAME)}/weights"
        file = beset.until("a version is waited for", lambda: newest_file(beset, weights))
        beset.shell("python", "-c", FLIP, file)
    finally:
        beset.kubectl("uncordon", node)

    name = "/".join(file.split("/")[-2:])
    beset.until(f"somebody names {name}", lambda: name in beset.describe())
    assert beset.rollouts(NAME)[0] == 0, "nobody serves it"
    beset.shell("python", "-c", FLIP, file)

    status = beset.until_continued(NAME)
    assert Attempts.of(status) == attempts


def newest_file(runs: Runs, weights: str) -> str:
    """The file of the newest version, once the trainer waits for answers of it; empty while it makes any progress."""
    before = runs.progress(NAME)
    time.sleep(2)
    waits = runs.progress(NAME).get("window") == before.get("window") and before.get("activity") in (*ANSWERING, "activate")
    if not waits:
        return ""
    return runs.shell("sh", "-c", f"ls {weights}/v*/*.safetensors | tail -n 1").strip()


def test_a_run_deleted_in_the_middle_takes_its_pods_along_and_leaves_a_ledger_without_damage(beset: Runs, tmp_path: Path) -> None:
    attempts = beset.at_work(NAME)
    beset.measure(NAME)
    folder = beset.folder(NAME)
    beset.kubectl("delete", "spinrun", NAME, "--timeout=60s")
    beset.until("no pod is left", lambda: not beset.pods())

    ledger = beset.ledger(NAME, tmp_path, folder=folder)
    ledger.assert_whole(ended=False)
    assert {line.attempt for line in ledger.metrics} == set(range(1, attempts.total + 1))
