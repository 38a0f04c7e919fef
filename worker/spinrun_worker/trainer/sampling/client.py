"""Rank 0's side of the rollouts: brings a version to the agents, and prompts' samples back.

`Collector` is asynchronous; `RolloutClient` runs one in a thread of its own for a trainer that is not. Followers, one an agent,
ask it again and again how it stands and tell it what is wanted, also while others generate and while the trainer trains.
"""

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self, TypeVar

import aiohttp

from spinrun_api.status import RolloutStatus
from spinrun_protocol.environment import TOKEN_FILE
from spinrun_protocol.wire import TOKEN_HEADER, SampleGroup, Sampling, VersionWanted
from spinrun_worker.errors import Preempted, RunError
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.agents import Agent, AgentClient, AgentError
from spinrun_worker.trainer.sampling.dispatch import Generation, Limits
from spinrun_worker.trainer.sampling.endpoints import Endpoints

logger = logging.getLogger(__name__)

MAX_EXPLAINED = 8

Result = TypeVar("Result")


def _never() -> bool:
    return False


def _ignore(_: object) -> None:
    pass


async def _wait_for_event(event: asyncio.Event, seconds: float) -> None:
    # Not wait_for, which in Python 3.11 loses a cancellation that comes together with the event.
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Collector:
    """The agents of a run. All methods belong to one event loop; `rollouts` and `status_message` may be read from anywhere."""

    def __init__(
        self,
        endpoints: Endpoints,
        token: str,
        *,
        on_wait: Callable[[str], None] = _ignore,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """token: the run's bearer token. on_wait: told what activate or generate waits for, and "" when it goes on."""
        self.limits = limits or Limits()
        self.status_message = ""
        """What is waited for; empty: nothing."""
        self.counts: Counter[str] = Counter()
        """What went wrong since the start: refused (answers that may not reach a loss), duplicates (answers), retried, hedged and
        dropped (prompts), failed_calls."""
        self._endpoints = endpoints
        self._token = token
        self._on_wait = on_wait
        self._clock = clock
        self._agents: dict[str, Agent] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._wanted: VersionWanted | None = None
        self._accepted = False
        self._fatal: BaseException | None = None
        self._happened = asyncio.Event()
        self._http: aiohttp.ClientSession | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # No proxies, and no limit on connections: each agent has several calls under way.
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

    async def activate(self, wanted: VersionWanted, *, minimum: int = 1, stop: Callable[[], bool] = _never) -> set[str]:
        """Bring a version to all agents, now and later ones. Returns the URLs of those that serve it once there are `minimum`.

        Raises Preempted, and RunError naming every agent and its reason when it takes too long.
        """
        self._wanted = wanted
        for agent in self._agents.values():
            agent.wake.set()
        deadline = self._clock() + self.limits.activation_seconds
        try:
            while len(serving := self.ready()) < minimum:
                self.report_waiting(self.explanation())
                if self._clock() > deadline:
                    raise RunError(f"after {self.limits.activation_seconds:.0f} s {self.explanation()}")
                await self.tick(stop)
        finally:
            self.report_waiting("")
        return {agent.url for agent in serving}

    async def generate(
        self,
        prompts: Sequence[PromptRecord],
        *,
        version: int,
        digest: str,
        sampling: Sampling,
        on_progress: Callable[[int], None] = _ignore,
        stop: Callable[[], bool] = _never,
    ) -> list[SampleGroup]:
        """The groups of samples of all prompts, in their order, made by exactly this version, which must have been activated.

        A prompt that no agent can answer, such as one too long for the model, is left out and counted. Raises as Generation.run.
        """
        if self._wanted is None or (self._wanted.version, self._wanted.manifest.digest) != (version, digest):
            raise ValueError(f"version {version} ({digest}) is not the one that was activated")
        generation = Generation(
            self,
            prompts,
            version=version,
            digest=digest,
            sampling=sampling,
            limits=self.limits,
            counts=self.counts,
            clock=self._clock,
        )
        return await generation.run(on_progress=on_progress, stop=stop)

    def rollouts(self) -> RolloutStatus:
        """The agents as one group, for /progress. desired: those that are known."""
        ready = len(self.ready())
        version = self._wanted.version if self._wanted is not None and ready else None
        return RolloutStatus(ready=ready, desired=len(self._agents), version=version)

    # What a generation needs

    def served_versions(self) -> list[int]:
        """For each agent that there is, the version that it serves; -1 for one that serves none or does not answer."""
        states = [agent.state for agent in list(self._agents.values())]
        return [-1 if state is None or state.serving is None else state.serving for state in states]

    def ready(self) -> list[Agent]:
        """Agents that serve the wanted version."""
        wanted = self._wanted
        return [] if wanted is None else [agent for agent in list(self._agents.values()) if agent.serves(wanted)]

    def explanation(self) -> str:
        """Why agents do not serve the wanted version, for people."""
        version = self._wanted.version if self._wanted is not None else None
        if not self._agents:
            return f"no rollout serves version {version}: there is none at {self._endpoints}"
        reasons = [f"{agent.url}: {agent.sentence(self._wanted)}" for agent in self._agents.values()]
        more = f"; and {len(reasons) - MAX_EXPLAINED} more" if len(reasons) > MAX_EXPLAINED else ""
        ready = f"{len(self.ready())} of {len(reasons)} rollouts serve" if self.ready() else "no rollout serves"
        return f"{ready} version {version}: {'; '.join(reasons[:MAX_EXPLAINED])}{more}"

    def refused(self, agent: Agent, error: AgentError) -> None:
        """An agent does not accept the token.

        When none ever did, the token is wrong: raises RunError. Otherwise it is the agent of another run that got the address
        of one of ours, and not for long.
        """
        if not self._accepted:
            name = os.environ.get(TOKEN_FILE, "not set")
            fatal = self._fatal = RunError(
                f"{agent.url} does not accept the token of {TOKEN_FILE} ({name}): {error}. "
                "The trainer and its rollouts must be given the same token"
            )
            raise fatal

    async def tick(self, stop: Callable[[], bool]) -> None:
        """Wait until something has happened, or for a moment."""
        await _wait_for_event(self._happened, self.limits.tick_seconds)
        self._happened.clear()
        if self._fatal is not None:
            raise self._fatal
        if stop():
            raise Preempted("stopped while waiting for the rollouts")

    def happened(self) -> None:
        """Something has happened."""
        self._happened.set()

    def report_waiting(self, message: str) -> None:
        """Tell what is waited for, when that has changed."""
        if message != self.status_message:
            self.status_message = message
            self._on_wait(message)

    # Background

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run for ever; should it fail, the next tick does."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                self._fatal = error
                self.happened()

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
            self.happened()
            await asyncio.sleep(self.limits.resolve_seconds)

    def _welcome(self, url: str) -> None:
        assert self._http is not None
        limits = self.limits
        client = AgentClient(url, self._http, request_seconds=limits.request_seconds, silence_seconds=limits.silence_seconds)
        agent = self._agents[url] = Agent(url, client, max_calls=limits.calls_in_flight)
        self._followers[url] = self._in_background(self._follow(agent))
        logger.info("rollout %s: found", url)

    def _dismiss(self, url: str) -> None:
        # Woken too, because aiohttp loses a cancellation that comes together with a time-out: the follower sees that it can go.
        self._agents.pop(url).wake.set()
        self._followers.pop(url).cancel()

    async def _follow(self, agent: Agent) -> None:
        """Ask an agent how it stands and tell it what is wanted, as long as it is one of ours."""
        asked_since, wanted = self._clock(), None
        while agent.url in self._agents:
            agent.wake.clear()
            if wanted is not self._wanted:
                asked_since, wanted = self._clock(), self._wanted
            if wanted is not None:
                await self._visit(agent, wanted)
            served = wanted is not None and agent.serves(wanted)
            # Often at first, because everybody waits for a version that a rollout may load in less than a second.
            patience = max(self.limits.tick_seconds / 5, (self._clock() - asked_since) / 10)
            await _wait_for_event(agent.wake, self.limits.poll_seconds * 5 if served else min(self.limits.poll_seconds, patience))

    async def _visit(self, agent: Agent, wanted: VersionWanted) -> None:
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
                    self.refused(agent, error)
        else:
            agent.state = state
            agent.unreachable_since = None
        self._log_change(agent, wanted)
        self.happened()

    def _log_change(self, agent: Agent, wanted: VersionWanted) -> None:
        sentence = agent.sentence(wanted)
        if sentence != agent.told:
            agent.told = sentence
            bad = agent.state is None or agent.state.state == "failed"
            logger.log(logging.WARNING if bad else logging.INFO, "rollout %s: %s", agent.url, sentence)


class RolloutClient:
    """A Collector for a trainer that is synchronous: it lives in a thread of its own, and follows the agents all the time."""

    def __init__(
        self, rollouts: str, token: str, *, on_wait: Callable[[str], None] = _ignore, limits: Limits | None = None
    ) -> None:
        """rollouts: as in SPINRUN_ROLLOUTS. on_wait: called from the other thread while the caller waits here.

        Raises ConfigurationError when rollouts names no agents.
        """
        self._collector = Collector(Endpoints(rollouts), token, on_wait=on_wait, limits=limits)
        self._under_way: set[Future[list[SampleGroup]]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="collector", daemon=True)
        self._thread.start()
        self._wait(self._collector.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counter[str]:
        """What went wrong since the start, by name."""
        return self._collector.counts

    @property
    def status_message(self) -> str:
        """What is waited for; empty: nothing."""
        return self._collector.status_message

    def rollouts(self) -> RolloutStatus:
        """The agents as one group, for /progress."""
        return self._collector.rollouts()

    def served_versions(self) -> list[int]:
        """As Collector.served_versions."""
        return self._collector.served_versions()

    def activate(self, wanted: VersionWanted, *, minimum: int = 1, stop: Callable[[], bool] = _never) -> set[str]:
        """As Collector.activate. stop: called from the other thread."""
        return self._wait(self._collector.activate(wanted, minimum=minimum, stop=stop))

    def start(
        self,
        prompts: Sequence[PromptRecord],
        *,
        version: int,
        digest: str,
        sampling: Sampling,
        on_progress: Callable[[int], None] = _ignore,
        stop: Callable[[], bool] = _never,
    ) -> Future[list[SampleGroup]]:
        """Begin Collector.generate; several may be under way. on_progress and stop: called from the other thread."""
        work = self._collector.generate(
            prompts, version=version, digest=digest, sampling=sampling, on_progress=on_progress, stop=stop
        )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def cancel(self) -> None:
        """End all generations that are under way."""
        for future in tuple(self._under_way):
            future.cancel()

    def close(self) -> None:
        """Leave the agents alone and end the thread. May be called twice."""
        if self._loop.is_closed():
            return
        self._wait(self._collector.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupt of the caller ends the work too
            raise
