"""From answers to pairs: rewards by the run's preference, then pairs by its method. Rank 0 alone makes them."""

import logging
from collections.abc import Callable, Sequence

from spinrun_api.run import SpinRun
from spinrun_api.spec import Truncated
from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.errors import NoPairsError
from spinrun_worker.methods.pairing import Pairing, pair_groups, pair_with_base, pair_with_truths
from spinrun_worker.records import Answers, PromptRecord, ScoredGroup, is_cut_off
from spinrun_worker.rewards import RewardFunction, RuleReward, ScoreResult
from spinrun_worker.trainer.storage.base_answers import BaseAnswers
from spinrun_worker.trainer.storage.windows import ScoredAnswers

logger = logging.getLogger(__name__)

MAX_EMPTY_WINDOWS = 3
"""Windows in a row without any pair after which the run ends: more of the same will not teach it anything."""


class PairMaker:
    """Scores answers and makes pairs of them."""

    def __init__(
        self, run: SpinRun, scorer: RewardFunction, encode_answer: Callable[[str], Sample], base: BaseAnswers | None
    ) -> None:
        """Prepare to score.

        Args:
            run: Says which preference and which method.
            scorer: The preference.
            encode_answer: Makes a sample of a true answer, for methods that train on them.
            base: Answers of version 0, for the pairing that sets answers against them.
        """
        self._spec = run.spec
        self.scorer = scorer
        self._encode_answer = encode_answer
        self.base = base

    @property
    def is_by_rule(self) -> bool:
        """Whether a rule gives the rewards."""
        return self._spec.preference.scoring is not None

    @property
    def truncated(self) -> Truncated | None:
        """What becomes of answers that were cut off; None where no rule gives the rewards."""
        rule = self._spec.preference.scoring
        return None if rule is None else rule.resolved_truncated

    @property
    def counts_truncated(self) -> bool:
        """Whether a window's answers that were cut off are not like others, by their rewards or by how they are paired."""
        return self.truncated not in (None, "score") or self._spec.method.truncated != "score"

    def score(self, answers: Answers) -> ScoredAnswers:
        """A window's own answers with their rewards, and the base answers that were scored among them."""
        if self.base is None:
            result = self.scorer.score(_samples(answers))
            return ScoredAnswers(self._scored(answers, result), failures=result.messages)
        of_base = self.base.of(prompt for prompt, _ in answers)
        together = [(prompt, _with_sample(group, of_base.get(prompt.id))) for prompt, group in answers]
        result = self.scorer.score(_samples(together))
        scored = self._scored(together, result)
        divided = [_divided(each, len(group.samples)) for each, (_, group) in zip(scored, answers, strict=True)]
        return ScoredAnswers([own for own, _ in divided], [base for _, base in divided], result.messages)

    def grade(self, answers: Answers) -> list[ScoredGroup]:
        """Held-out answers with their rewards, each for itself."""
        return self._scored(answers, self.scorer.grade(_samples(answers)))

    def unusable_answers(self, prompts: Sequence[PromptRecord]) -> dict[str, str]:
        """Why the rule cannot compare with a prompt's true answer, by the prompt's id; empty where no rule gives the rewards."""
        return self.scorer.unusable_answers(prompts) if isinstance(self.scorer, RuleReward) else {}

    def unusable(self, groups: Sequence[ScoredGroup]) -> dict[str, str]:
        """The same of scored groups, of which only those without any reward are looked at."""
        unrated = [group.prompt for group in groups if group.samples and all(reward is None for reward in group.rewards)]
        return self.unusable_answers(unrated) if unrated else {}

    def pair(self, answers: ScoredAnswers) -> Pairing:
        """Pairs of scored answers, as the method says."""
        spec, groups = self._spec, answers.groups
        if spec.method.name == "spin":
            return pair_with_truths(groups, spec.method, self._encode_answer)
        are_win_rates = spec.preference.compares
        if self.base is not None:
            return pair_with_base(groups, answers.base, spec.method, are_win_rates=are_win_rates)
        return pair_groups(groups, spec.method, seed=spec.data.prompts.shuffle_seed, are_win_rates=are_win_rates)

    def warn_of_truncated_truths(self, number: int, pairing: Pairing, num_prompts: int) -> None:
        """Say how many of a window's true answers were cut off."""
        if not pairing.truncated_truths:
            return
        dropped = self._spec.method.truncated == "drop"
        logger.warning(
            "window %d: %d of %d true answers are longer than spec.rollout.maxTokens (%d) and %s: raise it, or leave them out of "
            "the data",
            number,
            pairing.truncated_truths,
            num_prompts,
            self._spec.max_tokens,
            "make no pair" if dropped else "were cut off there, without an end token, which teaches the model not to end",
        )

    def refuse_endless_ties(self, number: int, answers: ScoredAnswers, num_pairs: Callable[[int], int]) -> None:
        """End the run when a window and the ones before it gave no pair.

        Args:
            number: The window.
            answers: Its answers, which say why.
            num_pairs: The number of pairs of a window.

        Raises:
            NoPairsError: Says what was so in the last window, and where to look.
        """
        recent = range(number - MAX_EMPTY_WINDOWS + 1, number + 1)
        if recent[0] < 0 or any(num_pairs(window) for window in recent):
            return
        pairing = self.pair(answers)
        if self._spec.method.name == "spin" and pairing.dropped_samples == 0:
            raise NoPairsError(
                f"windows {recent[0]} to {recent[-1]} gave no pair: the model gives the true answer to every prompt, and has "
                f"nothing left to learn from spec.data.prompts. Look at the samples (windows/{number:06d}/samples.parquet)"
            )
        raise NoPairsError(
            f"windows {recent[0]} to {recent[-1]} gave no pair: {self._without_pairs(number, answers, pairing)} "
            f"Look at the samples (windows/{number:06d}/samples.parquet): {self._remedy(len(answers.groups), pairing)}"
        )

    def _without_pairs(self, number: int, answers: ScoredAnswers, pairing: Pairing) -> str:
        """Why the prompts of a window without any pair have none."""
        total, margin = len(answers.groups), f"spec.method.minMargin ({self._spec.method.min_margin:g})"
        reasons = f" ({'; '.join(answers.failures)})" if answers.failures else ""
        if self._spec.method.name == "spin":
            truths = pairing.truncated_truths
            longer = f" {truths} of {total} true answers are longer than spec.rollout.maxTokens." if truths else ""
            return f"without answers that were cut off there is nothing to learn from.{self._cut_off(answers)}{longer}"
        if pairing.ties == total:
            return f"every prompt's answers have rewards that are equal, or closer than {margin}.{self._cut_off(answers)}"
        if all(reward is None for group in answers.groups for reward in group.rewards):
            return f"no answer of window {number} was rated{reasons}."
        counts = {
            f"with too few rated answers{reasons}": pairing.unrated,
            f"with rewards that are equal, or closer than {margin}": pairing.ties,
            "with pairs of the same tokens only, differently rewarded": pairing.identical,
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        return f"window {number} has {total} prompts, {', '.join(parts)}.{self._cut_off(answers)}"

    def _cut_off(self, answers: ScoredAnswers) -> str:
        """How many answers were cut off, where they count as wrong or are left out for that; else nothing."""
        samples = [sample for group in answers.groups for sample in group.samples]
        count, dropped = sum(map(is_cut_off, samples)), self._spec.method.truncated == "drop"
        if count == 0 or not (dropped or self.truncated == "zero"):
            return ""
        limit = f"spec.rollout.maxTokens ({self._spec.rollout.max_tokens})"
        what = "make no pair (spec.method.truncated: drop)" if dropped else "count as wrong"
        return f" {count} of {len(samples)} answers were cut off at {limit} and so {what}."

    def _remedy(self, total: int, pairing: Pairing) -> str:
        block = f"spec.preference.{self._spec.preference.name}"
        if pairing.unrated == total:
            return (
                f"can {block} rate them, does it read the true answers, and is spec.rollout.maxTokens "
                f"({self._spec.rollout.max_tokens}) long enough?"
            )
        return (
            f"do answers match {block}? Are prompts too easy or too hard, is spec.rollout.maxTokens "
            f"({self._spec.max_tokens}) too short, spec.rollout.temperature too low?"
        )

    def _scored(self, answers: Answers, result: ScoreResult) -> list[ScoredGroup]:
        for message in result.messages:
            logger.warning("%s", message)
        return [
            ScoredGroup(prompt, group.samples, rewards) for (prompt, group), rewards in zip(answers, result.rewards, strict=True)
        ]


def _samples(answers: Answers) -> list[tuple[PromptRecord, Sequence[Sample]]]:
    return [(prompt, group.samples) for prompt, group in answers]


def _with_sample(group: SampleGroup, sample: Sample | None) -> SampleGroup:
    return group if sample is None else group.model_copy(update={"samples": (*group.samples, sample)})


def _divided(group: ScoredGroup, count: int) -> tuple[ScoredGroup, ScoredGroup]:
    """The first `count` samples with their rewards, and the others."""
    first = ScoredGroup(group.prompt, group.samples[:count], group.rewards[:count])
    return first, ScoredGroup(group.prompt, group.samples[count:], group.rewards[count:])
