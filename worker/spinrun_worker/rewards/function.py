"""Reward functions: what turns samples into rewards; and the one that applies a rule to each completion."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from spinrun_api.spec import Rule, RuleKind, Truncated
from spinrun_protocol.machine import available_cores
from spinrun_protocol.wire import Sample
from spinrun_worker.records import PromptRecord, is_cut_off
from spinrun_worker.rewards.rules import exact, gsm8k, last_number
from spinrun_worker.rewards.sandbox import SandboxPool
from spinrun_worker.rewards.score import Failure, Groups, Item, Score, ScoreResult, UnusableAnswerError

MAX_PROCESSES = 8
"""Of a rule that is not the user's own."""

IN_PROCESS: Mapping[RuleKind, Callable[[str, str], float]] = {"lastNumber": last_number, "gsm8k": gsm8k, "exact": exact}
"""Rules that need no process of their own: their time is linear in the length of the texts."""

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

    def __init__(self, runner: RuleRunner, *, compares: bool = True, truncated: Truncated = "score") -> None:
        """Apply a rule.

        Args:
            runner: Applies it.
            compares: Whether it compares with the true answer, and so fails where that cannot be read, whatever the completion.
            truncated: What becomes of completions that were cut off.
        """
        self._runner = runner
        self._compares = compares
        self._truncated: Truncated = truncated

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
        answers = [(prompt, sample) for prompt, samples in groups for sample in samples]
        scored = [answer for answer in answers if not self._passes_over(answer[1])]
        cut_off = [answer for answer in answers if self._passes_over(answer[1])]
        scores = iter(self._runner([_item(prompt, sample) for prompt, sample in scored]))
        of_cut_off = iter(self._of_cut_off(cut_off))
        return ScoreResult.of(groups, [next(of_cut_off if self._passes_over(sample) else scores) for _, sample in answers])

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

    def _passes_over(self, sample: Sample) -> bool:
        return self._truncated != "score" and is_cut_off(sample)

    def _of_cut_off(self, answers: Sequence[tuple[PromptRecord, Sample]]) -> Sequence[Score]:
        """The scores of completions whose text does not count, because they were cut off."""
        if self._truncated == "drop":
            return [Failure("cut off", f"cut off at maxTokens, after {len(sample.tokens)} tokens") for _, sample in answers]
        if not self._compares:
            return [0.0] * len(answers)
        # They are wrong, unless the true answer is at fault, with which no completion can be compared.
        scores = self._runner([_item(prompt, _EMPTY) for prompt, _ in answers])
        return [score if isinstance(score, Failure) else 0.0 for score in scores]


def build_rule(rule: Rule) -> RuleReward:
    """The reward function of a rule.

    Raises:
        ConfigurationError: The pattern or the entry point cannot be used.
    """
    if compare := IN_PROCESS.get(rule.kind):
        return RuleReward(TextRuleRunner(compare), truncated=rule.resolved_truncated)
    # Of the user's own rule one process, so that what the module holds, such as a loaded model, is there once.
    processes = 1 if rule.kind == "python" else min(MAX_PROCESSES, max(1, available_cores() // 2))
    return RuleReward(
        SandboxPool(rule, processes=processes), compares=rule.kind not in ("python", "regex"), truncated=rule.resolved_truncated
    )


class TextRuleRunner:
    """Applies a function of completion and true answer, in this process."""

    def __init__(self, compare: Callable[[str, str], float]) -> None:
        self._compare = compare

    def __call__(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order."""
        return [self._score(item) for item in items]

    def close(self) -> None:
        """Nothing to free."""

    def _score(self, item: Item) -> Score:
        try:
            return self._compare(item.completion, item.answer or "")
        except UnusableAnswerError as error:
            return Failure("unusable answer", str(error))


def _item(prompt: PromptRecord, sample: Sample) -> Item:
    return Item(prompt.id, prompt.text, sample.text, prompt.answer, prompt.columns, prompt.conversation)
