"""The prompts of one generation: which are queued, answered or dropped, and what their failures cost them.

Bookkeeping alone: it talks to nobody and reads no clock.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Collection, Hashable, Iterable, Sequence

from spinrun_protocol.wire import SampleGroup
from spinrun_worker.errors import RunError
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.limits import SamplingLimits

logger = logging.getLogger(__name__)


class Backlog:
    """The prompts of one generation.

    A prompt is queued until an agent takes it, queued again after a failure, and done once it is answered or dropped. Agents are
    known by whatever the caller tells them apart by, and named in messages by its `str`.
    """

    def __init__(self, prompts: Sequence[PromptRecord], limits: SamplingLimits) -> None:
        """Queue all prompts. Raises ValueError when two have the same id."""
        self._prompts = {prompt.id: prompt for prompt in prompts}
        if len(self._prompts) != len(prompts):
            raise ValueError("two prompts of a generation have the same id")
        self._limits = limits
        self._queue = OrderedDict.fromkeys(self._prompts)
        self._groups: dict[str, SampleGroup] = {}
        self._dropped: dict[str, str] = {}
        """Why each of them cannot be answered."""
        self._tries: Counter[str] = Counter()
        self._last_tries: dict[str, tuple[float, int]] = {}
        """When each prompt's last try was counted, and how many prompts were done then."""
        self._failed_on: dict[str, set[Hashable]] = {}

    def __len__(self) -> int:
        return len(self._prompts)

    def __contains__(self, name: str) -> bool:
        return name in self._prompts

    @property
    def num_done(self) -> int:
        """Prompts that are answered or dropped."""
        return len(self._groups) + len(self._dropped)

    def take(
        self, agent: Hashable, count: int, *, except_for: Collection[str], candidates: Collection[Hashable]
    ) -> list[PromptRecord]:
        """Take prompts from the front of the queue for an agent.

        Args:
            agent: Who is to answer them. It gets no prompt that failed on it while there is another candidate to try.
            count: Prompts to take at most; fewer when they are long.
            except_for: Ids of prompts that stay in the queue.
            candidates: Agents that may answer prompts now.
        """
        taken: list[PromptRecord] = []
        num_tokens = 0
        for name in self._queue:
            if len(taken) == count or num_tokens > self._limits.tokens_per_call:
                break
            failed_on = self._failed_on.get(name, set())
            if name not in except_for and (agent not in failed_on or failed_on.issuperset(candidates)):
                taken.append(self._prompts[name])
                num_tokens += len(self._prompts[name].tokens)
        for prompt in taken:
            del self._queue[prompt.id]
        return taken

    def put_back(self, names: Iterable[str]) -> None:
        """Put prompts at the front of the queue; those that are in it stay where they are."""
        for name in names:
            if name not in self._queue:
                self._queue[name] = None
                self._queue.move_to_end(name, last=False)

    def append(self, names: Iterable[str]) -> None:
        """Put prompts at the end of the queue; those that are in it stay where they are."""
        self._queue.update(dict.fromkeys(names))

    def answer(self, group: SampleGroup) -> None:
        """Keep a prompt's answer: it is done."""
        self._groups[group.id] = group
        self._queue.pop(group.id, None)

    def drop(self, name: str, reason: str) -> None:
        """Leave out a prompt that no agent can answer: it is done."""
        self._dropped[name] = reason
        self._queue.pop(name, None)

    def fail(self, name: str, agent: Hashable, reason: str, *, now: float) -> None:
        """Note that an agent could not answer a prompt, which may cost the prompt a try. It is not queued again yet.

        Args:
            name: The prompt's id.
            agent: Who failed.
            reason: Why, for people.
            now: The time in seconds.

        Raises:
            RunError: The prompt has no try left.
        """
        failed_on = self._failed_on.setdefault(name, set())
        failed_on.add(agent)
        if self._costs_a_try(name, now):
            self._tries[name] += 1
            self._last_tries[name] = now, self.num_done
        if self._tries[name] >= self._limits.tries:
            raise RunError(
                f"prompt {name} failed {self._tries[name]} times on {len(failed_on)} agents; the last time on {agent}: {reason}"
            )

    def _costs_a_try(self, name: str, now: float) -> bool:
        """Whether a failure may be the prompt's own: others were done since its last try, or that is long ago."""
        if name not in self._last_tries:
            return True
        when, num_done = self._last_tries[name]
        return self.num_done > num_done or now - when >= self._limits.outage_seconds

    def result(self) -> list[SampleGroup]:
        """The answers, in the order of the prompts. Logs what was dropped, and raises RunError when that is all there was."""
        if self._dropped:
            reason, count = Counter(self._dropped.values()).most_common(1)[0]
            first = next(name for name, why in self._dropped.items() if why == reason)
            message = (
                f"{len(self._dropped)} of {len(self)} prompts cannot be answered; {count} of them, such as {first}: {reason}"
            )
            if not self._groups:
                raise RunError(message)
            logger.warning("%s", message)
        return [self._groups[name] for name in self._prompts if name in self._groups]
