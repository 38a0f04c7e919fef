"""One generation: prompts that wait, agents that take them, and what happens when agents fail.

Agents pull small batches from one queue, so that a fast one answers more. Nothing is lost with an agent: what it leaves
unanswered goes back to the front of the queue.
"""

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from spinrun_protocol.wire import Prompt, PromptFailed, SampleGroup, SamplesRequest, Sampling
from spinrun_worker.errors import RunError
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.agents import Agent, AgentError, Call

logger = logging.getLogger(__name__)

# Failures that are about the agent and say nothing of the prompts.
_AGENTS_OWN = {"Unauthorized", "StaleVersion", "TooManyRequests", "Draining", "Unreachable"}


@dataclass(frozen=True)
class Limits:
    """How long the collector waits and how much it asks for at once."""

    activation_seconds: float = 1800.0
    """Until enough agents serve a version: a pod may have to pull its image first."""
    wait_seconds: float = 1800.0
    """Without any agent that answers, in a generation."""
    stall_seconds: float = 300.0
    """Without a line from an agent, after which idle agents get its prompts too."""
    silence_seconds: float = 1800.0
    """Without a line from an agent, after which its stream counts as cut."""
    lost_seconds: float = 60.0
    """Without an answer to the question how it stands, after which an agent's streams count as cut."""
    request_seconds: float = 10.0
    """For a small call."""
    poll_seconds: float = 1.0
    """Between two questions to an agent that does not serve the wanted version, and less at first; five times that to one that
    does."""
    resolve_seconds: float = 5.0
    """Between two looks at who the agents are."""
    tick_seconds: float = 0.25
    """Between two looks at the clock and at `stop`."""
    first_backoff_seconds: float = 0.5
    """Longest first pause of an agent that failed; it doubles with each failure in a row."""
    longest_backoff_seconds: float = 30.0
    """Longest pause of an agent that failed."""
    tries: int = 5
    """Failures of one prompt after which the run cannot go on."""
    outage_seconds: float = 60.0
    """Time for which a prompt's failures count as one while nobody answers any other prompt: a vLLM that has died fails them all
    until it is found out and started again."""
    sequences_in_flight: int = 512
    """Samples under way at an agent, so that vLLM's batch stays full."""
    sequences_per_call: int = 256
    """Samples of one call: few, so that agents share the work to the end, but so many that calls_in_flight of them, half answered
    on average, are more than sequences_in_flight."""
    tokens_per_call: int = 2_000_000
    """Prompt tokens of one call; the last prompt may go beyond. Agents refuse bodies of more than some 64 MiB."""
    calls_in_flight: int = 8
    """Calls under way at an agent."""


class Fleet(Protocol):
    """The agents, as a generation needs them."""

    def ready(self) -> list[Agent]:
        """Agents that serve the version."""
        ...

    def explanation(self) -> str:
        """Why an agent does not serve the version, for people."""
        ...

    def refused(self, agent: Agent, error: AgentError) -> None:
        """An agent does not accept our token. Raises RunError when none ever did."""
        ...

    async def tick(self, stop: Callable[[], bool]) -> None:
        """Wait until something has happened, or for a moment. Raises Preempted, or RunError when nothing can go on."""
        ...

    def happened(self) -> None:
        """Something has happened."""
        ...

    def report_waiting(self, message: str) -> None:
        """Tell what is waited for; empty: nothing."""
        ...


class Generation:
    """Prompts on their way to being answered by one version."""

    def __init__(
        self,
        fleet: Fleet,
        prompts: Sequence[PromptRecord],
        *,
        version: int,
        digest: str,
        sampling: Sampling,
        limits: Limits,
        counts: Counter[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """prompts: with different ids. counts: what went wrong, by name, is added to it."""
        self._fleet = fleet
        self._prompts = {prompt.id: prompt for prompt in prompts}
        if len(self._prompts) != len(prompts):
            raise ValueError("two prompts of a generation have the same id")
        self._version, self._digest, self._sampling = version, digest, sampling
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self._waiting = OrderedDict.fromkeys(self._prompts)
        self._groups: dict[str, SampleGroup] = {}
        self._dropped: dict[str, str] = {}
        self._tries: Counter[str] = Counter()
        self._counted: dict[str, tuple[float, int]] = {}
        self._failed_on: dict[str, set[Agent]] = {}
        self._calls: set[Call] = set()
        self._last_stream = clock()

    async def run(self, *, on_progress: Callable[[int], None], stop: Callable[[], bool]) -> list[SampleGroup]:
        """Every prompt's group, in the order of the prompts; prompts that no agent can answer are left out and counted.

        on_progress: gets the number of prompts done. Raises Preempted within a tick of `stop`, and RunError when prompts fail
        again and again, when all fail for good, or when no agent answers for too long.
        """
        told = -1
        try:
            while self._num_done < len(self._prompts):
                if told != self._num_done:
                    on_progress(told := self._num_done)
                self._end_lost_calls()
                self._give_out()
                self._hedge_stalled_calls()
                self._check_wait()
                await self._fleet.tick(stop)
                self._reap()
            await self._let_calls_end()
        finally:
            self._fleet.report_waiting("")
            await self._end_all()
        on_progress(self._num_done)
        self._report_dropped()
        return [self._groups[name] for name in self._prompts if name in self._groups]

    @property
    def _num_done(self) -> int:
        return len(self._groups) + len(self._dropped)

    # Giving out

    def _give_out(self) -> None:
        """Start calls until every agent has enough to do, or its share of what is left."""
        now = self._clock()
        serving = self._fleet.ready()
        ready = [agent for agent in serving if agent.rests_until <= now]
        if not ready:
            return
        well = [agent for agent in serving if not any(call.hedged for call in agent.calls)]
        share = math.ceil((len(self._prompts) - self._num_done) / len(ready))
        enough = min(share, math.ceil(self._limits.sequences_in_flight / self._sampling.n))
        for agent in sorted(ready, key=lambda agent: agent.in_flight):
            while self._waiting and agent.in_flight < enough and len(agent.calls) < agent.max_calls:
                names = self._take(agent, self._call_size(agent, enough, share), well)
                if not names:
                    break
                self._start(agent, names)

    def _call_size(self, agent: Agent, enough: int, share: int) -> int:
        """Prompts of an agent's next call: more than usual when it has few calls left to reach `enough`."""
        usual = max(1, self._limits.sequences_per_call // self._sampling.n)
        room = enough - agent.in_flight
        free_calls = agent.max_calls - len(agent.calls)
        return min(max(usual, math.ceil(room / free_calls)), share - agent.in_flight)

    def _take(self, agent: Agent, count: int, well: Sequence[Agent]) -> list[str]:
        """The first waiting prompts that this agent may answer."""
        taken: list[str] = []
        num_tokens = 0
        for name in self._waiting:
            if len(taken) == count or num_tokens > self._limits.tokens_per_call:
                break
            if self._may_answer(agent, name, well):
                taken.append(name)
                num_tokens += len(self._prompts[name].tokens)
        for name in taken:
            del self._waiting[name]
        return taken

    def _may_answer(self, agent: Agent, name: str, well: Sequence[Agent]) -> bool:
        """Not twice at once, and not again where it has failed while there are others to try."""
        if any(name in call.missing for call in agent.calls):
            return False
        failed_on = self._failed_on.get(name, set())
        return agent not in failed_on or failed_on.issuperset(well)

    def _start(self, agent: Agent, names: Sequence[str]) -> None:
        call = Call(agent, set(names), last_line=self._clock())
        prompts = tuple(Prompt(id=name, tokens=self._prompts[name].tokens) for name in names)
        request = SamplesRequest(version=self._version, digest=self._digest, sampling=self._sampling, prompts=prompts)
        call.task = asyncio.create_task(self._serve(call, request))
        call.task.add_done_callback(lambda _: self._ended(call))
        agent.calls.add(call)
        self._calls.add(call)

    def _ended(self, call: Call) -> None:
        call.agent.calls.discard(call)
        self._fleet.happened()

    # One call

    async def _serve(self, call: Call, request: SamplesRequest) -> None:
        """Take in what an agent says to a call, to its end."""
        try:
            async with call.agent.client.samples(request) as lines:
                call.streaming = True
                async for line in lines:
                    call.last_line = self._clock()
                    self._take_in(call, line)
                    self._fleet.happened()
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
        if line.id not in call.missing:
            # Answered by another agent first, or by this one twice, or never asked.
            self._counts["duplicates" if line.id in self._prompts else "refused"] += 1
        elif isinstance(line, PromptFailed):
            if line.retryable:
                self._fail_prompts(call, {line.id}, line.reason)
            else:
                self._drop(call, line.id, line.reason)
        elif problem := self._problem_with(line):
            self._counts["refused"] += 1
            logger.warning("%s: the answer to prompt %s is refused: %s", call.agent.url, line.id, problem)
            self._fail_prompts(call, {line.id}, problem)
        else:
            call.agent.failures = 0
            self._groups[line.id] = line
            self._settle(call, line.id)

    def _problem_with(self, group: SampleGroup) -> str:
        """Why a group must not reach a loss; empty when it may."""
        if (group.version, group.digest) != (self._version, self._digest):
            return f"it is of version {group.version} ({group.digest}), wanted is {self._version} ({self._digest})"
        if len(group.samples) != self._sampling.n:
            return f"it has {len(group.samples)} samples, wanted are {self._sampling.n}"
        return ""

    # What became of a prompt

    def _settle(self, by: Call, name: str) -> None:
        """A prompt is done: nobody else needs to answer it any more."""
        self._waiting.pop(name, None)
        by.missing.discard(name)
        for call in self._calls:
            if name in call.missing:
                call.missing.discard(name)
                if not call.missing:
                    self._end(call, "others have answered all its prompts")

    def _drop(self, by: Call, name: str, reason: str) -> None:
        self._counts["dropped"] += 1
        self._dropped[name] = reason
        self._settle(by, name)

    def _fail_prompts(self, call: Call, names: Iterable[str], reason: str) -> None:
        """An agent failed prompts: each may cost a try, and the agent has to show that it is well.

        Raises RunError for a prompt without a try left.
        """
        names = list(names)
        for name in names:
            self._counts["retried"] += 1
            self._failed_on.setdefault(name, set()).add(call.agent)
            if self._costs_a_try(name):
                self._tries[name] += 1
                self._counted[name] = self._clock(), self._num_done
            if self._tries[name] >= self._limits.tries:
                raise RunError(
                    f"prompt {name} failed {self._tries[name]} times on {len(self._failed_on[name])} agents; the last time on "
                    f"{call.agent.url}: {reason}"
                )
        if names:
            self._set_back(call.agent, reason)
        self._return(call, names)

    def _costs_a_try(self, name: str) -> bool:
        """Whether a failure may be the prompt's own: others were answered since its last one, or that is long ago."""
        if name not in self._counted:
            return True
        when, num_done = self._counted[name]
        return self._num_done > num_done or self._clock() - when >= self._limits.outage_seconds

    def _fail_call(self, call: Call, error: AgentError) -> None:
        """A call failed as a whole."""
        if call.missing and error.reason not in _AGENTS_OWN:
            self._counts["failed_calls"] += 1
            logger.warning("%s: a call with %d prompts failed: %s", call.agent.url, len(call.missing), error)
            self._fail_prompts(call, call.missing, str(error))
            return
        if error.reason == "Unauthorized":
            self._fleet.refused(call.agent, error)
        if error.reason == "TooManyRequests":
            call.agent.max_calls = max(1, len(call.agent.calls) - 1)
            self._rest(call.agent)
        elif call.missing:
            self._set_back(call.agent, f"{error.reason}: {error}")
        self._return(call, call.missing)

    def _return(self, call: Call, names: Iterable[str]) -> None:
        """Put prompts back to the front of the queue, unless another call has them or they wait already."""
        names = list(names)
        call.missing.difference_update(names)
        for name in names:
            if name not in self._waiting and not any(name in other.missing for other in self._calls):
                self._waiting[name] = None
                self._waiting.move_to_end(name, last=False)

    def _set_back(self, agent: Agent, reason: str) -> None:
        agent.doubt(reason)
        self._rest(agent)

    def _rest(self, agent: Agent) -> None:
        limits = self._limits
        agent.rest(self._clock(), first=limits.first_backoff_seconds, longest=limits.longest_backoff_seconds)

    # Watching over calls

    def _reap(self) -> None:
        """Forget calls that have ended. Raises what ended the generation in one of them."""
        for call in [call for call in self._calls if call.task is not None and call.task.done()]:
            self._calls.discard(call)
            if call.task is not None and not call.task.cancelled():
                call.task.result()
            self._return(call, call.missing)

    def _end_lost_calls(self) -> None:
        now = self._clock()
        for call in self._calls:
            since = call.agent.unreachable_since
            if since is not None and now - max(since, call.last_line) > self._limits.lost_seconds:
                self._end(call, f"the agent has not answered for {now - since:.0f} s")

    def _hedge_stalled_calls(self) -> None:
        """Give prompts of agents that say nothing to those for whom nothing else is left to do. The first answer counts."""
        if all(agent.calls for agent in self._fleet.ready()):
            return
        now = self._clock()
        for call in self._calls:
            silent = now - call.last_line
            if not call.hedged and silent > self._limits.stall_seconds:
                call.hedged = True
                self._counts["hedged"] += len(call.missing)
                logger.warning(
                    "%s: no line for %.0f s: others get its %d prompts too",
                    call.agent.url,
                    silent,
                    len(call.missing),
                )
                self._waiting.update(dict.fromkeys(call.missing))

    def _check_wait(self) -> None:
        """Say what is waited for. Raises RunError when no agent has been answering for too long."""
        now = self._clock()
        if any(call.streaming for call in self._calls):
            self._last_stream = now
        explanation = "" if self._calls or self._fleet.ready() else self._fleet.explanation()
        self._fleet.report_waiting(explanation)
        if now - self._last_stream > self._limits.wait_seconds:
            raise RunError(
                f"no agent answered for {self._limits.wait_seconds:.0f} s, with {self._num_done} of {len(self._prompts)} prompts "
                f"done: {self._fleet.explanation()}"
            )

    def _end(self, call: Call, why: str) -> None:
        if not call.cut and call.task is not None:
            call.cut = why
            call.task.cancel()

    async def _let_calls_end(self) -> None:
        """All is answered: a moment for the end lines, so that connections can be used again."""
        tasks = [call.task for call in self._calls if call.task is not None and not call.hedged]
        if tasks:
            await asyncio.wait(tasks, timeout=self._limits.tick_seconds)

    async def _end_all(self) -> None:
        tasks = [call.task for call in self._calls if call.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _report_dropped(self) -> None:
        """Name what no agent could answer. Raises RunError when that is all there was."""
        if not self._dropped:
            return
        reason, count = Counter(self._dropped.values()).most_common(1)[0]
        first = next(name for name, why in self._dropped.items() if why == reason)
        message = (
            f"{len(self._dropped)} of {len(self._prompts)} prompts cannot be answered; {count} of them, such as {first}: {reason}"
        )
        if len(self._dropped) == len(self._prompts):
            raise RunError(message)
        logger.warning("%s", message)
