"""One generation: which agent answers which prompts, and when to stop waiting for one.

Agents take small batches from one backlog, so that a fast one answers more.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

from spinrun_protocol.wire import SampleGroup, Sampling
from spinrun_worker.errors import RunError
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.agents import Agent
from spinrun_worker.trainer.sampling.backlog import Backlog
from spinrun_worker.trainer.sampling.calls import Calls
from spinrun_worker.trainer.sampling.fleet import Fleet
from spinrun_worker.trainer.sampling.limits import SamplingLimits

logger = logging.getLogger(__name__)


class Generation:
    """Has prompts answered by one version."""

    def __init__(
        self,
        fleet: Fleet,
        prompts: Sequence[PromptRecord],
        *,
        version: int,
        digest: str,
        sampling: Sampling,
        limits: SamplingLimits,
        counts: Counter[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to answer prompts.

        Args:
            fleet: The agents, which have been told to serve the version.
            prompts: Those to answer, with different ids.
            version: The version that shall answer.
            digest: Digest of its weights.
            sampling: How to sample.
            limits: Times and sizes.
            counts: What goes wrong is added to it, by name.
            clock: Gives the time in seconds.

        Raises:
            ValueError: Two prompts have the same id.
        """
        self._fleet = fleet
        self._backlog = Backlog(prompts, limits)
        self._calls = Calls(
            fleet,
            self._backlog,
            version=version,
            digest=digest,
            sampling=sampling,
            limits=limits,
            counts=counts,
            clock=clock,
        )
        self._samples_per_prompt = sampling.n
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self._last_stream = clock()
        """When an agent was last answering a call."""

    async def run(self, *, on_progress: Callable[[int], None], stop: Callable[[], bool]) -> list[SampleGroup]:
        """Have the prompts answered.

        Args:
            on_progress: Told how many prompts are done.
            stop: Whether to give up; asked in every tick.

        Returns:
            Every prompt's group, in the order of the prompts; those that no agent can answer are left out and counted.

        Raises:
            Preempted: `stop` says so.
            RunError: A prompt fails again and again, all fail for good, or no agent answers for too long.
        """
        told = -1
        try:
            while self._backlog.num_done < len(self._backlog):
                if told != self._backlog.num_done:
                    on_progress(told := self._backlog.num_done)
                self._end_lost_calls()
                self._give_out()
                self._hedge_stalled_calls()
                self._check_wait()
                await self._fleet.waiting.tick(stop)
                self._calls.reap()
            await self._calls.finish()
        finally:
            self._fleet.waiting.report("")
            await self._calls.cancel()
        on_progress(self._backlog.num_done)
        return self._backlog.result()

    def _give_out(self) -> None:
        """Start calls until every agent has enough to do, or its share of what is left."""
        now = self._clock()
        serving = self._fleet.ready()
        ready = [agent for agent in serving if agent.rests_until <= now]
        if not ready:
            return
        # A prompt that failed on one agent does not wait for another one that has fallen silent.
        candidates = [agent for agent in serving if not any(call.hedged for call in agent.calls)]
        share = math.ceil((len(self._backlog) - self._backlog.num_done) / len(ready))
        enough = min(share, math.ceil(self._limits.sequences_in_flight / self._samples_per_prompt))
        for agent in sorted(ready, key=lambda agent: len(agent.answering)):
            while len(agent.answering) < enough and len(agent.calls) < agent.max_calls:
                count = self._call_size(agent, enough, share)
                prompts = self._backlog.take(agent, count, except_for=agent.answering, candidates=candidates)
                if not prompts:
                    break
                self._calls.start(agent, prompts)

    def _call_size(self, agent: Agent, enough: int, share: int) -> int:
        """Prompts of an agent's next call: more than usual when it has few calls left to reach `enough`."""
        usual = max(1, self._limits.sequences_per_call // self._samples_per_prompt)
        room = enough - len(agent.answering)
        free_calls = agent.max_calls - len(agent.calls)
        return min(max(usual, math.ceil(room / free_calls)), share - len(agent.answering))

    def _end_lost_calls(self) -> None:
        """End calls to agents that have been unreachable for too long."""
        now = self._clock()
        for call in self._calls.in_flight:
            since = call.agent.unreachable_since
            if since is not None and now - max(since, call.last_line) > self._limits.lost_seconds:
                call.end(f"the agent has not answered for {now - since:.0f} s")

    def _hedge_stalled_calls(self) -> None:
        """Give prompts of silent agents to those that have nothing else left to do. The first answer counts."""
        if all(agent.calls for agent in self._fleet.ready()):
            return
        now = self._clock()
        for call in self._calls.in_flight:
            silent = now - call.last_line
            if not call.hedged and silent > self._limits.stall_seconds:
                call.hedged = True
                self._counts["hedged"] += len(call.missing)
                logger.warning("%s: no line for %.0f s: others get its %d prompts too", call.agent, silent, len(call.missing))
                self._backlog.append(call.missing)

    def _check_wait(self) -> None:
        """Report what is waited for.

        Raises:
            RunError: No agent has been answering for too long.
        """
        now = self._clock()
        if any(call.streaming for call in self._calls.in_flight):
            self._last_stream = now
        waits = not self._calls.in_flight and not self._fleet.ready()
        self._fleet.waiting.report(self._fleet.explanation() if waits else "")
        if now - self._last_stream > self._limits.wait_seconds:
            raise RunError(
                f"no agent answered for {self._limits.wait_seconds:.0f} s, with {self._backlog.num_done} of {len(self._backlog)} "
                f"prompts done: {self._fleet.explanation()}"
            )
