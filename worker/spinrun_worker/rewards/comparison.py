"""From comparisons of two answers to rewards: which answers meet, and how often each wins."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

from spinrun_worker.rewards.score import Failure, FailureCount, Groups, ScoreResult, by_group
from spinrun_worker.rewards.wording import as_text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a prompt, in the order in which a model sees them."""

    prompt_id: str
    prompt: str
    """The whole conversation, as `wording` writes it."""
    first: str
    second: str

    def swapped(self) -> "Comparison":
        """The other order."""
        return replace(self, first=self.second, second=self.first)


class Comparer(Protocol):
    """Compares answers pairwise."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What it has done since the start, by name."""
        ...

    def ask(self, questions: Sequence[Comparison]) -> Sequence[float | Failure]:
        """The probability that the first answer of each comparison is better."""
        ...


class WinRateReward:
    """Rewards an answer with its win rate: the mean probability of being better than those it is compared with."""

    def __init__(self, comparer: Comparer, *, max_comparisons: int) -> None:
        """Prepare, and compare nothing yet.

        Args:
            comparer: Says which of two answers is better.
            max_comparisons: Comparisons for each prompt at most, each in both orders.
        """
        self._comparer = comparer
        self._max_comparisons = max_comparisons
        self._disagreements = 0

    @property
    def counts(self) -> dict[str, int]:
        """Since the start: what the comparer counts, and comparisons whose outcome changed with the order."""
        return {**self._comparer.counts, "disagreements": self._disagreements}

    def score(self, groups: Groups) -> ScoreResult:
        """Win rates of answers among those to the same prompt.

        A comparison that failed costs as few answers as possible their reward: all others have met each other as planned.
        """
        meetings = [(index, *two) for index, (_, samples) in enumerate(groups) for two in self._meetings(len(samples))]
        prompts = [as_text(prompt.messages) for prompt, _ in groups]
        comparisons = [
            Comparison(groups[index][0].id, prompts[index], groups[index][1][one].text, groups[index][1][other].text)
            for index, one, other in meetings
        ]
        outcomes, failures = self._compare(comparisons)
        of_group: list[dict[tuple[int, int], float | None]] = [{} for _ in groups]
        for (index, one, other), outcome in zip(meetings, outcomes, strict=True):
            of_group[index][one, other] = outcome
        rates = (win_rates(len(samples), found) for (_, samples), found in zip(groups, of_group, strict=True))
        return ScoreResult(tuple(rates), failures)

    def grade(self, groups: Groups) -> ScoreResult:
        """The probability that each answer is better than the true one."""
        comparisons = [
            Comparison(prompt.id, as_text(prompt.messages), sample.text, prompt.answer or "")
            for prompt, samples in groups
            for sample in samples
        ]
        outcomes, failures = self._compare(comparisons)
        return ScoreResult(by_group(groups, outcomes), failures)

    def close(self) -> None:
        """Nothing to free."""

    def _meetings(self, num_answers: int) -> list[tuple[int, int]]:
        return meetings(num_answers, self._max_comparisons)

    def _compare(self, comparisons: Sequence[Comparison]) -> tuple[list[float | None], tuple[FailureCount, ...]]:
        """For each comparison, the probability that the first is better, averaged over both orders; None where one failed."""
        # Equal texts are equally good, and make no pair: nobody needs to be asked.
        open_ones = {index: each for index, each in enumerate(comparisons) if each.first != each.second}
        asked = list(open_ones.values())
        answers = self._comparer.ask([*asked, *(each.swapped() for each in asked)])
        outcomes: list[float | None] = [0.5] * len(comparisons)
        for index, straight, swapped in zip(open_ones, answers[: len(asked)], answers[len(asked) :], strict=True):
            if isinstance(straight, Failure) or isinstance(swapped, Failure):
                outcomes[index] = None
                continue
            self._disagreements += (straight - 0.5) * (0.5 - swapped) < 0
            outcomes[index] = (straight + 1 - swapped) / 2
        prompt_ids = [each.prompt_id for each in asked] * 2
        return outcomes, FailureCount.of(zip(prompt_ids, answers, strict=True), what="comparisons without an outcome")


def meetings(num_answers: int, most: int) -> list[tuple[int, int]]:
    """Which answers are compared pairwise: all of them, or where that is too many, each with the same number of others.

    In the latter case the answers stand in a ring in the order of sampling, and each meets its nearest neighbours on both sides.

    Args:
        num_answers: Answers to the prompt.
        most: Comparisons at most; at least num_answers.

    Returns:
        Pairs of indices of answers.
    """
    everybody = list(combinations(range(num_answers), 2))
    if len(everybody) <= most:
        return everybody
    return [(one, (one + step) % num_answers) for step in range(1, most // num_answers + 1) for one in range(num_answers)]


def win_rates(num_answers: int, outcomes: Mapping[tuple[int, int], float | None]) -> tuple[float | None, ...]:
    """Each answer's mean probability of winning.

    An answer that has not met all its planned opponents would be rated by chance ones. So answers are dropped, those with the
    most unknown outcomes first, until no outcome is unknown. One that is dropped, or left without opponents, has no win rate.

    Args:
        num_answers: Answers to the prompt.
        outcomes: By pair of answers, the probability that the first one wins; None where it is unknown.
    """
    known = dict(outcomes)
    while unknown := Counter(answer for two, outcome in known.items() if outcome is None for answer in two):
        leaving = max(unknown, key=lambda answer: (unknown[answer], answer))
        known = {two: outcome for two, outcome in known.items() if leaving not in two}
    wins: dict[int, list[float]] = {}
    for (one, other), outcome in known.items():
        assert outcome is not None, "unknown ones were dropped above"
        wins.setdefault(one, []).append(outcome)
        wins.setdefault(other, []).append(1 - outcome)
    return tuple(_mean(wins.get(answer, ())) for answer in range(num_answers))


def _mean(values: Iterable[float]) -> float | None:
    given = list(values)
    return sum(given) / len(given) if given else None
