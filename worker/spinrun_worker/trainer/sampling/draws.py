"""Which prompts a window draws from the stream: as many as the spec says, or so many that they give enough pairs; all that come,
or those whose pass rates lie within bounds.

A window that is to be full of pairs asks some prompts, scores what comes back, and asks on while pairs are missing. Its prompts
are those of the stream up to the one whose pairs fill it, whichever were answered first: so the window does not depend on how
fast a rollout was, and short answers, which come first, are not preferred. Rank 0 alone draws.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from spinrun_protocol.ledger import Drawn, Manifest
from spinrun_worker.data import PromptStream
from spinrun_worker.errors import NoPromptsError
from spinrun_worker.records import Answers, PromptRecord, ScoredGroup
from spinrun_worker.trainer.sampling.requests import PendingAnswers, Requests
from spinrun_worker.trainer.sampling.selection import Selected, Selection
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
    """Likewise, or where some were left out, which prompts of the stream these are."""
    widened: float = 0.0
    """By how much the bounds of their pass rates were moved apart."""


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


class Places:
    """Where in the stream windows begin and end that do not have the places that the schedule gives them."""

    def __init__(
        self,
        stream: PromptStream,
        schedule: Schedule,
        windows: Windows,
        selection: Selection,
        tell: Callable[[str], None],
    ) -> None:
        """Prepare to draw.

        Args:
            stream: The prompts.
            schedule: Says how many prompts, or pairs, a window wants.
            windows: Say where the last one ended.
            selection: Says which positions a window may draw.
            tell: Told what people should know.
        """
        self._stream = stream
        self._schedule = schedule
        self._windows = windows
        self._selection = selection
        self._tell = tell
        self._ends: dict[int, tuple[int, float]] = {}
        """See `_end`; of windows that this attempt has drawn, which may not be in the ledger yet."""

    def wanted(self, number: int) -> int:
        """How many prompts a window wants or, where its size is given in pairs, how many pairs."""
        return self._schedule.prompts(number)[1]

    def select(self, number: int, most: int) -> "Place":
        """Find a window's prompts. most: how many it may ask."""
        start, rate = self._end(number - 1)
        return Place(number, start, rate, self._selection.select(number, start, most))

    def draw(self, positions: Sequence[int]) -> list[PromptRecord]:
        """The prompts at some positions."""
        return self._stream.at(positions)

    def announce(self, place: "Place") -> None:
        """Say what is unusual about a window's prompts.

        Raises:
            NoPromptsError: There is none.
        """
        found = place.selected
        if not found.positions:
            raise NoPromptsError(
                f"window {place.number} has no prompt: {found.note}. Start a new run with other bounds, with "
                "whenNone: widen, or with easier or harder prompts"
            )
        if found.note:
            self._tell(f"window {place.number}: {found.note}")

    def end(self, place: "Place", prompts: int, pairs: int) -> Drawn:
        """Note where a window ended. prompts: how many of the selected ones it has; pairs: how many these gave."""
        stop = place.selected.positions[prompts - 1] + 1
        self._ends[place.number] = stop, pairs / prompts
        return Drawn(start=place.start, stop=stop, skipped=stop - place.start - prompts)

    def _end(self, number: int) -> tuple[int, float]:
        """Where the stream continues after a window, and how many pairs each of its prompts gave."""
        if number < 0:
            return 0, 1.0
        if number in self._ends:
            return self._ends[number]
        drawn = self._windows.drawn(number)
        if drawn is None:  # the spec said which prompts it has then
            return self._schedule.prompts(number + 1)[0], 1.0
        return drawn.stop, self._windows.num_pairs(number) / max(1, drawn.stop - drawn.start - drawn.skipped)


@dataclass(frozen=True)
class Place:
    """A window's part of the stream."""

    number: int
    """The window."""
    start: int
    """Position at which it begins."""
    rate: float
    """Pairs that each prompt of the window before gave."""
    selected: Selected
    """The positions of the prompts that it may ask."""


class SelectedPrompts:
    """Windows of as many prompts as the spec says, with some of the stream left out."""

    def __init__(self, places: Places, requests: Requests) -> None:
        self._places = places
        self._requests = requests

    def begin(self, number: int, weights: Manifest) -> PendingWindow:
        """Ask them all; see `Draws`."""
        place = self._places.select(number, self._places.wanted(number))
        prompts = self._places.draw(place.selected.positions)
        pending = self._requests.for_training(prompts, weights) if prompts else None
        return _Selected(weights, self._places, place, pending)


@dataclass(frozen=True)
class _Selected:
    weights: Manifest
    places: Places
    place: Place
    pending: PendingAnswers | None

    def wait(self) -> Collected:
        self.places.announce(self.place)
        assert self.pending is not None
        answers = self.pending.wait()
        drawn = self.places.end(self.place, len(self.place.selected.positions), 0)
        seconds = self.pending.ended - self.pending.started
        return Collected(self.weights, answers, seconds, drawn=drawn, widened=self.place.selected.widened)


class EnoughPairs:
    """Windows of as many prompts as it takes to have the pairs that the spec wants."""

    def __init__(
        self,
        places: Places,
        requests: Requests,
        *,
        max_prompts_factor: float,
        score: Callable[[Answers], ScoredAnswers],
        num_pairs: Callable[[ScoredGroup], int],
        show: Callable[[int, int], None],
    ) -> None:
        """Prepare to draw.

        Args:
            places: Where the prompts are.
            requests: Asks the rollouts.
            max_prompts_factor: Most prompts that are asked, as a multiple of the pairs that are wanted.
            score: Gives answers their rewards.
            num_pairs: The pairs that a prompt gives.
            show: Told how many prompts are answered, and how many are asked.
        """
        self._places = places
        self._requests = requests
        self._max_prompts_factor = max_prompts_factor
        self._score = score
        self._num_pairs = num_pairs
        self._show = show

    def begin(self, number: int, weights: Manifest) -> PendingWindow:
        """Ask as many prompts as the window before lets expect; see `Draws`."""
        wanted = self._places.wanted(number)
        place = self._places.select(number, math.ceil(wanted * self._max_prompts_factor))
        if not place.selected.positions:
            return _UntilFull(weights, self._places, place, None)
        filling = Filling(
            wanted,
            len(place.selected.positions),
            place.rate,
            ask=partial(self._ask, place.selected.positions, weights),
            score=self._score,
            num_pairs=self._num_pairs,
            show=self._show,
        )
        return _UntilFull(weights, self._places, place, filling)

    def _ask(
        self, positions: Sequence[int], weights: Manifest, offset: int, count: int, on_progress: Callable[[int], None]
    ) -> PendingAnswers:
        return self._requests.for_training(self._places.draw(positions[offset : offset + count]), weights, on_progress)


@dataclass(frozen=True)
class _UntilFull:
    weights: Manifest
    places: Places
    place: Place
    filling: "Filling | None"

    def wait(self) -> Collected:
        self.places.announce(self.place)
        assert self.filling is not None
        filled = self.filling.wait()
        drawn = self.places.end(self.place, filled.prompts, filled.pairs)
        return Collected(self.weights, filled.answers, filled.seconds, filled.scored, drawn, self.place.selected.widened)


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
