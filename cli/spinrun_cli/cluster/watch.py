"""Snapshots of a run in the cluster: its status, and the Events about it."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from spinrun_api.status import SpinRunStatus
from spinrun_cli.cluster.client import Access, Cluster, run
from spinrun_cli.cluster.follow import follow
from spinrun_cli.cluster.status import is_finished, snapshot_of
from spinrun_cli.errors import CommandError
from spinrun_cli.show.snapshot import Snapshot
from spinrun_cli.terminal import Show
from spinrun_kube import times
from spinrun_kube.kinds import EVENT, SPIN_RUN

Json = dict[str, Any]

NUM_EVENTS = 4
EVENTS_SECONDS = 10.0
"""Time between two looks at the Events."""


def watch_run(name: str, access: Access, show: Show) -> Snapshot:
    """Shows a run until it has ended.

    Returns:
        The last snapshot.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    return run(access, partial(_watch, name, show))


async def _watch(name: str, show: Show, cluster: Cluster) -> Snapshot:
    document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
    watcher = Watcher(name, document["metadata"]["uid"], show)
    events = asyncio.create_task(watcher.keep_events(cluster))
    try:
        await follow(cluster, document, watcher, is_finished, timeout=None, goal="over")
    finally:
        events.cancel()
        await asyncio.gather(events, return_exceptions=True)
    return watcher.snapshot


class Watcher:
    """What has been seen of a run since it is watched: its status has the newest figures only."""

    def __init__(self, name: str, uid: str, show: Show) -> None:
        self.snapshot = Snapshot(name, "Pending")
        self._uid = uid
        self._show = show
        self._accuracies: dict[int, float] = {}
        self._events: Sequence[str] = ()
        self._seen: tuple[object, ...] = ()

    def show(self, name: str, status: SpinRunStatus) -> None:
        """The run was looked at."""
        # Else the time that is left would be news each time.
        if self._seen == (status, self._events):
            return
        self._seen = (status, self._events)
        accuracy = status.metrics.accuracy if status.metrics else None
        if status.window is not None and accuracy is not None:
            self._accuracies[status.window] = accuracy
        self.snapshot = snapshot_of(name, status, accuracies=self._accuracies, news=self._events)
        self._show(self.snapshot)

    async def keep_events(self, cluster: Cluster) -> None:
        """Looks at the Events about the run from time to time. Who may not see them sees the rest."""
        while True:
            with suppress(CommandError):
                found = await cluster.items(EVENT, cluster.namespace, fieldSelector=f"involvedObject.uid={self._uid}")
                newest = sorted(found, key=times.of_event)[-NUM_EVENTS:]
                self._events = [f"{times.of_event(each)} {each['reason']}: {each['message']}" for each in newest]
            await asyncio.sleep(EVENTS_SECONDS)
