"""From samples to rewards: a rule applied to every completion, and an account of those that got no reward."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from spinrun_api.spec import Rule
from spinrun_protocol.wire import Sample
from spinrun_worker.records import PromptRecord
from spinrun_worker.rewards.rules import TEXT_RULES, regex_rule
from spinrun_worker.rewards.sandbox import ProcessJudge
from spinrun_worker.rewards.verdict import Failure, Groups, Item, ScoreResult, UnusableAnswerError, Verdict

MAX_MATH_PROCESSES = 8


class Scorer(Protocol):
    """Whatever tells better samples from worse ones."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What it has done since the start, by name."""
        ...

    def score(self, groups: Groups) -> ScoreResult:
        """Reward every sample of every prompt, to make pairs of them.

        What goes wrong with one sample costs that sample its reward. Raises RunError when nothing can be scored any more,
        ConfigurationError when the user must act, Preempted when it had to wait and was asked to stop.
        """
        ...

    def grade(self, groups: Groups) -> ScoreResult:
        """Reward held-out samples, each alone. Raises as score does."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Judge(Protocol):
    """Gives verdicts."""

    def __call__(self, items: Sequence[Item]) -> Sequence[Verdict]:
        """One verdict an item."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class RuleScorer:
    """A rule, ready to score."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing that costs."""
        return {}

    def score(self, groups: Groups) -> ScoreResult:
        """Reward every sample of every prompt.

        What goes wrong with one sample costs that sample its reward. Raises RunError when the rule itself stopped to work.
        """
        return ScoreResult.of(groups, self._judge([_item(prompt, sample) for prompt, samples in groups for sample in samples]))

    def grade(self, groups: Groups) -> ScoreResult:
        """The same: a rule looks at one answer alone."""
        return self.score(groups)

    def close(self) -> None:
        """End the processes that judge."""
        self._judge.close()


def build_rule(rule: Rule) -> RuleScorer:
    """The scorer of a rule. Raises ConfigurationError when pattern or entry point cannot be used."""
    if rule.kind == "math":
        processes = min(MAX_MATH_PROCESSES, max(1, (os.cpu_count() or 1) // 2))
        return RuleScorer(ProcessJudge(processes=processes, timeout_seconds=rule.timeout_seconds))
    if rule.kind == "python":
        # One process, so that what the user's module holds, such as a loaded model, is there once.
        return RuleScorer(ProcessJudge(processes=1, timeout_seconds=rule.timeout_seconds, entry_point=rule.entry_point))
    if rule.kind == "regex":
        return RuleScorer(TextJudge(regex_rule(rule.pattern or "", timeout_seconds=rule.timeout_seconds)))
    compare = TEXT_RULES[rule.kind]
    return RuleScorer(TextJudge(lambda completion, answer: compare(completion, answer or "")))


class TextJudge:
    """Judges by a function of completion and true answer, in this process."""

    def __init__(self, function: Callable[[str, str | None], float]) -> None:
        self._function = function

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item."""
        return [self._verdict(item) for item in items]

    def close(self) -> None:
        """Nothing to free."""

    def _verdict(self, item: Item) -> Verdict:
        try:
            return self._function(item.completion, item.answer)
        except UnusableAnswerError as error:
            return Failure("unusable answer", str(error))
        except TimeoutError as error:
            return Failure("too slow", str(error))


def _item(prompt: PromptRecord, sample: Sample) -> Item:
    return Item(prompt.id, prompt.text, sample.text, prompt.answer, prompt.columns)
