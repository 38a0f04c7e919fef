"""From scored groups to pairs: which samples of a prompt become chosen and rejected, or that all of them are trained on."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from spinrun_api.spec import Grpo, Method, Sppo, SppoAdvantage
from spinrun_protocol.wire import Sample
from spinrun_worker.records import ByToken, Pair, ScoredGroup, is_cut_off

EPSILON = 1e-4
"""What is added to a standard deviation before rewards are divided by it, as in TRL."""


@dataclass(frozen=True)
class Pairing:
    """A window's pairs, and what became of the other groups: every group has pairs, or is a tie, identical or unrated."""

    pairs: tuple[Pair, ...]
    """In the order of the groups. Those of one prompt are neighbours."""
    ties: int
    """Groups without two rewards that differ by minMargin. Those whose rewards are all equal are counted by `all_right` and
    `all_wrong` too. With sppoAdvantage they are trained on, and teach nothing but to stay."""
    identical: int
    """Groups whose pairs would be of the same tokens, differently rewarded: a rule that contradicts itself."""
    unrated: int
    """Groups with fewer than two rewarded samples."""
    dropped_samples: int
    """Samples without a reward, or left out because they were cut off, in all groups; with sppoAdvantage those without tokens
    too."""
    all_right: int = 0
    """Of the ties, groups whose rewards are all equal and at least 1. Where no rule gives the rewards it says nothing."""
    all_wrong: int = 0
    """Likewise, all equal and at most 0."""
    truncated_truths: int = 0
    """Groups whose true answer is longer than a sample may be, for methods that train on it."""


@dataclass(frozen=True, slots=True)
class _Rated:
    """A sample with a reward."""

    tokens: tuple[int, ...]
    reward: float
    logprob: float | None = None
    """As the rollouts have it, where they were asked for it."""
    token_logprobs: tuple[float, ...] | None = None
    """Likewise."""


Tie = Literal["all right", "all wrong", "tie"]
NoPair = Tie | Literal["identical", "unrated"]
Outcome = list[Pair] | NoPair
"""A group's pairs, or why it has none."""


def pair_groups(groups: Sequence[ScoredGroup], method: Method, *, seed: int, are_win_rates: bool = False) -> Pairing:
    """Make the pairs of a window as method.pairing says. Both samples of a pair are always of the same prompt.

    Samples without a finite reward are never in a pair. For sppo the rewards of the pairs are win rates. The same arguments give
    the same pairs, where chance decides too. The losses sppoAdvantage and grpo have all samples instead: see `couple_groups` and
    `couple_by_advantage`.

    Args:
        groups: The window's prompts with their scored samples.
        method: The method of the run.
        seed: Of the draws of bestVsRandom.
        are_win_rates: The rewards already are win rates, among the prompt's other samples.
    """
    groups = with_truncated(groups, method, are_win_rates=are_win_rates)
    if method.loss == "sppoAdvantage":
        return couple_groups(groups, method.sppo_advantage or SppoAdvantage())
    if method.grpo_settings is not None:
        return couple_by_advantage(groups, method.grpo_settings)

    def outcome(group: ScoredGroup) -> Outcome:
        rated = _rated(group)
        if method.name == "sppo":
            by_win_rate = _with_self if are_win_rates else _by_win_rate
            rated = by_win_rate(rated, include_self=(method.sppo or Sppo()).include_self)
        return _pair_group(group, rated, method, seed)

    return _counted(map(outcome, groups), groups)


DEFAULT_PENALTY = 1.0
"""What is taken from the reward of an answer that was cut off, where the spec does not say how much."""


def with_truncated(groups: Sequence[ScoredGroup], method: Method, *, are_win_rates: bool) -> Sequence[ScoredGroup]:
    """The groups with the rewards that samples which were cut off have for their pairs, as `method.truncated` says."""
    if method.truncated == "score":
        return groups
    penalty = DEFAULT_PENALTY if method.truncated_penalty is None else method.truncated_penalty

    def reward_of(sample: Sample, reward: float | None) -> float | None:
        if reward is None or not is_cut_off(sample):
            return reward
        if method.truncated == "drop":
            return None
        return max(0.0, reward - penalty) if are_win_rates else reward - penalty

    return [replace(group, rewards=tuple(map(reward_of, group.samples, group.rewards))) for group in groups]


def couple_groups(groups: Sequence[ScoredGroup], settings: SppoAdvantage) -> Pairing:
    """Pair all rewarded samples of a window with their advantages: a prompt's best with its worst, the next best with the next.

    The one in the middle is alone: chosen when its advantage is at least 0, else rejected. Samples without tokens are left out.
    A sample's advantage is r - (1/κ) log mean exp(κ r), the mean over its prompt's samples or, with advantage: batch, over the
    window's. Source: verl's recipe/sppo, where the window is one training batch.
    """
    ranked_groups = [[sample for sample in _rated(group) if sample.tokens] for group in groups]
    window_baseline = _soft_mean([sample.reward for ranked in ranked_groups for sample in ranked], settings.kappa)
    of_prompt = settings.advantage == "prompt"
    pairs: list[Pair] = []
    for group, ranked in zip(groups, ranked_groups, strict=True):
        baseline = _soft_mean([sample.reward for sample in ranked], settings.kappa) if of_prompt else window_baseline
        pairs += _couples(group, [replace(sample, reward=sample.reward - baseline) for sample in ranked])
    # Against the window's baseline, answers of equal rewards have something to teach.
    equal = [_tie(ranked) for ranked in ranked_groups if of_prompt and len(ranked) > 1 and ranked[0].reward == ranked[-1].reward]
    return Pairing(
        tuple(pairs),
        ties=len(equal),
        identical=0,
        unrated=sum(not ranked for ranked in ranked_groups),
        dropped_samples=sum(len(group.samples) - len(ranked) for group, ranked in zip(groups, ranked_groups, strict=True)),
        all_right=equal.count("all right"),
        all_wrong=equal.count("all wrong"),
    )


def advantages(rewards: Sequence[float], settings: Grpo) -> list[float]:
    """How much better each answer of a prompt is than their mean; all 0 where they are equal.

    Args:
        rewards: Of the prompt's answers, at least two.
        settings: scale_rewards group: divided by their unbiased standard deviation plus `EPSILON`.
    """
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if settings.scale_rewards == "none":
        return centred
    largest = max(map(abs, centred))  # squares of rewards near the end of the floating-point range overflow
    deviation = largest * math.sqrt(math.fsum((value / largest) ** 2 for value in centred) / (len(centred) - 1))
    return [value / (deviation + EPSILON) for value in centred]


def couple_by_advantage(groups: Sequence[ScoredGroup], settings: Grpo) -> Pairing:
    """Pair all rewarded samples of a window with their advantages as grpo has them, as `couple_groups` does.

    A prompt whose samples have equal rewards teaches nothing: it has no pairs, and counts as a tie.
    """

    def outcome(group: ScoredGroup) -> Outcome:
        ranked = [sample for sample in _rated(group) if sample.tokens]
        if len(ranked) < 2:
            return "unrated"
        if ranked[0].reward == ranked[-1].reward:
            return _tie(ranked)
        of_samples = advantages([sample.reward for sample in ranked], settings)
        return _couples(group, [replace(sample, reward=of) for sample, of in zip(ranked, of_samples, strict=True)])

    return _counted(map(outcome, groups), groups)


def _soft_mean(values: Sequence[float], kappa: float) -> float:
    """(1/κ) log mean exp(κ value), the plain mean for κ = 0; 0 of no values."""
    if not values:
        return 0.0
    if kappa == 0:
        return math.fsum(values) / len(values)
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(kappa * (value - largest)) for value in values) / len(values)) / kappa


def _couples(group: ScoredGroup, ranked: Sequence[_Rated]) -> list[Pair]:
    """The first with the last, and so on to the middle."""
    half = len(ranked) // 2
    couples = [_pair(group, ranked[index], ranked[-1 - index]) for index in range(half)]
    if len(ranked) % 2 == 0:
        return couples
    alone = ranked[half]
    nobody = replace(
        _NOBODY,
        logprob=None if alone.logprob is None else 0.0,
        token_logprobs=None if alone.token_logprobs is None else (),
    )
    return [*couples, _pair(group, alone, nobody) if alone.reward >= 0 else _pair(group, nobody, alone)]


_NOBODY = _Rated(tokens=(), reward=0.0)
"""Beside a sample that is alone."""


def pair_with_base(
    groups: Sequence[ScoredGroup], base: Sequence[ScoredGroup], method: Method, *, are_win_rates: bool = False
) -> Pairing:
    """Make the pairs of a window as `bestVsBase` does: a prompt's best sample chosen, the one of version 0 rejected.

    Where the best is not better than the sample of version 0 by method.minMargin there is no pair, and the prompt counts as a
    tie.

    Args:
        groups: The window's prompts with their scored samples.
        base: For each group one of the same prompt with the sample of version 0, or without any.
        method: The method of the run.
        are_win_rates: The rewards are win rates.
    """
    groups, base = (with_truncated(each, method, are_win_rates=are_win_rates) for each in (groups, base))
    outcomes: Iterable[Outcome] = (
        _against_base(group, _rated(group), _rated(of_base), method) for group, of_base in zip(groups, base, strict=True)
    )
    return _counted(outcomes, (*groups, *base))


def _counted(outcomes: Iterable[Outcome], groups: Sequence[ScoredGroup]) -> Pairing:
    """The pairs of a window, and how many groups have none for which reason.

    Args:
        outcomes: What became of each group.
        groups: Those whose samples could have been paired.
    """
    pairs: list[Pair] = []
    without: list[NoPair] = []
    for outcome in outcomes:
        if isinstance(outcome, list):
            pairs += outcome
        else:
            without.append(outcome)
    right, wrong = without.count("all right"), without.count("all wrong")
    return Pairing(
        tuple(pairs),
        ties=right + wrong + without.count("tie"),
        identical=without.count("identical"),
        unrated=without.count("unrated"),
        dropped_samples=sum(len(group.samples) - len(_rated(group)) for group in groups),
        all_right=right,
        all_wrong=wrong,
    )


def _tie(rated: Sequence[_Rated]) -> Tie:
    """What kind of tie a prompt's answers are, by the rewards that a rule gave them, not by their win rates. rated: at least one,
    the best first."""
    best, worst = rated[0].reward, rated[-1].reward
    if best == worst and best >= 1:
        return "all right"
    return "all wrong" if best == worst and best <= 0 else "tie"


def _against_base(group: ScoredGroup, ranked: Sequence[_Rated], base: Sequence[_Rated], method: Method) -> Outcome:
    if not ranked or not base:
        return "unrated"
    chosen, rejected = ranked[0], base[0]
    if not (chosen.reward > rejected.reward and chosen.reward - rejected.reward >= method.min_margin):
        return _tie(ranked)
    return "identical" if chosen.tokens == rejected.tokens else [_pair(group, chosen, rejected)]


def pair_with_truths(groups: Sequence[ScoredGroup], method: Method, encode: Callable[[str], Sample]) -> Pairing:
    """Make the pairs of a window as SPIN does, arXiv 2401.01335: the true answer chosen, each own sample rejected.

    A sample of the same text or the same tokens makes no pair. The rewards of the pairs are 1 and 0, whatever the samples' own.

    Args:
        groups: The window's prompts with their samples.
        method: The method of the run.
        encode: Gives a true answer as the sample that the model would have given.

    Raises:
        ValueError: A prompt has no true answer.
    """
    truths = [_truth(group, encode) for group in groups]
    kept = [_without_truncated(*each) if method.truncated == "drop" else each[0] for each in zip(groups, truths, strict=True)]
    by_group = [_against_truth(*each) for each in zip(kept, truths, strict=True)]
    return Pairing(
        tuple(pair for pairs in by_group for pair in pairs),
        ties=0,
        identical=sum(not pairs and bool(group.samples) for group, pairs in zip(kept, by_group, strict=True)),
        unrated=sum(not group.samples for group in kept),
        dropped_samples=sum(len(group.samples) - len(rest.samples) for group, rest in zip(groups, kept, strict=True)),
        truncated_truths=sum(map(is_cut_off, truths)),
    )


def _truth(group: ScoredGroup, encode: Callable[[str], Sample]) -> Sample:
    if group.prompt.answer is None:
        raise ValueError(f"prompt {group.prompt.id!r} has no true answer: drop it")
    return encode(group.prompt.answer)


def _without_truncated(group: ScoredGroup, truth: Sample) -> ScoredGroup:
    """The group without samples that were cut off, and without any where its true answer was."""
    samples = () if is_cut_off(truth) else tuple(sample for sample in group.samples if not is_cut_off(sample))
    return replace(group, samples=samples, rewards=(None,) * len(samples))


def _against_truth(group: ScoredGroup, truth: Sample) -> list[Pair]:
    return [
        _pair(group, _Rated(truth.tokens, 1.0), _Rated(sample.tokens, 0.0))
        for sample in group.samples
        if sample.text.strip() != truth.text.strip() and sample.tokens != truth.tokens
    ]


def _rated(group: ScoredGroup) -> list[_Rated]:
    """The best first; among equals in the order of the samples, so that a window can be reproduced."""
    rated = [
        _Rated(sample.tokens, reward, sample.logprob, sample.token_logprobs)
        for sample, reward in zip(group.samples, group.rewards, strict=True)
        if reward is not None and math.isfinite(reward)
    ]
    return sorted(rated, key=lambda sample: sample.reward, reverse=True)


def _by_win_rate(ranked: Sequence[_Rated], *, include_self: bool) -> list[_Rated]:
    """The same samples in the same order, each with its win rate instead of its reward: the mean probability to win.

    A reward wins against another with the logistic probability of their difference: the model of Bradley and Terry, by which
    reward models are trained.

    Args:
        ranked: The rated samples of a prompt.
        include_self: Each sample also meets itself, a draw, as SPPO's authors count.
    """
    if len(ranked) < 2:
        return list(ranked)
    draw = 0.5 if include_self else 0.0
    num_opponents = len(ranked) - (not include_self)
    return [
        replace(
            sample,
            reward=(draw + sum(_win_probability(sample, other) for other in ranked if other is not sample)) / num_opponents,
        )
        for sample in ranked
    ]


def _with_self(ranked: Sequence[_Rated], *, include_self: bool) -> list[_Rated]:
    """The same samples, with a draw with themselves in their win rates if wanted."""
    if not include_self or len(ranked) < 2:
        return list(ranked)
    return [replace(sample, reward=(0.5 + sample.reward * (len(ranked) - 1)) / len(ranked)) for sample in ranked]


def _win_probability(one: _Rated, other: _Rated) -> float:
    """The logistic function of the difference in rewards, in a form that no difference overflows."""
    return 0.5 + 0.5 * math.tanh((one.reward - other.reward) / 2)


def _pair_group(group: ScoredGroup, ranked: Sequence[_Rated], method: Method, seed: int) -> Outcome:
    if len(ranked) < 2:
        return "unrated"
    candidates = [
        (better, worse)
        for better, worse in _CANDIDATES[method.pairing](ranked)
        if better.reward > worse.reward and better.reward - worse.reward >= method.min_margin
    ]
    if not candidates:
        return _tie(_rated(group))
    distinct = [(better, worse) for better, worse in candidates if better.tokens != worse.tokens]
    if not distinct:
        return "identical"
    if method.pairing == "bestVsRandom":
        distinct = [random.Random(f"{seed} {group.prompt.id}").choice(distinct)]
    return [_pair(group, better, worse) for better, worse in distinct]


def _best_vs_worst(ranked: Sequence[_Rated]) -> Iterable[tuple[_Rated, _Rated]]:
    return [(ranked[0], min(ranked, key=lambda sample: sample.reward))]


def _best_vs_each(ranked: Sequence[_Rated]) -> Iterable[tuple[_Rated, _Rated]]:
    best, *others = ranked
    return [(best, other) for other in others]


def _all_pairs(ranked: Sequence[_Rated]) -> Iterable[tuple[_Rated, _Rated]]:
    return combinations(ranked, 2)


_CANDIDATES: dict[str, Callable[[Sequence[_Rated]], Iterable[tuple[_Rated, _Rated]]]] = {
    "bestVsWorst": _best_vs_worst,
    # One of them is drawn, once those that make no pair are gone.
    "bestVsRandom": _best_vs_each,
    "allPairs": _all_pairs,
}
"""The pairs that a pairing would like to make of samples, the best first, before equal rewards and equal tokens are left out."""


def _pair(group: ScoredGroup, chosen: _Rated, rejected: _Rated) -> Pair:
    by_token = None
    if chosen.token_logprobs is not None and rejected.token_logprobs is not None:
        by_token = ByToken(chosen.token_logprobs, rejected.token_logprobs)
    return Pair(
        prompt_id=group.prompt.id,
        prompt=group.prompt.tokens,
        chosen=chosen.tokens,
        rejected=rejected.tokens,
        chosen_reward=chosen.reward,
        rejected_reward=rejected.reward,
        reference_chosen=chosen.logprob,
        reference_rejected=rejected.logprob,
        sampled_by_token=by_token,
    )
