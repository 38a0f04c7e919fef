"""A `spinrun` command beside a run's ledger: in a short-lived pod of the operator's image that mounts its claim read-only.

The command's stdout is the pod's log and comes here as it is written; its stderr is the pod's termination message.
"""

import asyncio
import secrets
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_cli.cluster.client import Cluster, ConflictError, NotFoundError
from spinrun_cli.cluster.runs import parsed
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_kube import names
from spinrun_kube.kinds import CHILDREN, POD, Kind
from spinrun_operator.children import pods
from spinrun_operator.settings import PullPolicy, Settings
from spinrun_protocol.commands import Process

Json = dict[str, Any]
Arguments = Callable[[str], list[str]]
"""The arguments of `spinrun`, from the path of the run's ledger."""

START_SECONDS = 180.0
"""Longest wait for the pod to start: its image may have to be pulled."""
RUN_SECONDS = 600.0
"""Longest time that the command may take."""
MAX_OUTPUT_BYTES = 256 << 20
POLL_SECONDS = 0.5

CONTAINER = "spinrun"
# The trainer's container needs what it computes with; reading a ledger needs this at most.
RESOURCES: Json = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
# Where the run's own pods may go and what they may read; all else of their template is about training.
KEPT = ("serviceAccountName", "securityContext", "imagePullSecrets", "nodeSelector", "tolerations", "runtimeClassName")
HOPELESS = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError")
"""Why a container waits when waiting longer does not help."""

UNKNOWN = ("No such command", "No such option", "spinrun: not found")
"""What an older SpinRun in the image says of a command that it does not know."""

_KINDS = {kind.name: kind for kind in CHILDREN}
_CLAIM, _JOB, _STATEFUL_SET = _KINDS["PersistentVolumeClaim"], _KINDS["Job"], _KINDS["StatefulSet"]


async def run_beside_ledger(
    cluster: Cluster, document: Json, arguments: Arguments, write: Callable[[bytes], object], *, image: str | None = None
) -> None:
    """Runs a `spinrun` command beside the run's ledger and hands its output on as it comes; the pod is deleted whatever happens.

    Args:
        cluster: Where the run is.
        document: The run.
        arguments: Of the command.
        write: Takes the output.
        image: To use instead of the operator's.

    Raises:
        CommandError: The pod cannot start or takes too long, or the command itself failed.
    """
    run = parsed(document)
    namespace = names.namespace(run)
    await _check_claim(cluster, run)
    ledger = pods.ledger_folder(run)
    pod = ledger_pod(run, arguments(ledger), *await _source(cluster, run, image))
    name = pod["metadata"]["name"]
    with _signals_cancel():
        try:
            # A request whose answer was lost is sent again; nobody else uses the name.
            with suppress(ConflictError):
                await cluster.request("POST", POD, namespace, body=pod)
            ended = await _until_started(cluster, namespace, name)
            if _state(ended).keys() - {"waiting"}:
                ended = await _follow(cluster, namespace, name, write)
        finally:
            with suppress(NotFoundError):
                await cluster.request("DELETE", POD, namespace, name, body={"apiVersion": "v1", "kind": "DeleteOptions"})
    _check_end(ended, run, ledger)


# --- the pod -------------------------------------------------------------------------------------------------------


def ledger_pod(run: SpinRun, arguments: Sequence[str], image: str, template: Json, pull_policy: PullPolicy) -> Json:
    """The pod that runs `spinrun ARGUMENTS...`.

    It has none of the labels of the run's pods, for which the operator and `spinrun suspend --wait` would take it. It is deleted
    with its run at the latest.

    Args:
        run: Whose ledger it reads.
        arguments: Of the command.
        image: Of the container.
        template: The spec of a pod of the run.
        pull_policy: When the image is pulled.
    """
    script = f'exec spinrun "$@" 2>{TERMINATION_LOG}'
    container = pods.container(
        CONTAINER,
        image,
        Process(["sh", "-c", script, "spinrun", *arguments]),
        Settings(image_pull_policy=pull_policy),
        mounts=[pods.read_only(pods.LEDGER_MOUNT)],
        resources=RESOURCES,
        terminationMessagePath=TERMINATION_LOG,
        terminationMessagePolicy="File",
    )
    metadata = {
        "name": f"{run.metadata.name}-look-{secrets.token_hex(3)}",
        "namespace": names.namespace(run),
        "labels": {"app.kubernetes.io/name": "spinrun", names.COMPONENT_LABEL: "ledger-reader"},
        "ownerReferences": [names.owner_reference(run) | {"controller": False}],
    }
    spec = {key: template[key] for key in KEPT if key in template} | {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        # Should this program be killed, the pod ends all the same.
        "activeDeadlineSeconds": int(START_SECONDS + RUN_SECONDS),
        "affinity": template.get("affinity", {}) | {"podAffinity": _beside(run)},
        "containers": [container],
        "volumes": [
            {"name": "ledger", "persistentVolumeClaim": {"claimName": names.claim_name(run)}},
            {"name": "home", "emptyDir": {}},
        ],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


TERMINATION_LOG = "/dev/termination-log"


def _beside(run: SpinRun) -> Json:
    """On the node of the run's pods where that is possible: a ReadWriteOnce volume is there, and the image."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {names.UID_LABEL: run.metadata.uid or ""}}}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


async def _check_claim(cluster: Cluster, run: SpinRun) -> None:
    name = names.claim_name(run)
    try:
        await cluster.request("GET", _CLAIM, names.namespace(run), name)
    except NotFoundError as error:
        raise NotFoundError(f"{run.metadata.name} has no ledger: its claim {name} does not exist, or not yet") from error


async def _source(cluster: Cluster, run: SpinRun, image: str | None) -> tuple[str, Json, PullPolicy]:
    """Image, pod spec and pull policy.

    The image is the operator's, as the run's status tells: a run may name any image for itself. An operator from before it was
    told leaves that of the trainer. The rest is that of the trainer; of the agents where no trainer is there, as while the run
    is suspended.
    """
    status = run.status or SpinRunStatus()
    attempt, image = status.attempt or 1, image or status.ledger_image
    candidates: list[tuple[Kind, str, str]] = [
        (_JOB, names.job_name(run, attempt), "trainer"),
        (_STATEFUL_SET, names.rollout_name(run), "agent"),
    ]
    for kind, name, container_name in candidates:
        with suppress(NotFoundError):
            owner = await cluster.request("GET", kind, names.namespace(run), name)
            spec = owner["spec"]["template"]["spec"]
            container = next(each for each in spec["containers"] if each["name"] == container_name)
            return image or container["image"], spec, container["imagePullPolicy"]
    if image is None:
        raise CommandError(
            f"{run.metadata.name} has neither trainer nor rollouts to take the image from: choose one with --image"
        )
    defaults = Settings()
    user = defaults.run_as_user
    security = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
    spec = {"securityContext": security | {"seccompProfile": {"type": "RuntimeDefault"}}}
    return image, spec, defaults.image_pull_policy


# --- its life ------------------------------------------------------------------------------------------------------


async def _until_started(cluster: Cluster, namespace: str, name: str) -> Json:
    """The pod, as soon as the command runs or will never run. Raises CommandError that says what is in the way."""
    started = time.monotonic()
    while True:
        pod = await cluster.request("GET", POD, namespace, name)
        if pod.get("status", {}).get("phase") == "Failed" or not _state(pod).keys() <= {"waiting"}:
            return pod
        reason, message = _obstacle(pod)
        if reason in HOPELESS or time.monotonic() - started > START_SECONDS:
            why = f"{reason}: {message}" if reason else "no reason is known"
            raise CommandError(f"the pod {name}, which reads the ledger, did not start ({why}); see --image")
        await asyncio.sleep(POLL_SECONDS)


def _state(pod: Json) -> Json:
    """The state of the one container; empty while the kubelet has said nothing of it."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    return statuses[0].get("state") or {}


def _obstacle(pod: Json) -> tuple[str, str]:
    """Reason and message of what a pod that has not started waits for; empty when nobody says."""
    waiting = _state(pod).get("waiting") or {}
    conditions = pod.get("status", {}).get("conditions") or ()
    unscheduled = next((each for each in conditions if each["type"] == "PodScheduled" and each["status"] == "False"), {})
    found = waiting or unscheduled
    return found.get("reason", ""), found.get("message", "")


async def _follow(cluster: Cluster, namespace: str, name: str, write: Callable[[bytes], object]) -> Json:
    """Hands the output on until the command has ended. Returns the pod as it is then."""
    try:
        async with asyncio.timeout(RUN_SECONDS):
            async with aclosing(cluster.log(namespace, name, container=CONTAINER, follow="true")) as log:
                async for piece in log:
                    write(piece)
            while True:
                pod = await cluster.request("GET", POD, namespace, name)
                if "terminated" in _state(pod) or pod["status"].get("phase") == "Failed":
                    return pod
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise CommandError(f"the pod {name} was still reading the ledger after {RUN_SECONDS:g} s") from error


def _check_end(pod: Json, run: SpinRun, ledger: str) -> None:
    """Raises what the command ended with."""
    ended = _state(pod).get("terminated")
    if ended is None:
        status = pod["status"]
        raise CommandError(f"the pod {pod['metadata']['name']} was terminated: {status.get('reason')}: {status.get('message')}")
    if ended["exitCode"] == 0:
        return
    said = (ended.get("message") or "").strip().removeprefix("error: ")
    if said.startswith(f"there is no folder {ledger}:"):
        raise CommandError(f"{run.metadata.name} has written nothing to its ledger yet: see `spinrun watch {run.metadata.name}`")
    unknown = [line.strip("│ ") for line in said.splitlines() if any(each in line for each in UNKNOWN)]
    if unknown:
        said = f"the image has another version of SpinRun ({unknown[-1]}): choose a newer image with --image"
    message = said or f"the command in the pod ended with exit code {ended['exitCode']} ({ended.get('reason')})"
    raise (InvalidInputError if ended["exitCode"] == InvalidInputError.exit_code else CommandError)(message)


@contextmanager
def _signals_cancel() -> Generator[None]:
    """Also a closed terminal and SIGTERM let the pod be deleted, as Ctrl-C does."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    caught: list[signal.Signals] = []

    def cancel(number: signal.Signals) -> None:
        caught.append(number)
        task.cancel()

    numbers = (signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, cancel, number)
    try:
        yield
    except asyncio.CancelledError:
        if caught:
            raise SystemExit(128 + caught[0]) from None
        raise
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def output_of(cluster: Cluster, document: Json, arguments: Arguments, *, image: str | None = None) -> bytes:
    """All that a `spinrun` command prints beside the run's ledger. It raises what `run_beside_ledger` raises."""
    output = bytearray()

    def keep(piece: bytes) -> None:
        if len(output) + len(piece) > MAX_OUTPUT_BYTES:
            raise CommandError(f"the pod says more than {MAX_OUTPUT_BYTES >> 20} MB of the ledger: ask for less of it")
        output.extend(piece)

    await run_beside_ledger(cluster, document, arguments, keep, image=image)
    return bytes(output)
