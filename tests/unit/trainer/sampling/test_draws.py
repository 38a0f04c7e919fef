"""A window that is filled with pairs: which prompts it takes, how many it asks, and whom it no longer waits for."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.records import Answers, PromptRecord, ScoredGroup
from spinrun_worker.trainer.sampling.draws import Filled, Filling
from spinrun_worker.trainer.sampling.requests import PendingAnswers
from spinrun_worker.trainer.storage.windows import ScoredAnswers

SAMPLE = Sample(tokens=(5, 3), text="5", finish_reason="stop")


class Rollouts:
    """Answer every prompt but some, and note what they are asked."""

    def __init__(self, pairs: Sequence[int], unanswered: frozenset[int] = frozenset()) -> None:
        self.pairs = pairs
        """That each prompt gives, the last number for all after it."""
        self.unanswered = unanswered
        self.batches: list[range] = []
        self.futures: list[Future[list[SampleGroup]]] = []
        self.shown: list[tuple[int, int]] = []

    def ask(self, start: int, count: int, on_progress: Callable[[int], None]) -> PendingAnswers:
        batch = range(start, start + count)
        prompts = [PromptRecord(str(number), (number + 1,), "") for number in batch]
        future: Future[list[SampleGroup]] = Future()
        future.set_result(
            [
                SampleGroup(id=prompt.id, version=0, digest="d", samples=(SAMPLE,))
                for prompt in prompts
                if int(prompt.id) not in self.unanswered
            ]
        )
        self.batches.append(batch)
        self.futures.append(future)
        on_progress(count)
        return PendingAnswers(prompts, future)

    def fill(self, wanted: int, most: int, rate: float = 1.0) -> Filled:
        return Filling(
            wanted,
            most,
            rate,
            ask=self.ask,
            score=self.score,
            num_pairs=lambda group: self.pairs[min(int(group.prompt.id), len(self.pairs) - 1)],
            show=lambda done, asked: self.shown.append((done, asked)),
        ).wait()

    def score(self, answers: Answers) -> ScoredAnswers:
        return ScoredAnswers([ScoredGroup(prompt, group.samples, (1.0,)) for prompt, group in answers], failures=["a reason"])

    @property
    def asked(self) -> int:
        return sum(map(len, self.batches))


def prompts(filled: Filled) -> list[int]:
    return [int(group.prompt.id) for group in filled.scored.groups]


def test_where_every_prompt_gives_a_pair_only_a_tenth_is_asked_in_vain() -> None:
    rollouts = Rollouts([1])
    filled = rollouts.fill(40, 160)
    assert prompts(filled) == [*range(40)]
    assert (filled.pairs, filled.prompts, rollouts.asked) == (40, 40, 44)


def test_a_window_asks_on_while_pairs_are_missing() -> None:
    rollouts = Rollouts([1, 0, 0, 0] * 100)
    filled = rollouts.fill(20, 200)
    assert prompts(filled) == [*range(77)], "the twentieth pair is that of prompt 76"
    assert rollouts.asked < 1.3 * 77
    assert len(rollouts.batches) > 4


def test_a_rate_that_is_known_spares_rounds() -> None:
    unknown, known = Rollouts([1, 0, 0, 0] * 100), Rollouts([1, 0, 0, 0] * 100)
    assert unknown.fill(20, 200, rate=1.0).scored == known.fill(20, 200, rate=0.25).scored
    assert len(known.batches) < len(unknown.batches)


def test_no_more_than_the_most_prompts_are_asked() -> None:
    rollouts = Rollouts([0])
    filled = rollouts.fill(10, 25)
    assert (filled.pairs, filled.prompts, rollouts.asked) == (0, 25, 25)


def test_prompts_that_cannot_be_answered_count_as_drawn() -> None:
    rollouts = Rollouts([1], unanswered=frozenset({0, 3}))
    filled = rollouts.fill(4, 16)
    assert prompts(filled) == [1, 2, 4, 5]
    assert filled.prompts == 6


def test_time_in_which_no_rollout_answers_is_none_of_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of scoring after each batch, of a second: four that are asked together, and one more."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    rollouts = Rollouts([1, 1, 1, 1, 0, 0, 1])

    class Batch(PendingAnswers):
        @property
        def ended(self) -> float:
            return self.started + 1

    def ask(start: int, count: int, on_progress: Callable[[int], None]) -> PendingAnswers:
        batch = Rollouts.ask(rollouts, start, count, on_progress)
        return Batch(batch.prompts, rollouts.futures[-1])

    def score(answers: Answers) -> ScoredAnswers:
        clock[0] += 10
        return Rollouts.score(rollouts, answers)

    rollouts.ask, rollouts.score = ask, score
    filled = rollouts.fill(6, 24)
    assert [len(batch) for batch in rollouts.batches] == [2, 2, 2, 1, 3]
    assert filled.seconds == 2


def test_reasons_are_said_once() -> None:
    assert Rollouts([1, 0] * 50).fill(10, 100).scored.failures == ["a reason"]


def test_answers_that_nobody_needs_any_more_are_cancelled() -> None:
    rollouts = Rollouts([8])
    ask, unanswered = rollouts.ask, []

    def late(start: int, count: int, on_progress: Callable[[int], None]) -> PendingAnswers:
        """Only the first batch is answered."""
        if start == 0:
            return ask(start, count, on_progress)
        future: Future[list[SampleGroup]] = Future()
        unanswered.append(future)
        return PendingAnswers([], future)

    rollouts.ask = late
    assert rollouts.fill(8, 32).prompts == 1
    assert unanswered
    assert all(future.cancelled() for future in unanswered)


def test_progress_counts_all_batches() -> None:
    rollouts = Rollouts([1])
    rollouts.fill(40, 160)
    assert rollouts.shown[-1] == (44, 44)
    assert sorted(rollouts.shown) == rollouts.shown


@given(
    pairs=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    wanted=st.integers(1, 30),
    factor=st.floats(1, 6),
    rates=st.tuples(st.floats(0, 3), st.floats(0, 3)),
)
def test_a_window_does_not_depend_on_what_was_expected(
    pairs: list[int], wanted: int, factor: float, rates: tuple[float, float]
) -> None:
    most = -int(-wanted * factor // 1)
    one, other = (Rollouts(pairs).fill(wanted, most, rate) for rate in rates)
    assert (one.scored, one.prompts, one.pairs) == (other.scored, other.prompts, other.pairs)
    assert one.prompts <= most
    assert one.pairs >= wanted or one.prompts == most
