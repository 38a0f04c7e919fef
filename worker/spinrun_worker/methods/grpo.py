"""GRPO: a clipped policy gradient, token by token. Pure functions; `docs/methods/grpo.md` says what they mean.

Sources: GRPO, arXiv 2402.03300; Dr. GRPO, 2503.20783; DAPO, 2503.14476.
"""

# ruff: noqa: N815 - shape suffixes
# T = completion tokens of some pairs, P = pairs; a 2 is chosen and rejected, in that order

from dataclasses import dataclass

import torch
from torch import Tensor

from spinrun_api.spec import Grpo, Method

MOST_NATS = 20.0
"""Largest difference between two log-probs of a token whose exponential is taken, as in verl: beyond it a step would not be
finite, and the ratio is clipped or hopeless anyway."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the loss knows of T tokens. Log-probs are in nats, at the temperature that the tokens were sampled with."""

    policy_T: Tensor
    """[T] under the policy."""
    old_T: Tensor
    """[T] under the policy as it was at the window's beginning."""
    sampled_T: Tensor
    """[T] as the rollout had it that sampled the token; NaN where it did not say."""
    reference_T: Tensor
    """[T] under the reference."""
    advantage_T: Tensor
    """[T] of the token's answer."""
    weight_T: Tensor
    """[T] weight of the token in the step's sum; see `token_weights`."""


def token_weights(num_tokens_P2: Tensor, mean: str) -> Tensor:
    """[P, 2] weight of each token of a completion in a step's sum: 1, or 1 over the answer's tokens for the mean of answers."""
    return 1 / num_tokens_P2.clamp(min=1) if mean == "answers" else torch.ones_like(num_tokens_P2)


def divisor(num_tokens_P2: Tensor, mean: str, *, max_tokens: int) -> float:
    """What a step's sum of weighted token losses is divided by, over all ranks.

    Args:
        num_tokens_P2: [P, 2] tokens of the completions of the step's pairs; 0 beside an answer that is alone.
        mean: As in the spec.
        max_tokens: Longest answer.
    """
    if mean == "tokens":
        return num_tokens_P2.sum().item()
    num_answers = (num_tokens_P2 > 0).sum().item()
    return float(num_answers * max_tokens if mean == "maxTokens" else num_answers)


def token_losses(tokens: TokenLogprobs, method: Method) -> Tensor:
    """Each token's part of a step's sum: -w min(ρA, clip(ρ) A) + klWeight · k3, times its weight.

    ρ is the ratio of the token's probability to that at the window's beginning, and w the truncated importance weight of
    `importance_weights`. k3 is e^d - d - 1 with d the reference's log-prob minus the policy's.

    Returns:
        [T] losses, nats.
    """
    settings = method.grpo or Grpo()
    ratio_T = ratios(tokens)
    clipped_T = ratio_T.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    losses_T = -torch.minimum(ratio_T * tokens.advantage_T, clipped_T * tokens.advantage_T)
    losses_T = losses_T * importance_weights(tokens, settings)
    if method.kl_weight != 0:
        losses_T = losses_T + method.kl_weight * divergences(tokens)
    return losses_T * tokens.weight_T


def ratios(tokens: TokenLogprobs) -> Tensor:
    """[T] ρ: how much likelier the policy makes a token than at the window's beginning."""
    return torch.exp((tokens.policy_T - tokens.old_T).clamp(-MOST_NATS, MOST_NATS))


def importance_weights(tokens: TokenLogprobs, settings: Grpo) -> Tensor:
    """[T] how much likelier a token is for the policy of the window's beginning than for the rollout, at most importance_cap.

    1 where the rollout has not said, or nothing is to be corrected. Source: truncated importance sampling,
    https://fengyao.notion.site/off-policy-rl.
    """
    if settings.importance_cap == 0:
        return torch.ones_like(tokens.old_T)
    differences_T = (tokens.old_T - tokens.sampled_T).nan_to_num(nan=0.0)
    return torch.exp(differences_T).clamp(max=settings.importance_cap)


def divergences(tokens: TokenLogprobs) -> Tensor:
    """[T] k3 of the policy's divergence from the reference, nats a token: http://joschu.net/blog/kl-approx.html."""
    lacking_T = (tokens.reference_T - tokens.policy_T).clamp(max=MOST_NATS)
    return torch.expm1(lacking_T) - lacking_T


def figures(tokens: TokenLogprobs, method: Method) -> dict[str, float]:
    """A step's figures over all of its tokens, by TRL's names."""
    settings = method.grpo or Grpo()
    ratio_T = ratios(tokens)
    low_T = (ratio_T < 1 - settings.clip_low) & (tokens.advantage_T < 0)
    high_T = (ratio_T > 1 + settings.clip_high) & (tokens.advantage_T > 0)
    found = {
        "clip_ratio/low_mean": low_T.double().mean().item(),
        "clip_ratio/high_mean": high_T.double().mean().item(),
        "clip_ratio/region_mean": (low_T | high_T).double().mean().item(),
    }
    if settings.importance_cap != 0:
        weights_T = importance_weights(tokens, settings)
        found |= {
            "sampling/importance_sampling_ratio/min": weights_T.min().item(),
            "sampling/importance_sampling_ratio/mean": weights_T.mean().item(),
            "sampling/importance_sampling_ratio/max": weights_T.max().item(),
        }
    if method.kl_weight != 0:
        found |= {"kl": divergences(tokens).mean().item()}
    return found
