"""The calls of one generation: each sends prompts to an agent and takes in what its stream says of them.

Nothing is lost with an agent: what it leaves unanswered goes back to the front of the backlog.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from spinrun_protocol.wire import Prompt, PromptFailed, SampleGroup, SamplesRequest, Sampling
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.agents import Agent, AgentError, Call
from spinrun_worker.trainer.sampling.backlog import Backlog
from spinrun_worker.trainer.sampling.fleet import Fleet
from spinrun_worker.trainer.sampling.limits import SamplingLimits

logger = logging.getLogger(__name__)

# Failures that are about the agent and say nothing of the prompts.
_AGENTS_OWN = {"Unauthorized", "StaleVersion", "TooManyRequests", "Draining", "Unreachable"}


class Calls:
    """The calls of one generation."""

    def __init__(
        self,
        fleet: Fleet,
        backlog: Backlog,
        *,
        version: int,
        digest: str,
        sampling: Sampling,
        limits: SamplingLimits,
        counts: Counter[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No call is in flight yet.

        Args:
            fleet: Whose agents are called; told when one of them does not accept the token.
            backlog: Where prompts go back to, and answers to.
            version: The version that shall answer.
            digest: Digest of its weights.
            sampling: How to sample.
            limits: Times and sizes.
            counts: What goes wrong is added to it, by name.
            clock: Gives the time in seconds.
        """
        self._fleet = fleet
        self._backlog = backlog
        self._version, self._digest, self._sampling = version, digest, sampling
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self.in_flight: set[Call] = set()
        """Calls that have not ended, or whose end `reap` has not seen."""

    def start(self, agent: Agent, prompts: Sequence[PromptRecord]) -> None:
        """Have an agent answer prompts."""
        request = SamplesRequest(
            version=self._version,
            digest=self._digest,
            sampling=self._sampling,
            prompts=tuple(Prompt(id=prompt.id, tokens=prompt.tokens) for prompt in prompts),
        )
        call = Call(agent, {prompt.id for prompt in prompts}, last_line=self._clock())

        def ended(_: object) -> None:
            agent.calls.discard(call)
            self._fleet.waiting.notify()

        call.task = asyncio.create_task(self._serve(call, request))
        call.task.add_done_callback(ended)
        agent.calls.add(call)
        self.in_flight.add(call)

    def reap(self) -> None:
        """Forget calls that have ended. Raises what ended the generation in one of them."""
        for call in [call for call in self.in_flight if call.task.done()]:
            self.in_flight.discard(call)
            if not call.task.cancelled():
                call.task.result()
            self._put_back(call, call.missing)

    async def finish(self) -> None:
        """Give calls whose prompts are all answered a moment for their end lines, so that connections can be used again."""
        tasks = [call.task for call in self.in_flight if not call.hedged]
        if tasks:
            await asyncio.wait(tasks, timeout=self._limits.tick_seconds)

    async def cancel(self) -> None:
        """End all calls."""
        tasks = [call.task for call in self.in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, call: Call, request: SamplesRequest) -> None:
        """Make a call, and take in the agent's stream to its end."""
        try:
            async with call.agent.client.samples(request) as lines:
                call.streaming = True
                async for line in lines:
                    call.last_line = self._clock()
                    self._take_in(call, line)
                    self._fleet.waiting.notify()
        except AgentError as error:
            self._fail_call(call, error)
        except asyncio.CancelledError:
            if not call.cut:
                raise
            self._fail_call(call, AgentError("Cut", call.cut))
        else:
            call.agent.max_calls = min(call.agent.max_calls + 1, self._limits.calls_in_flight)
            self._fail_prompts(call, call.missing, "the agent ended its stream without an answer to it")

    def _take_in(self, call: Call, line: SampleGroup | PromptFailed) -> None:
        """Take in what an agent says of one prompt."""
        if line.id not in call.missing:
            # Answered by another agent first, or twice by this one, or not among the prompts at all.
            self._counts["duplicates" if line.id in self._backlog else "refused"] += 1
        elif isinstance(line, PromptFailed):
            if line.retryable:
                self._fail_prompts(call, {line.id}, line.reason)
            else:
                self._counts["dropped"] += 1
                self._backlog.drop(line.id, line.reason)
                self._settle(call, line.id)
        elif problem := self._problem_with(line):
            self._counts["refused"] += 1
            logger.warning("%s: the answer to prompt %s is refused: %s", call.agent, line.id, problem)
            self._fail_prompts(call, {line.id}, problem)
        else:
            call.agent.failures = 0
            self._backlog.answer(line)
            self._settle(call, line.id)

    def _problem_with(self, group: SampleGroup) -> str:
        """Why a group must not reach a loss; empty when it may."""
        if (group.version, group.digest) != (self._version, self._digest):
            return f"it is of version {group.version} ({group.digest}), wanted is {self._version} ({self._digest})"
        if len(group.samples) != self._sampling.n:
            return f"it has {len(group.samples)} samples, wanted are {self._sampling.n}"
        if any(
            sample.token_logprobs is not None and len(sample.token_logprobs) != len(sample.tokens) for sample in group.samples
        ):
            return "a sample has log-probs of more or fewer tokens than it has"
        return ""

    def _settle(self, by: Call, name: str) -> None:
        """A prompt is done: no other agent needs to answer it."""
        by.missing.discard(name)
        for call in self.in_flight:
            if name in call.missing:
                call.missing.discard(name)
                if not call.missing:
                    call.end("others have answered all its prompts")

    def _fail_prompts(self, call: Call, names: Collection[str], reason: str) -> None:
        """An agent failed prompts, which may cost each a try. The agent gets nothing until it has said again what it serves.

        Raises:
            RunError: A prompt has no try left.
        """
        for name in names:
            self._counts["retried"] += 1
            self._backlog.fail(name, call.agent, reason, now=self._clock())
        if names:
            call.agent.doubt(reason)
            call.agent.rest(self._clock(), self._limits)
        self._put_back(call, names)

    def _fail_call(self, call: Call, error: AgentError) -> None:
        """A call failed as a whole."""
        agent = call.agent
        if call.missing and error.reason not in _AGENTS_OWN:
            self._counts["failed_calls"] += 1
            logger.warning("%s: a call with %d prompts failed: %s", agent, len(call.missing), error)
            self._fail_prompts(call, call.missing, str(error))
            return
        if error.reason == "Unauthorized":
            self._fleet.token_refused(agent, error)
        if error.reason == "TooManyRequests":
            agent.max_calls = max(1, len(agent.calls) - 1)
            agent.rest(self._clock(), self._limits)
        elif call.missing:
            agent.doubt(f"{error.reason}: {error}")
            agent.rest(self._clock(), self._limits)
        self._put_back(call, call.missing)

    def _put_back(self, call: Call, names: Collection[str]) -> None:
        """Take prompts from a call and put those back into the backlog that no other call has."""
        names = list(names)
        call.missing.difference_update(names)
        self._backlog.put_back(name for name in names if not any(name in other.missing for other in self.in_flight))
