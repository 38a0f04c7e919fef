"""Following runs until something holds: a line for each piece of news, and on a terminal the present state below them."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.markup import escape

from spinrun_api.status import Condition, SpinRunStatus
from spinrun_cli.cluster.client import Cluster, NotFoundError, UnreachableError
from spinrun_cli.errors import CommandError
from spinrun_kube.kinds import SPIN_RUN

Json = dict[str, Any]

POLL_SECONDS = 2.0
OUTAGE_SECONDS = 300.0
"""How long the API server may be away while a run is followed, as during its upgrade."""


class Listener(Protocol):
    """Whom a run is shown to while it is followed."""

    def show(self, name: str, status: SpinRunStatus) -> None:
        """The run was looked at."""


class Reporter:
    """Tells how runs get on. On a terminal the newest state of each stays at the bottom; elsewhere there are plain lines only."""

    def __init__(self) -> None:
        self._news: dict[str, tuple[object, ...]] = {}
        self._lines: dict[str, str] = {}
        self._console = Console(highlight=False, soft_wrap=True)
        self._status = self._console.status("")

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._status.stop()

    def show(self, name: str, status: SpinRunStatus) -> None:
        """The run was looked at; a line when there is news."""
        self._lines[name] = f"{name}: {summary(status)}"
        self._status.update(escape("\n".join(self._lines.values())))
        if self._news.get(name) != news(status):
            self._news[name] = news(status)
            self._console.print(self._lines[name], markup=False)


async def follow(
    cluster: Cluster,
    run: Json,
    reporter: Listener,
    until: Callable[[Json], bool],
    *,
    timeout: float | None,
    goal: str,
) -> Json:
    """The run, as soon as `until` holds for it. timeout: seconds, None for ever. goal: what is waited for, in words.

    Raises CommandError when the run is deleted, the time is over, or the API server stays away.
    """
    name, namespace, uid = (run["metadata"][key] for key in ("name", "namespace", "uid"))
    started = answered = time.monotonic()
    while not until(run):
        reporter.show(name, status_of(run))
        if timeout is not None and time.monotonic() - started > timeout:
            raise CommandError(
                f"{name} is not {goal} after {timeout:g} s: {summary(status_of(run))}; it goes on without this command"
            )
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
    reporter.show(name, status_of(run))
    return run


def status_of(run: Json) -> SpinRunStatus:
    """The status of a run; an empty one where the operator has not seen it yet."""
    return SpinRunStatus.model_validate(run.get("status") or {})


def condition(status: SpinRunStatus, kind: str) -> Condition | None:
    """The condition of a type when it holds."""
    return next((each for each in status.conditions if each.type == kind and each.status == "True"), None)


def is_finished(run: Json) -> bool:
    """Whether the run is Complete or Failed."""
    return outcome(status_of(run)) is not None


def outcome(status: SpinRunStatus) -> Condition | None:
    """The condition Complete or Failed of a run that is over."""
    return condition(status, "Complete") or condition(status, "Failed")


def news(status: SpinRunStatus) -> tuple[object, ...]:
    """Changes when there is something to tell: not with each step, of which there may be thousands."""
    trouble = condition(status, "Degraded")
    accuracy = status.metrics.accuracy if status.metrics else None
    return status.phase, status.attempt, status.window, accuracy, trouble and (trouble.reason, trouble.message)


def summary(status: SpinRunStatus) -> str:
    """The state in one line."""
    if (end := outcome(status)) is not None:
        return f"{end.type} ({end.reason}): {end.message}"
    parts = [status.phase or "waiting for the operator"]
    if status.window is not None:
        parts.append(f"window {status.window}/{status.windows}")
    if status.step is not None:
        parts.append(f"step {status.step}/{status.total_steps}")
    if status.metrics is not None:
        figures = status.metrics.model_dump(include={"loss", "accuracy"}, exclude_none=True)
        parts += [f"{name} {value:g}" for name, value in figures.items()]
    if status.rollouts is not None and status.rollouts.ready < status.rollouts.desired:
        parts.append(f"{status.rollouts.ready} of {status.rollouts.desired} rollouts ready")
    if status.attempt is not None and status.attempt > 1:
        parts.append(f"attempt {status.attempt}")
    if status.eta is not None:
        parts.append(f"ends {status.eta}")
    if (trouble := condition(status, "Degraded")) is not None:
        parts.append(f"{trouble.reason}: {trouble.message}")
    return ", ".join(parts)
