"""Pictures of a run in the cluster: its status, and the Events about it."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, get_args

from spinrun_api.status import Metrics, RolloutStatus, SpinRunStatus
from spinrun_cli.cluster.client import Access, Cluster, run
from spinrun_cli.cluster.follow import condition, follow, is_finished, outcome
from spinrun_cli.errors import CommandError
from spinrun_cli.show.picture import Outcome, Picture, WindowFigures
from spinrun_cli.terminal import Show
from spinrun_kube import times
from spinrun_kube.kinds import EVENT, SPIN_RUN
from spinrun_protocol.wire import Activity, Progress

Json = dict[str, Any]

NUM_EVENTS = 4
EVENTS_SECONDS = 10.0
"""Time between two looks at the Events."""


def watch_run(name: str, access: Access, show: Show) -> Picture:
    """Shows a run until it has ended. Returns the last picture. Raises CommandError."""
    return run(access, partial(_watch, name, show))


async def _watch(name: str, show: Show, cluster: Cluster) -> Picture:
    document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
    watcher = Watcher(name, document["metadata"]["uid"], show)
    events = asyncio.create_task(watcher.keep_events(cluster))
    try:
        await follow(cluster, document, watcher, is_finished, timeout=None, goal="over")
    finally:
        events.cancel()
        await asyncio.gather(events, return_exceptions=True)
    return watcher.picture


class Watcher:
    """What has been seen of a run since it is watched: its status has the newest figures only."""

    def __init__(self, name: str, uid: str, show: Show) -> None:
        self.picture = Picture(name, "Pending")
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
        end, trouble = outcome(status), condition(status, "Degraded")
        self.picture = Picture(
            name=name,
            phase=status.phase or "waiting for the operator",
            attempt=status.attempt or 0,
            progress=progress_of(status, self._uid),
            windows=[WindowFigures(window, accuracy=value) for window, value in sorted(self._accuracies.items())],
            trouble=f"{trouble.reason}: {trouble.message}" if trouble else "",
            news=self._events,
            outcome=Outcome(end.type, end.message) if end else None,
        )
        self._show(self.picture)

    async def keep_events(self, cluster: Cluster) -> None:
        """Looks at the Events about the run from time to time. Who may not see them sees the rest."""
        while True:
            with suppress(CommandError):
                found = await cluster.items(EVENT, cluster.namespace, fieldSelector=f"involvedObject.uid={self._uid}")
                newest = sorted(found, key=times.of_event)[-NUM_EVENTS:]
                self._events = [f"{times.of_event(each)} {each['reason']}: {each['message']}" for each in newest]
            await asyncio.sleep(EVENTS_SECONDS)


def progress_of(status: SpinRunStatus, uid: str) -> Progress | None:
    """What the status tells of the trainer's progress; None before there is any."""
    if status.window is None:
        return None
    seconds = None
    if status.eta is not None:
        seconds = times.seconds_between(times.utc_now(), times.from_text(status.eta))
    fields = status.model_dump(include={"window", "windows", "step", "total_steps", "version", "best"}, exclude_none=True)
    return Progress.model_validate(
        {"windows": 0, "step": 0, "total_steps": 0}
        | fields
        | {
            "uid": uid,
            "attempt": status.attempt or 1,
            "activity": status.activity if status.activity in get_args(Activity) else "starting",
            "rollouts": status.rollouts or RolloutStatus(),
            "metrics": status.metrics or Metrics(),
            "eta_seconds": seconds,
        }
    )
