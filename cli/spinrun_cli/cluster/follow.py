"""Following runs until something holds: a line for each change, and on a terminal the present state below them."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rich.markup import escape

from spinrun_api.status import SpinRunStatus
from spinrun_cli.cluster.client import Cluster, NotFoundError, UnreachableError
from spinrun_cli.cluster.status import snapshot_of, status_of
from spinrun_cli.console import Console
from spinrun_cli.errors import CommandError
from spinrun_cli.show.render import line, state
from spinrun_kube.kinds import SPIN_RUN

Json = dict[str, Any]

POLL_SECONDS = 2.0
OUTAGE_SECONDS = 300.0
"""How long the API server may be away while a run is followed, as during its upgrade."""


class StatusListener(Protocol):
    """Whom a run is shown to while it is followed."""

    def show(self, name: str, status: SpinRunStatus) -> None:
        """The run was looked at."""


class ProgressPrinter:
    """Tells how runs proceed: in lines and, on a terminal, with the newest state of each below them."""

    def __init__(self) -> None:
        self._milestones: dict[str, tuple[object, ...]] = {}
        self._lines: dict[str, str] = {}
        self._console = Console(highlight=False, soft_wrap=True)
        self._status = self._console.status("")

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._status.stop()

    def show(self, name: str, status: SpinRunStatus) -> None:
        """The run was looked at; a line when something has changed."""
        snapshot = snapshot_of(name, status)
        self._lines[name] = line(snapshot)
        self._status.update(escape("\n".join(self._lines.values())))
        if self._milestones.get(name) != snapshot.milestone:
            self._milestones[name] = snapshot.milestone
            self._console.print(self._lines[name], markup=False)


async def follow(
    cluster: Cluster,
    run: Json,
    listener: StatusListener,
    until: Callable[[Json], bool],
    *,
    timeout: float | None,
    goal: str,
) -> Json:
    """Waits until something holds for a run, and shows it meanwhile.

    Args:
        cluster: Where the run is.
        run: Its document.
        listener: Shows it.
        until: What is waited for.
        timeout: Seconds; None: for ever.
        goal: What is waited for, in words.

    Returns:
        The document as it is then.

    Raises:
        CommandError: The run is deleted, the time is over, or the API server stays away.
    """
    name, namespace, uid = (run["metadata"][key] for key in ("name", "namespace", "uid"))
    started = answered = time.monotonic()
    while not until(run):
        listener.show(name, status_of(run))
        if timeout is not None and time.monotonic() - started > timeout:
            now = state(snapshot_of(name, status_of(run)))
            raise CommandError(f"{name} is not {goal} after {timeout:g} s: {now}; it continues without this command")
        await asyncio.sleep(POLL_SECONDS)
        try:
            run = await cluster.request("GET", SPIN_RUN, namespace, name)
            answered = time.monotonic()
        except NotFoundError as error:
            raise CommandError(f"{name} was deleted") from error
        except UnreachableError:
            if time.monotonic() - answered > OUTAGE_SECONDS:
                raise
        if run["metadata"]["uid"] != uid:
            raise CommandError(f"{name} was deleted, and another run has its name now")
    listener.show(name, status_of(run))
    return run
