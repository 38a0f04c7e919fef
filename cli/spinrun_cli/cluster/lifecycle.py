"""`spinrun suspend`, `resume` and `delete`."""

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import Any

from spinrun_cli.cluster.client import Access, Cluster, NotFoundError, run
from spinrun_cli.cluster.follow import POLL_SECONDS, ProgressPrinter, follow
from spinrun_cli.cluster.runs import ledger_place, pod_labels, resource_name
from spinrun_cli.cluster.status import condition, is_finished, outcome, status_of
from spinrun_cli.errors import CommandError
from spinrun_cli.output import echo
from spinrun_kube.api import MERGE_PATCH
from spinrun_kube.kinds import POD, SPIN_RUN

Json = dict[str, Any]

FIELD_MANAGER = "spinrun-suspend"
"""Not that of `submit`: a file that contradicts a later command meets a conflict that names the command."""


def suspend(name: str, access: Access, *, wait: bool, timeout: float | None) -> None:
    """Suspends a run; with `wait`, until its pods are gone.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    run(access, partial(_set_suspend, name, True, wait, timeout))


def resume(name: str, access: Access, *, wait: bool, timeout: float | None) -> None:
    """Resumes a suspended run; with `wait`, until its trainer and rollouts are ready.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    run(access, partial(_set_suspend, name, False, wait, timeout))


def delete(name: str, access: Access, *, wait: bool, timeout: float | None) -> None:
    """Deletes a run and says where its ledger stays; with `wait`, until its pods are gone.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    run(access, partial(_delete, name, wait, timeout))


async def _set_suspend(name: str, wanted: bool, wait: bool, timeout: float | None, cluster: Cluster) -> None:
    before = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
    if (end := outcome(status_of(before))) is not None:
        raise CommandError(f"{name} is already {end.type}: there is nothing to {'suspend' if wanted else 'resume'}")
    patch, query = {"spec": {"lifecycle": {"suspend": wanted}}}, {"fieldManager": FIELD_MANAGER}
    after = await cluster.request("PATCH", SPIN_RUN, cluster.namespace, name, query=query, body=patch, content_type=MERGE_PATCH)
    is_news = before["spec"]["lifecycle"]["suspend"] != wanted
    echo(f"{resource_name(name)} {'suspended' if wanted else 'resumed'}{'' if is_news else ' already'}")
    if not wait:
        return
    until, goal = (_is_suspended, "suspended") if wanted else (_is_running, "running")
    with ProgressPrinter() as printer:
        after = await follow(cluster, after, printer, until, timeout=timeout, goal=goal)
    if (end := outcome(status_of(after))) is not None and end.type == "Failed":
        raise CommandError(f"{name} failed: {end.message}")


def _is_suspended(run: Json) -> bool:
    """Whether no pod is left; a run may also end before that."""
    return is_finished(run) or (_is_seen(run) and condition(status_of(run), "Suspended") is not None)


def _is_running(run: Json) -> bool:
    """Whether trainer and rollouts are ready; a short run may be over by then."""
    return is_finished(run) or (_is_seen(run) and condition(status_of(run), "Ready") is not None)


def _is_seen(run: Json) -> bool:
    """Whether the status speaks of the spec as it is now."""
    return status_of(run).observed_generation == run["metadata"]["generation"]


async def _delete(name: str, wait: bool, timeout: float | None, cluster: Cluster) -> None:
    document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
    preconditions = {"uid": document["metadata"]["uid"]}
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions, "propagationPolicy": "Background"}
    # It may be gone by now: an answer can be lost, and the request be sent again.
    with suppress(NotFoundError):
        await cluster.request("DELETE", SPIN_RUN, cluster.namespace, name, body=body)
    echo(f"{resource_name(name)} deleted")
    echo(f"  {ledger_place(document)}")
    if wait:
        await _until_gone(document, timeout, cluster)


async def _until_gone(document: Json, timeout: float | None, cluster: Cluster) -> None:
    """Waits until no pod of the run is left that could still write to the ledger."""
    started = time.monotonic()
    while pods := await cluster.items(POD, cluster.namespace, labelSelector=pod_labels(document)):
        if timeout is not None and time.monotonic() - started > timeout:
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise CommandError(f"after {timeout:g} s these pods are still there: {names}")
        await asyncio.sleep(POLL_SECONDS)
    echo("  all its pods are gone")
