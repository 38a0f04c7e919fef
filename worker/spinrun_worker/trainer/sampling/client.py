"""Rank 0's side of the rollouts: brings a version to the agents, and prompts' samples back.

`Collector` is asynchronous; `RolloutClient` runs one in a thread of its own for a trainer that is not.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from spinrun_api.status import RolloutStatus
from spinrun_protocol.wire import SampleGroup, Sampling, VersionWanted
from spinrun_worker.errors import RunError
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.dispatch import Generation
from spinrun_worker.trainer.sampling.endpoints import Endpoints
from spinrun_worker.trainer.sampling.fleet import Fleet
from spinrun_worker.trainer.sampling.limits import SamplingLimits
from spinrun_worker.trainer.sampling.waiting import Waiting

Result = TypeVar("Result")


def _never() -> bool:
    return False


def _ignore(_: object) -> None:
    pass


class Collector:
    """Has a run's agents serve versions and answer prompts.

    All methods belong to one event loop; `rollouts`, `served_versions` and `status_message` may be read from anywhere.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        token: str,
        *,
        on_wait: Callable[[str], None] = _ignore,
        limits: SamplingLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to collect. Agents are followed once the collector is entered.

        Args:
            endpoints: Where the agents are.
            token: The run's bearer token.
            on_wait: Told what activate or generate waits for, and "" when it continues.
            limits: Times and sizes; None: the defaults.
            clock: Gives the time in seconds.
        """
        self.counts: Counter[str] = Counter()
        """What went wrong since the start: refused (answers that may not reach a loss), duplicates (answers), retried, hedged and
        dropped (prompts), failed_calls."""
        self._limits = limits or SamplingLimits()
        self._clock = clock
        self._waiting = Waiting(self._limits.tick_seconds, on_wait)
        self._fleet = Fleet(endpoints, token, self._waiting, limits=self._limits, clock=clock)

    async def __aenter__(self) -> Self:
        await self._fleet.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._fleet.__aexit__()

    @property
    def status_message(self) -> str:
        """What is waited for; empty: nothing."""
        return self._waiting.message

    async def activate(self, wanted: VersionWanted, *, minimum: int = 1, stop: Callable[[], bool] = _never) -> set[str]:
        """Bring a version to all agents, those that are there and those that come later.

        Args:
            wanted: The version.
            minimum: How many agents must serve it before this returns.
            stop: Whether to give up; asked in every tick.

        Returns:
            The URLs of the agents that serve it.

        Raises:
            Preempted: `stop` says so.
            RunError: It takes too long. Names every agent and its reason.
        """
        self._fleet.want(wanted)
        deadline = self._clock() + self._limits.activation_seconds
        try:
            while len(serving := self._fleet.ready()) < minimum:
                self._waiting.report(self._fleet.explanation())
                if self._clock() > deadline:
                    raise RunError(f"after {self._limits.activation_seconds:.0f} s {self._fleet.explanation()}")
                await self._waiting.tick(stop)
        finally:
            self._waiting.report("")
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
        """Have prompts answered by exactly one version.

        Args:
            prompts: Those to answer, with different ids.
            version: The version, which must be the one that was activated last.
            digest: Digest of its weights.
            sampling: How to sample.
            on_progress: Told how many prompts are done.
            stop: Whether to give up; asked in every tick.

        Returns:
            The prompts' groups of samples, in the order of the prompts. A prompt that no agent can answer, such as one too long
            for the model, is left out and counted.

        Raises:
            ValueError: The version is not the one that was activated, or two prompts have the same id.
            Preempted: `stop` says so.
            RunError: A prompt fails again and again, all fail for good, or no agent answers for too long.
        """
        wanted = self._fleet.wanted
        if wanted is None or (wanted.version, wanted.manifest.digest) != (version, digest):
            raise ValueError(f"version {version} ({digest}) is not the one that was activated")
        generation = Generation(
            self._fleet,
            prompts,
            version=version,
            digest=digest,
            sampling=sampling,
            limits=self._limits,
            counts=self.counts,
            clock=self._clock,
        )
        return await generation.run(on_progress=on_progress, stop=stop)

    def rollouts(self) -> RolloutStatus:
        """The agents as one group, for /progress. desired: those that are known."""
        ready, wanted = len(self._fleet.ready()), self._fleet.wanted
        version = wanted.version if wanted is not None and ready else None
        return RolloutStatus(ready=ready, desired=len(self._fleet.agents()), version=version)

    def served_versions(self) -> list[int]:
        """For each agent that there is, the version that it serves; -1 for one that serves none or does not answer."""
        states = [agent.state for agent in self._fleet.agents()]
        return [-1 if state is None or state.serving is None else state.serving for state in states]


class RolloutClient:
    """A Collector for a trainer that is synchronous. It runs in a thread of its own, and follows the agents all the time."""

    def __init__(
        self, rollouts: str, token: str, *, on_wait: Callable[[str], None] = _ignore, limits: SamplingLimits | None = None
    ) -> None:
        """Start the thread, which begins to follow the agents.

        Args:
            rollouts: Where the agents are, as in SPINRUN_ROLLOUTS.
            token: The run's bearer token.
            on_wait: Told what is waited for; called from the other thread.
            limits: Times and sizes; None: the defaults.

        Raises:
            ConfigurationError: `rollouts` is malformed or names no agent.
        """
        self._collector = Collector(Endpoints(rollouts), token, on_wait=on_wait, limits=limits)
        self._generations: set[Future[list[SampleGroup]]] = set()
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
        """See Collector.served_versions."""
        return self._collector.served_versions()

    def activate(self, wanted: VersionWanted, *, minimum: int = 1, stop: Callable[[], bool] = _never) -> set[str]:
        """See Collector.activate. `stop` is called from the other thread."""
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
        """Begin Collector.generate; several may run at once. `on_progress` and `stop` are called from the other thread."""
        work = self._collector.generate(
            prompts, version=version, digest=digest, sampling=sampling, on_progress=on_progress, stop=stop
        )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._generations.add(future)
        future.add_done_callback(self._generations.discard)
        return future

    def cancel(self) -> None:
        """End all generations that have not ended."""
        for future in tuple(self._generations):
            future.cancel()

    def close(self) -> None:
        """Stop following the agents and end the thread. May be called twice."""
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
            future.cancel()  # interrupting the caller ends the work too
            raise
