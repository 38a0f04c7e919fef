"""Which prompts a window draws from the stream: as many as the spec says, or so many that they give enough pairs.

A window that is to be full of pairs asks some prompts, scores what comes back, and asks on while pairs are missing. Its prompts
are those of the stream up to the one whose pairs fill it, whichever were answered first: so the window does not depend on how
fast a rollout was, and short answers, which come first, are not preferred. Rank 0 alone draws.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from spinrun_protocol.ledger import Drawn, Manifest
from spinrun_worker.data import PromptStream
from spinrun_worker.records import Answers, ScoredGroup
from spinrun_worker.trainer.sampling.requests import PendingAnswers, Requests
from spinrun_worker.trainer.schedule import Schedule, divide
from spinrun_worker.trainer.storage.windows import ScoredAnswers, Windows

SPARE = 1.1
"""Prompts asked for each one that is expected to be needed: a second round, of a few prompts, leaves rollouts nearly idle."""
BATCHES = 4
"""Parts in which a window's first prompts are asked. After each one the pairs that are still missing are foreseen again."""


@dataclass(frozen=True)
class Collected:
    """The answers to a window's prompts."""

    weights: Manifest
    """Those that gave them."""
    answers: Answers
    seconds: float
    """How long that took."""
    scored: ScoredAnswers | None = None
    """The same with their rewards, where these decided how many prompts were asked."""
    drawn: Drawn | None = None
    """Likewise, which prompts of the stream these are."""


class PendingWindow(Protocol):
    """A window whose prompts the rollouts are answering."""

    def wait(self) -> Collected:
        """The answers. Raises what the generation raises."""
        ...


class Draws(Protocol):
    """How windows draw their prompts."""

    def begin(self, number: int, weights: Manifest) -> PendingWindow:
        """Begin to have a window's prompts answered by these weights, which the rollouts serve."""
        ...


class SomePrompts:
    """Windows of as many prompts as the spec says."""

    def __init__(self, stream: PromptStream, schedule: Schedule, requests: Requests) -> None:
        self._stream = stream
        self._schedule = schedule
        self._requests = requests

    def begin(self, number: int, weights: Manifest) -> PendingWindow:
        """Ask them all; see `Draws`."""
        prompts = self._stream.draw(*self._schedule.prompts(number))
        return _AllAtOnce(weights, self._requests.for_training(prompts, weights))


@dataclass(frozen=True)
class _AllAtOnce:
    weights: Manifest
    pending: PendingAnswers

    def wait(self) -> Collected:
        answers = self.pending.wait()
        return Collected(self.weights, answers, self.pending.ended - self.pending.started)


class EnoughPairs:
    """Windows of as many prompts as it takes to have the pairs that the spec wants."""

    def __init__(
        self,
        stream: PromptStream,
        schedule: Schedule,
        requests: Requests,
        windows: Windows,
        *,
        max_prompts_factor: float,
        score: Callable[[Answers], ScoredAnswers],
        num_pairs: Callable[[ScoredGroup], int],
        show: Callable[[int, int], None],
    ) -> None:
        """Prepare to draw.

        Args:
            stream: The prompts.
            schedule: Says how many pairs a window wants: as many as it would have prompts.
            requests: Asks the rollouts.
            windows: Say where the last one ended.
            max_prompts_factor: Most prompts that are asked, as a multiple of the pairs that are wanted.
            score: Gives answers their rewards.
            num_pairs: The pairs that a prompt gives.
            show: Told how many prompts are answered, and how many are asked.
        """
        self._stream = stream
        self._schedule = schedule
        self._requests = requests
        self._windows = windows
        self._max_prompts_factor = max_prompts_factor
        self._score = score
        self._num_pairs = num_pairs
        self._show = show
        self._ends: dict[int, tuple[int, float]] = {}
        """See `_end`; of windows that this attempt has drawn, which may not be in the ledger yet."""

    def begin(self, number: int, weights: Manifest) -> PendingWindow:
        """Ask as many prompts as the window before lets expect; see `Draws`."""
        start, rate = self._end(number - 1)
        _, wanted = self._schedule.prompts(number)
        filling = Filling(
            wanted,
            math.ceil(wanted * self._max_prompts_factor),
            rate,
            ask=partial(self._ask, start, weights),
            score=self._score,
            num_pairs=self._num_pairs,
            show=self._show,
        )
        return _UntilFull(weights, start, filling, ended=partial(self._ends.__setitem__, number))

    def _ask(self, start: int, weights: Manifest, offset: int, count: int, on_progress: Callable[[int], None]) -> PendingAnswers:
        return self._requests.for_training(self._stream.draw(start + offset, count), weights, on_progress)

    def _end(self, number: int) -> tuple[int, float]:
        """Where the stream continues after a window, and how many pairs each of its prompts gave."""
        if number < 0:
            return 0, 1.0
        if number in self._ends:
            return self._ends[number]
        drawn = self._windows.drawn(number)
        if drawn is None:  # the spec gave its size in prompts then
            return self._schedule.prompts(number + 1)[0], 1.0
        return drawn.stop, self._windows.num_pairs(number) / max(1, drawn.stop - drawn.start)


@dataclass(frozen=True)
class _UntilFull:
    weights: Manifest
    start: int
    filling: "Filling"
    ended: Callable[[tuple[int, float]], None]

    def wait(self) -> Collected:
        filled = self.filling.wait()
        drawn = Drawn(start=self.start, stop=self.start + filled.prompts)
        self.ended((drawn.stop, filled.pairs / max(1, filled.prompts)))
        return Collected(self.weights, filled.answers, filled.seconds, filled.scored, drawn)


@dataclass(frozen=True)
class Filled:
    """A window that has enough pairs, or has asked the most prompts."""

    answers: Answers
    scored: ScoredAnswers
    prompts: int
    """Prompts up to the one that filled it, those included that could not be answered."""
    pairs: int
    seconds: float
    """While rollouts were answering, up to the last answer that was needed."""


class Filling:
    """A window that is being filled with pairs."""

    def __init__(
        self,
        wanted: int,
        most: int,
        rate: float,
        *,
        ask: Callable[[int, int, Callable[[int], None]], PendingAnswers],
        score: Callable[[Answers], ScoredAnswers],
        num_pairs: Callable[[ScoredGroup], int],
        show: Callable[[int, int], None],
    ) -> None:
        """Ask the first prompts.

        Args:
            wanted: Pairs.
            most: Prompts that may be asked for them.
            rate: Pairs that a prompt gives, as far as one knows.
            ask: Begins to have prompts answered: from this one of the window's on, so many, telling how many of them are done.
            score: As for `EnoughPairs`.
            num_pairs: As for `EnoughPairs`.
            show: As for `EnoughPairs`.
        """
        self._wanted = wanted
        self._most = most
        self._rate = rate
        self._ask = ask
        self._score = score
        self._num_pairs = num_pairs
        self._show = show
        self._asked = 0
        self._done: list[int] = []
        """Answered prompts, by batch."""
        self._pending: deque[PendingAnswers] = deque()
        self._ask_for_missing(scored=0, pairs=0, batches=BATCHES)

    def wait(self) -> Filled:
        """Take in answers, and ask on while pairs are missing. Raises what the generation raises."""
        answers: Answers = []
        groups: list[ScoredGroup] = []
        failures: list[str] = []
        scored = pairs = prompts = 0
        seconds, ended = 0.0, -math.inf
        while self._pending and pairs < self._wanted:
            batch = self._pending.popleft()
            answered = batch.wait()
            # Batches overlap, and rollouts may rest between them while answers are scored.
            seconds += max(0.0, batch.ended - max(ended, batch.started))
            ended = max(ended, batch.ended)
            result = self._score(answered)
            failures += [failure for failure in result.failures if failure not in failures]
            places = {prompt.id: place for place, prompt in enumerate(batch.prompts, start=scored)}
            scored = prompts = scored + len(batch.prompts)
            for answer, group in zip(answered, result.groups, strict=True):
                answers.append(answer)
                groups.append(group)
                pairs += self._num_pairs(group)
                if pairs >= self._wanted:
                    prompts = places[group.prompt.id] + 1
                    break
            self._ask_for_missing(scored=scored, pairs=pairs)
        for batch in self._pending:
            batch.cancel()
        return Filled(answers, ScoredAnswers(groups, failures=failures), prompts, pairs, max(seconds, 1e-3))

    def _ask_for_missing(self, *, scored: int, pairs: int, batches: int = 1) -> None:
        """Ask as many prompts as the missing pairs are expected to need beyond those that are being answered."""
        if pairs >= self._wanted:
            return
        # What one knew before counts as much as a quarter of the window.
        known = self._wanted / 4
        rate = max((self._rate * known + pairs) / (known + scored), self._wanted / self._most)
        needed = math.ceil((self._wanted - pairs) / rate * SPARE) - (self._asked - scored)
        count = min(needed, self._most - self._asked)
        for share in divide(range(count), batches):
            self._ask_batch(len(share))

    def _ask_batch(self, count: int) -> None:
        if count <= 0:
            return
        index, offset = len(self._done), self._asked
        self._done.append(0)
        self._asked += count

        def progress(done: int) -> None:
            self._done[index] = done
            self._show(sum(self._done), self._asked)

        self._pending.append(self._ask(offset, count, progress))
