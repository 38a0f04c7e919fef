"""`spinrun logs` of a run in the cluster: the logs of its pods' containers."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_cli.cluster import follow
from spinrun_cli.cluster.client import Access, Cluster, NotFoundError, UnreachableError, run
from spinrun_cli.cluster.runs import parsed, pod_labels
from spinrun_cli.cluster.status import is_finished, status_of
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.log_lines import LineSplitter, LineWriter
from spinrun_cli.queries import LogsQuery
from spinrun_kube import names, times
from spinrun_kube.kinds import POD, SPIN_RUN

Json = dict[str, Any]

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
"""Number of the node that a trainer pod is."""


@dataclass(frozen=True)
class Source:
    """One life of a container."""

    pod: str
    container: str
    life: int
    """How often it was started before."""
    uid: str
    state: str
    """running, terminated or waiting."""
    reason: str
    """Why it waits."""
    has_ended_before: bool

    @property
    def name(self) -> str:
        """What its lines are marked with."""
        return self.pod if self.container == names.TRAINER else f"{self.pod} {self.container}"

    @property
    def is_started(self) -> bool:
        """Whether this life has begun."""
        return self.state != "waiting"

    @property
    def has_log(self) -> bool:
        """Whether there is a log of this life or, while it waits to be started again, of the one before."""
        return self.is_started or self.has_ended_before


def show_logs(name: str, query: LogsQuery, access: Access, *, as_json: bool) -> None:
    """Prints logs of a run's pods, with `follow` also of those that come later, until the run has ended.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    run(access, partial(_show, name, query, as_json))


async def _show(name: str, query: LogsQuery, as_json: bool, cluster: Cluster) -> None:
    document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
    found = await _sources(cluster, document, query)
    if not query.follow:
        _check(document, found, query)
    write = LineWriter(as_json=as_json, expected=len(found))
    if not query.follow:
        for source in found:
            if source.has_log:
                await _print(cluster, source, query, write)
        return
    await _follow(cluster, document, query, write)


def _check(document: Json, found: Sequence[Source], query: LogsQuery) -> None:
    """Raises CommandError when there is nothing to print."""
    name = document["metadata"]["name"]
    phase = status_of(document).phase or "not seen by the operator yet"
    if not found and query.previous:
        raise CommandError(f"{name}: no previous log is kept of such a container or attempt")
    if not found:
        raise CommandError(f"{name} has no such pods: it is {phase}; `spinrun get {name}` lists its pods")
    if not query.previous and not any(source.has_log for source in found):
        waiting = ", ".join(f"{source.name} ({source.reason or 'waiting'})" for source in found)
        raise CommandError(f"{name} has no logs yet: its containers are waiting: {waiting}")


async def _sources(cluster: Cluster, document: Json, query: LogsQuery) -> list[Source]:
    """The containers that are meant."""
    pods = await cluster.items(POD, document["metadata"]["namespace"], labelSelector=pod_labels(document))
    return chosen(parsed(document), pods, query)


def chosen(run: SpinRun, pods: Sequence[Json], query: LogsQuery) -> list[Source]:
    """The containers that are meant, the trainer's first: of its newest attempt or, with `previous`, of the one before.

    Raises:
        InvalidInputError: The trainer does not have such a rank.
    """
    attempts = sorted({_attempt(pod) for pod in pods} - {0})
    wanted_attempt = attempts[-2 if query.previous else -1] if len(attempts) > query.previous else None
    node = None if query.rank is None else str(_node(run, query.rank))
    found: list[Source] = []
    for pod in sorted(pods, key=lambda pod: (_attempt(pod) == 0, pod["metadata"]["name"])):
        metadata = pod["metadata"]
        is_trainer = _attempt(pod) != 0
        if query.pod not in (None, metadata["name"]) or (is_trainer and query.pod is None and _attempt(pod) != wanted_attempt):
            continue
        if node is not None and metadata["labels"].get(INDEX_LABEL) != node:
            continue
        for status in pod.get("status", {}).get("containerStatuses") or _unseen(pod):
            if not _is_of_role(query.role, metadata, status["name"]) or (
                query.previous and not is_trainer and not status["restartCount"]
            ):
                continue
            found.append(_source(metadata, status))
    return found


def _is_of_role(role: str | None, metadata: Json, container: str) -> bool:
    """Whether a container of a pod with this metadata is meant."""
    if role == names.SCORER:
        return metadata["labels"].get(names.COMPONENT_LABEL) == names.SCORER
    return role in (None, container)


def _source(metadata: Json, status: Json) -> Source:
    """A container by its pod's metadata and its own status."""
    state, detail = next(iter(status["state"].items()), ("waiting", {}))
    reason, before = detail.get("reason", ""), bool(status.get("lastState"))
    return Source(metadata["name"], status["name"], status["restartCount"], metadata["uid"], state, reason, before)


def _attempt(pod: Json) -> int:
    """Attempt of a trainer's pod; 0 for others."""
    return int(pod["metadata"]["labels"].get(names.ATTEMPT_LABEL, 0))


def _node(run: SpinRun, rank: int) -> int:
    """Number of the node that has a rank. Raises InvalidInputError."""
    trainer = run.spec.trainer
    ranks = trainer.nodes * trainer.procs_per_node
    if rank >= ranks:
        raise InvalidInputError(f"there is no rank {rank}: the trainer has {ranks}, counted from 0")
    return rank // trainer.procs_per_node


def _unseen(pod: Json) -> list[Json]:
    """The containers of a pod that no node has looked at."""
    state = {"waiting": {"reason": pod.get("status", {}).get("phase", "Pending")}}
    return [{"name": each["name"], "restartCount": 0, "state": state} for each in pod["spec"]["containers"]]


async def _follow(cluster: Cluster, document: Json, query: LogsQuery, write: LineWriter) -> None:
    """Prints the logs of all pods that there are and that come, until the run has ended."""
    namespace, name, uid = (document["metadata"][key] for key in ("namespace", "name", "uid"))
    printing: dict[tuple[str, str, int], asyncio.Task[None]] = {}
    try:
        while True:
            for source in await _sources(cluster, document, query):
                key = (source.uid, source.container, source.life)
                if source.is_started and key not in printing:
                    printing[key] = asyncio.create_task(_print(cluster, source, query, write))
            ended = [task for task in printing.values() if task.done()]
            for task in ended:
                task.result()
            if is_finished(document) and len(ended) == len(printing):
                return
            await asyncio.sleep(follow.POLL_SECONDS)
            document = await cluster.request("GET", SPIN_RUN, namespace, name)
            if document["metadata"]["uid"] != uid:
                raise CommandError(f"{name} was deleted, and another run has its name now")
    finally:
        for task in printing.values():
            task.cancel()
        await asyncio.gather(*printing.values(), return_exceptions=True)


async def _print(cluster: Cluster, source: Source, query: LogsQuery, write: LineWriter) -> None:
    """Prints the log of a container; while it is followed, also over outages."""
    namespace, splitter = cluster.namespace, LineSplitter()
    parameters = {"container": source.container}
    parameters |= {"follow": "true"} if query.follow else {}
    parameters |= {"previous": "true"} if query.previous and source.container != names.TRAINER else {}
    parameters |= {} if query.tail is None else {"tailLines": str(query.tail)}
    while True:
        try:
            async with aclosing(cluster.log(namespace, source.pod, **parameters)) as log:
                async for piece in log:
                    for line in splitter.lines(piece):
                        write(source.name, line)
                    parameters.pop("tailLines", None)
                    parameters["sinceTime"] = times.to_text(times.utc_now())
            break
        except NotFoundError:
            break  # the pod went while its log was read
        except UnreachableError:
            if not query.follow:
                raise
            await asyncio.sleep(follow.POLL_SECONDS)
    for line in splitter.end():
        write(source.name, line)
