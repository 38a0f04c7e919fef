"""The agents of a run as they come and go: which there are, what each serves, and telling them which version is wanted.

Each agent has a follower, a task that asks it again and again which state it is in and tells it what is wanted, also while others
generate and while the trainer trains.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

import aiohttp

from spinrun_protocol.environment import TOKEN_FILE
from spinrun_protocol.wire import TOKEN_HEADER, VersionWanted
from spinrun_worker.errors import RunError
from spinrun_worker.trainer.sampling.agents import Agent, AgentClient, AgentError
from spinrun_worker.trainer.sampling.endpoints import Endpoints
from spinrun_worker.trainer.sampling.limits import SamplingLimits
from spinrun_worker.trainer.sampling.waiting import Waiting, wait_for_event

logger = logging.getLogger(__name__)

MAX_EXPLAINED = 8


class Fleet:
    """The agents of a run. All methods belong to one event loop; `agents` and `ready` may be called from anywhere."""

    def __init__(
        self,
        endpoints: Endpoints,
        token: str,
        waiting: Waiting,
        *,
        limits: SamplingLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No agent is known before the fleet is entered.

        Args:
            endpoints: Where the agents are.
            token: The run's bearer token.
            waiting: Those who wait for the agents; woken whenever something has changed.
            limits: Times and sizes.
            clock: Gives the time in seconds.
        """
        self.waiting = waiting
        self.wanted: VersionWanted | None = None
        """The version that agents are told to serve; see `want`."""
        self._endpoints = endpoints
        self._token = token
        self._limits = limits
        self._clock = clock
        self._agents: dict[str, Agent] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._accepted = False
        """Whether an agent has ever accepted the token."""
        self._http: aiohttp.ClientSession | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # No proxies, and no limit on connections: each agent has several calls in flight.
        self._http = aiohttp.ClientSession(
            headers={TOKEN_HEADER: f"Bearer {self._token}"}, connector=aiohttp.TCPConnector(limit=0), trust_env=False
        )
        self._watcher = self._in_background(self._watch_endpoints())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is None or self._http is None:
            return
        self._watcher.cancel()
        followers = list(self._followers.values())
        for url in list(self._agents):
            self._dismiss(url)
        await asyncio.gather(self._watcher, *followers, return_exceptions=True)
        await self._http.close()

    def want(self, wanted: VersionWanted) -> None:
        """Tell all agents to serve a version, those that are there and those that come later. Returns at once."""
        self.wanted = wanted
        for agent in self._agents.values():
            agent.wake.set()

    def agents(self) -> list[Agent]:
        """All agents that are known."""
        return list(self._agents.values())

    def ready(self) -> list[Agent]:
        """Agents that serve the wanted version."""
        wanted = self.wanted
        return [] if wanted is None else [agent for agent in self.agents() if agent.serves(wanted)]

    def explanation(self) -> str:
        """Why agents do not serve the wanted version, for people."""
        version = self.wanted.version if self.wanted is not None else None
        if not self._agents:
            return f"no rollout serves version {version}: there is none at {self._endpoints}"
        reasons = [f"{agent}: {agent.description(self.wanted)}" for agent in self._agents.values()]
        more = f"; and {len(reasons) - MAX_EXPLAINED} more" if len(reasons) > MAX_EXPLAINED else ""
        ready = f"{len(self.ready())} of {len(reasons)} rollouts serve" if self.ready() else "no rollout serves"
        return f"{ready} version {version}: {'; '.join(reasons[:MAX_EXPLAINED])}{more}"

    def token_refused(self, agent: Agent, error: AgentError) -> None:
        """Judge an agent's refusal of the token.

        When no agent ever accepted it, the token is wrong. Otherwise this agent belongs to another run and has got the address of
        one of ours, but not for long.

        Raises:
            RunError: The token is wrong. Every later tick of `waiting` raises it too.
        """
        if not self._accepted:
            name = os.environ.get(TOKEN_FILE, "not set")
            fatal = RunError(
                f"{agent} does not accept the token of {TOKEN_FILE} ({name}): {error}. "
                "The trainer and its rollouts must be given the same token"
            )
            self.waiting.fail(fatal)
            raise fatal

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run forever; should it fail, the next tick of `waiting` does."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                self.waiting.fail(error)

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        return task

    async def _watch_endpoints(self) -> None:
        """Follow agents as they come and go. One that is gone but still answers a call is kept until it has ended."""
        while True:
            urls = await self._endpoints.urls()
            for url in urls - self._agents.keys():
                self._welcome(url)
            for url in self._agents.keys() - urls:
                if not self._agents[url].calls:
                    logger.info("rollout %s: gone", url)
                    self._dismiss(url)
            self.waiting.notify()
            await asyncio.sleep(self._limits.resolve_seconds)

    def _welcome(self, url: str) -> None:
        assert self._http is not None
        limits = self._limits
        client = AgentClient(url, self._http, request_seconds=limits.request_seconds, silence_seconds=limits.silence_seconds)
        agent = self._agents[url] = Agent(url, client, max_calls=limits.calls_in_flight)
        self._followers[url] = self._in_background(self._follow(agent))
        logger.info("rollout %s: found", url)

    def _dismiss(self, url: str) -> None:
        # Woken too, because aiohttp loses a cancellation that comes together with a timeout: the follower sees that it can go.
        self._agents.pop(url).wake.set()
        self._followers.pop(url).cancel()

    async def _follow(self, agent: Agent) -> None:
        """Ask an agent for its state and tell it what is wanted, as long as it is one of ours."""
        asked_since, wanted = self._clock(), None
        while agent.url in self._agents:
            agent.wake.clear()
            if wanted is not self.wanted:
                asked_since, wanted = self._clock(), self.wanted
            if wanted is not None:
                await self._visit(agent, wanted)
            served = wanted is not None and agent.serves(wanted)
            # Often at first, because everybody waits for a version that a rollout may load in less than a second.
            patience = max(self._limits.tick_seconds / 5, (self._clock() - asked_since) / 10)
            poll_seconds = self._limits.poll_seconds
            await wait_for_event(agent.wake, poll_seconds * 5 if served else min(poll_seconds, patience))

    async def _visit(self, agent: Agent, wanted: VersionWanted) -> None:
        """Ask an agent for its state, once, and tell it what is wanted unless it knows."""
        try:
            state = await agent.client.state()
            self._accepted = True
            if (state.wanted, state.wanted_digest) != (wanted.version, wanted.manifest.digest):
                state = await agent.client.want(wanted)
        except AgentError as error:
            agent.state = None
            agent.trouble = f"{error.reason}: {error}"
            if error.reason == "Unreachable" and agent.unreachable_since is None:
                agent.unreachable_since = self._clock()
            if error.reason == "Unauthorized":
                with suppress(RunError):  # raised by the next tick
                    self.token_refused(agent, error)
        else:
            agent.state = state
            agent.unreachable_since = None
        description = agent.description(wanted)
        if description != agent.logged:
            agent.logged = description
            bad = agent.state is None or agent.state.state == "failed"
            logger.log(logging.WARNING if bad else logging.INFO, "rollout %s: %s", agent, description)
        self.waiting.notify()
