"""Reward functions: what turns samples into rewards; and the one that applies a rule to each completion."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from spinrun_api.spec import Rule
from spinrun_protocol.wire import Sample
from spinrun_worker.records import PromptRecord
from spinrun_worker.rewards.rules import TEXT_RULES, regex_rule
from spinrun_worker.rewards.sandbox import SandboxPool
from spinrun_worker.rewards.score import Failure, Groups, Item, Score, ScoreResult, UnusableAnswerError

MAX_MATH_PROCESSES = 8

_EMPTY = Sample(tokens=(), text="", finish_reason="stop")
"""No answer: whatever fails with it is a fault of the true answer."""


class RewardFunction(Protocol):
    """Whatever tells better samples from worse ones."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What it has done since the start, by name."""
        ...

    def score(self, groups: Groups) -> ScoreResult:
        """Reward every sample of every prompt, to make pairs of them.

        A fault of one sample costs that sample its reward and nothing else.

        Raises:
            RunError: Nothing can be scored any more.
            ConfigurationError: The user must act.
            Preempted: It was waiting, and the run was asked to stop.
        """
        ...

    def grade(self, groups: Groups) -> ScoreResult:
        """Reward held-out samples, each on its own. Raises as `score` does."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class RuleRunner(Protocol):
    """Applies a rule to completions."""

    def __call__(self, items: Sequence[Item]) -> Sequence[Score]:
        """One score per item, in order."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class RuleReward:
    """Rewards a completion with what a rule says of it."""

    def __init__(self, runner: RuleRunner, *, compares: bool = True) -> None:
        """Apply a rule.

        Args:
            runner: Applies it.
            compares: Whether it compares with the true answer, and so fails where that cannot be read, whatever the completion.
        """
        self._runner = runner
        self._compares = compares

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing: a rule sends no requests."""
        return {}

    def score(self, groups: Groups) -> ScoreResult:
        """Reward every sample of every prompt.

        A fault of one sample costs that sample its reward and nothing else.

        Raises:
            RunError: The rule itself stopped working.
        """
        return ScoreResult.of(groups, self._runner([_item(prompt, sample) for prompt, samples in groups for sample in samples]))

    def grade(self, groups: Groups) -> ScoreResult:
        """The same: a rule looks at each answer on its own."""
        return self.score(groups)

    def unusable_answers(self, prompts: Sequence[PromptRecord]) -> dict[str, str]:
        """Why the rule cannot compare with a prompt's true answer, by the prompt's id; without those that it can compare with.

        Raises:
            RunError: The rule itself stopped working.
        """
        if not self._compares:
            return {}
        scores = self._runner([_item(prompt, _EMPTY) for prompt in prompts])
        return {prompt.id: score.message for prompt, score in zip(prompts, scores, strict=True) if isinstance(score, Failure)}

    def close(self) -> None:
        """End the rule's processes."""
        self._runner.close()


def build_rule(rule: Rule) -> RuleReward:
    """The reward function of a rule.

    Raises:
        ConfigurationError: The pattern or the entry point cannot be used.
    """
    if rule.kind == "math":
        processes = min(MAX_MATH_PROCESSES, max(1, (os.cpu_count() or 1) // 2))
        return RuleReward(SandboxPool(processes=processes, timeout_seconds=rule.timeout_seconds))
    if rule.kind == "python":
        # One process, so that what the user's module holds, such as a loaded model, is there once.
        return RuleReward(
            SandboxPool(processes=1, timeout_seconds=rule.timeout_seconds, entry_point=rule.entry_point), compares=False
        )
    if rule.kind == "regex":
        return RuleReward(TextRuleRunner(regex_rule(rule.pattern or "", timeout_seconds=rule.timeout_seconds)), compares=False)
    compare = TEXT_RULES[rule.kind]
    return RuleReward(TextRuleRunner(lambda completion, answer: compare(completion, answer or "")))


class TextRuleRunner:
    """Applies a function of completion and true answer, in this process."""

    def __init__(self, function: Callable[[str, str | None], float]) -> None:
        self._function = function

    def __call__(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order."""
        return [self._score(item) for item in items]

    def close(self) -> None:
        """Nothing to free."""

    def _score(self, item: Item) -> Score:
        try:
            return self._function(item.completion, item.answer)
        except UnusableAnswerError as error:
            return Failure("unusable answer", str(error))
        except TimeoutError as error:
            return Failure("too slow", str(error))


def _item(prompt: PromptRecord, sample: Sample) -> Item:
    return Item(prompt.id, prompt.text, sample.text, prompt.answer, prompt.columns, prompt.conversation)
