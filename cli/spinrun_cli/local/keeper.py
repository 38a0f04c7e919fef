"""Keeps servers alive: starts each again when it dies, with another port when its own was taken."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NoReturn, Protocol

import httpx

from spinrun_cli.local.child import Child
from spinrun_cli.local.disk import full_disk_hint
from spinrun_protocol.commands import Process
from spinrun_protocol.exit_codes import ExitCode

MAX_DEATHS = 5
"""A vLLM, agent or scorer that has died this often and never answered will not answer the next time either."""
POLL_SECONDS = 1.0


class GaveUpError(Exception):
    """A process does not start, however often."""

    def __init__(self, message: str, *, exit_code: int = ExitCode.FAILED) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class ChildObserver(Protocol):
    """Is told how children do."""

    def set_state(self, child: Child, state: str) -> None:
        """A child is starting, ready, restarting or has died."""

    def warn(self, message: str) -> None:
        """Something went wrong that a person should know."""


class Keeper:
    """Starts children, again and again where they are servers."""

    def __init__(
        self, environment: Mapping[str, str], observer: ChildObserver, backoff: Callable[[int], float], client: httpx.AsyncClient
    ) -> None:
        """Starts nothing yet.

        Args:
            environment: Of all children.
            observer: Is told how they do.
            backoff: Seconds to wait after a number of deaths in a row.
            client: Asks servers for their health.
        """
        self._environment = environment
        self._observer = observer
        self._backoff = backoff
        self._client = client
        # Children that we end ourselves, because the port of one that they talk to has changed.
        self._moved: set[Child] = set()

    async def start(self, child: Child, process: Callable[[], Process]) -> None:
        """Start a life with the ports of this moment, and end it again if one of them moved while it was being started."""
        self._moved.discard(child)
        await child.start(process(), self._environment)
        if child in self._moved:
            child.terminate()

    def restart(self, child: Child) -> None:
        """End a child so that it is started again with other ports; that is not a failure of its own."""
        self._moved.add(child)
        child.terminate()

    def has_moved(self, child: Child) -> bool:
        """Whether `restart` has ended the child's life, or will have."""
        return child in self._moved

    async def keep(
        self, child: Child, process: Callable[[], Process], health_url: Callable[[], str], move: Callable[[], None]
    ) -> NoReturn:
        """Start a server again whenever it dies.

        Args:
            child: The server.
            process: What it is started with, at its port of the moment.
            health_url: Where it answers once it is ready.
            move: Gives it another port, and restarts those that talk to it.

        Raises:
            GaveUpError: It never answers.
        """
        deaths, ever_healthy = 0, False
        while True:
            self._observer.set_state(child, "restarting" if deaths else "starting")
            await self.start(child, process)
            code, healthy = await self._life(child, health_url())
            if child in self._moved:
                continue
            if hint := full_disk_hint(child.log.parent):
                # It can say nothing itself: there is no room for its words.
                raise GaveUpError(f"{child.name} ended with exit code {code}. {hint}")
            deaths = 1 if healthy else deaths + 1
            ever_healthy = ever_healthy or healthy
            self._observer.set_state(child, "died")
            if child.found_port_taken():
                self._observer.warn(f"{child.name}: another process took its port; trying another one")
                move()
            elif code == ExitCode.INVALID_CONFIGURATION and not ever_healthy:
                # Agents say by it that their input is wrong, and vLLM that its arguments are: both stay so.
                raise GaveUpError(with_log(f"{child.name} refuses its input (exit code {code})", child), exit_code=code)
            elif deaths == 1:
                self._observer.warn(with_log(f"{child.name} ended with exit code {code}; starting it again", child, count=5))
            if deaths >= MAX_DEATHS and not ever_healthy:
                raise GaveUpError(with_log(f"{child.name} does not start: exit code {code}, {deaths} times", child))
            await asyncio.sleep(self._backoff(deaths))

    async def _life(self, child: Child, health_url: str) -> tuple[int, bool]:
        """Wait for a child's end. Its exit code, and whether it ever answered."""
        ended = asyncio.create_task(child.wait())
        healthy = False
        while not ended.done():
            if not healthy and await self._answers(health_url):
                healthy = True
                self._observer.set_state(child, "ready")
            await asyncio.wait({ended}, timeout=POLL_SECONDS)
        return ended.result(), healthy

    async def _answers(self, url: str) -> bool:
        with suppress(httpx.HTTPError):
            return (await self._client.get(url)).is_success
        return False


def with_log(message: str, child: Child, *, count: int = 20) -> str:
    """A message with the end of a child's log below it."""
    lines = child.last_lines(count)
    return "\n".join([f"{message}. The end of {child.log}:", *(f"  | {line}" for line in lines or ["(empty)"])])
