"""From scored groups to pairs: which two samples of a prompt become chosen and rejected."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from spinrun_api.spec import Method
from spinrun_worker.records import Pair, ScoredGroup


@dataclass(frozen=True)
class Pairing:
    """A window's pairs, and what became of the other groups: every group is a pair, a tie, identical or unrated."""

    pairs: tuple[Pair, ...]
    """At most one a prompt, in the order of the groups."""
    ties: int
    """Groups whose samples all have the same reward."""
    identical: int
    """Groups whose best and worst sample are the same tokens, differently rewarded: a rule that is not sure of itself."""
    unrated: int
    """Groups with fewer than two rewarded samples."""
    dropped_samples: int
    """Samples without a reward, in all groups."""


@dataclass(frozen=True, slots=True)
class _Rated:
    """A sample with a reward."""

    tokens: tuple[int, ...]
    reward: float


NoPair = Literal["tie", "identical", "unrated"]


def pair_groups(groups: Sequence[ScoredGroup], method: Method) -> Pairing:
    """Make the pairs of a window as method.pairing says. Both samples of a pair are always of the same prompt.

    Samples without a finite reward are never in a pair.
    """
    choose = _CHOICES[method.pairing]
    pairs: list[Pair] = []
    rejected: list[NoPair] = []
    dropped = 0
    for group in groups:
        rated = _rated(group)
        dropped += len(group.samples) - len(rated)
        outcome = choose(group, rated)
        if isinstance(outcome, Pair):
            pairs.append(outcome)
        else:
            rejected.append(outcome)
    return Pairing(
        tuple(pairs),
        ties=rejected.count("tie"),
        identical=rejected.count("identical"),
        unrated=rejected.count("unrated"),
        dropped_samples=dropped,
    )


def _rated(group: ScoredGroup) -> list[_Rated]:
    return [
        _Rated(sample.tokens, reward)
        for sample, reward in zip(group.samples, group.rewards, strict=True)
        if reward is not None and math.isfinite(reward)
    ]


def _best_vs_worst(group: ScoredGroup, rated: Sequence[_Rated]) -> Pair | NoPair:
    """Highest against lowest reward; among equals the first by sample index, so that a window can be reproduced."""
    if len(rated) < 2:
        return "unrated"
    best = max(rated, key=lambda sample: sample.reward)
    worst = min(rated, key=lambda sample: sample.reward)
    if best.reward == worst.reward:
        return "tie"
    if best.tokens == worst.tokens:
        return "identical"
    return Pair(
        prompt_id=group.prompt.id,
        prompt=group.prompt.tokens,
        chosen=best.tokens,
        rejected=worst.tokens,
        chosen_reward=best.reward,
        rejected_reward=worst.reward,
    )


_CHOICES: dict[str, Callable[[ScoredGroup, Sequence[_Rated]], Pair | NoPair]] = {"bestVsWorst": _best_vs_worst}
