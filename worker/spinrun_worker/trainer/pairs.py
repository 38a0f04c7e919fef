"""From answers to pairs: rewards by the run's preference, then pairs by its method. Rank 0 alone makes them."""

import logging
from collections.abc import Callable, Sequence

from spinrun_api.run import SpinRun
from spinrun_api.spec import Truncated
from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.errors import NoPairsError
from spinrun_worker.methods.pairing import Pairing, pair_groups, pair_with_base, pair_with_truths
from spinrun_worker.records import Answers, PromptRecord, ScoredGroup
from spinrun_worker.rewards import RewardFunction, RuleReward, ScoreResult
from spinrun_worker.trainer.no_pairs import why_no_pairs
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

    def refuse_endless_ties(
        self, number: int, answers: ScoredAnswers, num_pairs: Callable[[int], int], earlier: Callable[[int], ScoredAnswers]
    ) -> None:
        """End the run when a window and the ones before it gave no pair.

        Args:
            number: The window.
            answers: Its answers.
            num_pairs: The number of pairs of a window.
            earlier: The answers of a window before.

        Raises:
            NoPairsError: Says what was so in these windows, and where to look.
        """
        recent = range(number - MAX_EMPTY_WINDOWS + 1, number + 1)
        if recent[0] < 0 or any(num_pairs(window) for window in recent):
            return
        of_windows = [*map(earlier, recent[:-1]), answers]
        raise NoPairsError(why_no_pairs(self._spec, recent, of_windows, [self.pair(each) for each in of_windows]))

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
