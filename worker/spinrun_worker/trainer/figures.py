"""The figures of a window's answers, by the names that docs/operations.md explains. Pure."""

import math
from collections.abc import Collection, Sequence

from spinrun_api.spec import PassRateBand
from spinrun_protocol.ledger import Drawn
from spinrun_worker.methods.pairing import Pairing
from spinrun_worker.records import ByToken, Pair, PassRates, ScoredGroup, is_cut_off


def mean_reward(groups: Sequence[ScoredGroup], *, by_rule: bool = True, unusable: Collection[str] = ()) -> float:
    """Mean reward over all samples, 0 without any.

    Args:
        groups: The samples with their rewards.
        by_rule: Whether a rule gave the rewards: a sample without one then counts as 0, as an answer that a rule cannot judge is
            not right. Models have other reasons, and rewards of any size: there it does not count.
        unusable: Ids of prompts with a true answer that the rule cannot read: their samples do not count, since none could be
            right.
    """
    rewards = [
        reward or 0.0
        for group in groups
        if group.prompt.id not in unusable
        for reward in group.rewards
        if by_rule or reward is not None
    ]
    return sum(rewards) / len(rewards) if rewards else 0.0


def length_figures(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Length of the answers in tokens, and the share that was cut."""
    samples = [sample for group in groups for sample in group.samples]
    if not samples:
        return {}
    lengths = [len(sample.tokens) for sample in samples]
    return {
        "response_length/mean": sum(lengths) / len(lengths),
        "response_length/max": float(max(lengths)),
        "response_length/truncated": sum(map(is_cut_off, samples)) / len(samples),
    }


def entropy_figures(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Mean of -log p over the tokens that were sampled, which estimates the entropy of the next token, in nats; nothing where the
    rollouts have not said."""
    logprobs = [value for group in groups for sample in group.samples for value in sample.token_logprobs or ()]
    return {"entropy": -math.fsum(logprobs) / len(logprobs)} if logprobs else {}


def mismatch_figures(pairs: Sequence[Pair], logprobs: Sequence[ByToken]) -> dict[str, float]:
    """How far the rollouts' log-probs are from others of the same tokens, in nats: mean, median, 95th percentile, largest.

    Args:
        pairs: Those whose log-probs the rollouts have said; others are left out.
        logprobs: The others, pair by pair.

    Returns:
        Nothing where the rollouts have not said any.
    """
    differences = sorted(
        abs(said - computed)
        for pair, of_pair in zip(pairs, logprobs, strict=True)
        if (sampled := pair.sampled_by_token) is not None
        for said, computed in zip(sampled.values, of_pair.values, strict=True)
    )
    if not differences:
        return {}
    last = len(differences) - 1
    return {
        "logps/mismatch": math.fsum(differences) / len(differences),
        "logps/mismatch_p50": differences[round(0.5 * last)],
        "logps/mismatch_p95": differences[round(0.95 * last)],
        "logps/mismatch_max": differences[last],
    }


def truncation_figures(groups: Sequence[ScoredGroup], *, counted: bool) -> dict[str, float]:
    """How many answers were cut off and are not like others for that; nothing where they are."""
    if not counted:
        return {}
    return {"truncated_samples": float(sum(is_cut_off(sample) for group in groups for sample in group.samples))}


def prompt_figures(num_prompts: int, pairing: Pairing, *, by_rule: bool) -> dict[str, float]:
    """What became of a window's prompts: how many gave pairs, and why the others gave none.

    Args:
        num_prompts: Those that were answered.
        pairing: The pairs of their answers, and what made none.
        by_rule: Whether a rule gave the rewards: only then a reward says that an answer is right or wrong.
    """
    known = pairing.all_right + pairing.all_wrong if by_rule else 0
    split = {"all_right": float(pairing.all_right), "all_wrong": float(pairing.all_wrong)} if by_rule else {}
    return {
        "paired_prompts": float(num_prompts - pairing.ties - pairing.identical - pairing.unrated),
        "ties": float(pairing.ties),
        **split,
        "other_ties": float(pairing.ties - known),
        "identical": float(pairing.identical),
        "unrated": float(pairing.unrated),
    }


def drawn_figures(drawn: Drawn) -> dict[str, float]:
    """How many prompts a window took to have its pairs."""
    return {"prompts": float(drawn.stop - drawn.start - drawn.skipped)}


def pass_rate_figures(
    groups: Sequence[ScoredGroup], rates: PassRates, band: PassRateBand, *, skipped: int, widened: float
) -> dict[str, float]:
    """How prompts do, where windows leave out some.

    Args:
        groups: The window's own samples with their rewards.
        rates: The pass rates that are known after the window.
        band: Those of prompts that windows draw.
        skipped: Prompts that the window left out.
        widened: By how much it moved the bounds apart.
    """
    own = [rate for group in groups if (rate := group.pass_rate) is not None]
    inside = sum(band.min <= each.rate <= band.max for each in rates.values())
    return {
        "pass_rate/mean": sum(own) / len(own) if own else 0.0,
        "pass_rate/inside": inside / len(rates) if rates else 0.0,
        "pass_rate/widened": widened,
        "skipped_prompts": float(skipped),
    }


def throughput_figures(groups: Sequence[ScoredGroup], seconds: float) -> dict[str, float]:
    """Samples and completion tokens per second of generation."""
    samples = [sample for group in groups for sample in group.samples]
    return {
        "throughput/samples_per_second": len(samples) / seconds,
        "throughput/tokens_per_second": sum(len(sample.tokens) for sample in samples) / seconds,
    }


def window_figures(
    groups: Sequence[ScoredGroup],
    pairing: Pairing,
    *,
    replayed: int = 0,
    by_rule: bool = True,
    unusable: Collection[str] = (),
    counts_truncated: bool = False,
) -> dict[str, float]:
    """What a window's samples and pairs look like.

    Args:
        groups: The window's own samples with their rewards.
        pairing: Its own pairs, and what made none.
        replayed: Pairs of earlier windows that it trains on too.
        by_rule: As for `mean_reward`.
        unusable: As for `mean_reward`.
        counts_truncated: Whether answers that were cut off are not like others.
    """
    figures = {
        "reward/mean": mean_reward(groups, by_rule=by_rule, unusable=unusable),
        "samples": float(sum(len(group.samples) for group in groups)),
        "pairs": float(len(pairing.pairs)),
        **prompt_figures(len(groups), pairing, by_rule=by_rule),
        "dropped_samples": float(pairing.dropped_samples),
        **length_figures(groups),
        **entropy_figures(groups),
        **truncation_figures(groups, counted=counts_truncated),
    }
    figures |= {"truncated_truths": float(pairing.truncated_truths)} if pairing.truncated_truths else {}
    return figures | {"replayed_pairs": float(replayed)} if replayed else figures
