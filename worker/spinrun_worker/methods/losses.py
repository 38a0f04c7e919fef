"""Losses over pairs: pure functions of summed log-probs. `docs/methods.md` says when to use which.

The loss grpo, which is over tokens, is in `grpo.py`.

A new loss is a function here, a line in LOSSES, its name in `method.loss`, a block of `Method` where it has settings of its
own, a test and a line in that page.
"""

# ruff: noqa: N815 - shape suffixes
# B = pairs; a 2 is chosen and rejected, in that order

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from spinrun_api.spec import Discopop, Dpop, Exo, Hinge, Ipo, Method, Orpo, Robust, Sigmoid, Simpo, Sppo, SppoAdvantage
from spinrun_api.spec.method import Divergent

LARGEST_EXPONENT = 80.0
"""Largest exponent of a score of a divergence, as in TRL: fp32 ends not far beyond it. An answer that far off has no gradient."""

MOST_LIKELY = -1e-6
"""Highest log-prob per token whose odds orpo takes: those of a certain token are infinite."""


@dataclass(frozen=True, slots=True)
class PairLogprobs:
    """What a loss knows of B pairs."""

    policy_B2: Tensor
    """[B, 2] summed log-probs of the completions under the policy, nats. With lengthDesensitize below 1 those sums, and the
    reference's, weigh the tokens beyond the shorter completion by it."""
    reference_B2: Tensor
    """[B, 2] the same under the reference."""
    num_tokens_B2: Tensor
    """[B, 2] tokens of the completions."""
    rewards_B2: Tensor
    """[B, 2] rewards of the completions; for the method sppo their win rates or, for sppoAdvantage, advantages."""
    contrast_B: Tensor | None = None
    """[B] for cringe: log-probs, summed over the rejected completion's tokens, of another token in a choice between the two,
    nats."""

    @property
    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """([B], [B]) how much likelier the policy makes the chosen and the rejected completion than the reference does, nats."""
        chosen_B, rejected_B = (self.policy_B2 - self.reference_B2).unbind(1)
        return chosen_B, rejected_B

    @property
    def margins(self) -> Tensor:
        """[B] log-ratio of chosen minus that of rejected, nats: h in the formulas."""
        chosen_B, rejected_B = self.log_ratios
        return chosen_B - rejected_B

    def scores(self, settings: Divergent) -> tuple[Tensor, Tensor]:
        """([B], [B]) what the divergence has in place of the log-ratios of chosen and rejected: f'(t), t the ratio.

        Source: arXiv 2309.16240, table 1, without the constants that are the same for both.
        """
        chosen_B, rejected_B = self.log_ratios
        return _score(chosen_B, settings), _score(rejected_B, settings)

    def per_token(self) -> "PairLogprobs":
        """The same with log-probs averaged over the tokens of each completion; those of an empty one stay 0."""
        num_tokens_B2 = self.num_tokens_B2.clamp(min=1)
        return replace(self, policy_B2=self.policy_B2 / num_tokens_B2, reference_B2=self.reference_B2 / num_tokens_B2)


PairLoss = Callable[[PairLogprobs, Method], Tensor]
"""[B] the loss of each single pair, in nats where it is a likelihood. Reads the method's settings, not its name."""


def pair_losses(pairs: PairLogprobs, method: Method) -> Tensor:
    """The method's loss of each pair: the weighted sum of its losses. A step's loss is their sum over all ranks divided by
    `num_pairs`.

    sftWeight adds the negative log-likelihood of the chosen completion, per token, to any loss: RPO, arXiv 2404.19733. klWeight
    adds an estimate of the divergence from the reference. A pair's weight, if it has one, multiplies all of this.

    Returns:
        [B] losses, nats.
    """
    losses_B = torch.zeros_like(pairs.policy_B2[:, 0])
    for each in method.weighted_losses:
        own = method if each.beta is None else method.model_copy(update={"beta": each.beta})
        losses_B = losses_B + each.weight * LOSSES[each.name](pairs, own)
    if method.sft_weight != 0:
        losses_B = losses_B - method.sft_weight * pairs.per_token().policy_B2[:, 0]
    if method.kl_weight != 0:
        losses_B = losses_B + method.kl_weight * divergences(pairs)
    return pair_weights(pairs, method) * losses_B if method.weighs_pairs else losses_B


def pair_weights(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] how much each pair counts, without a gradient.

    By likelihood: p(chosen) p(rejected), p the geometric mean of an answer's tokens' probabilities: arXiv 2406.11827, unaligned.
    By margin: the difference of the rewards.
    """
    weights_B = torch.ones_like(pairs.policy_B2[:, 0])
    if method.weight_by_likelihood:
        weights_B = pairs.per_token().policy_B2.detach().sum(dim=1).clamp(max=0).exp()
    if method.weight_by_margin:
        weights_B = weights_B * (pairs.rewards_B2[:, 0] - pairs.rewards_B2[:, 1])
    return weights_B


def num_pairs(num_tokens_P2: Tensor, method: Method) -> float:
    """What a step's sum of losses is divided by: its pairs; for sppoAdvantage, whose answers may be alone, half its answers.

    Args:
        num_tokens_P2: [P, 2] tokens of the completions of the step's pairs; 0 beside an answer that is alone.
        method: The method of the run.
    """
    if method.loss == "sppoAdvantage":
        return (num_tokens_P2 > 0).sum().item() / 2
    return float(len(num_tokens_P2))


def divergences(pairs: PairLogprobs) -> Tensor:
    """[B] KL(policy ‖ reference) as estimated from each pair, nats per answer: the mean of ½ (log-ratio)² over its completions.

    Source: k2 of http://joschu.net/blog/kl-approx.html, over whole completions. Of the estimators there it is the one whose
    gradient, over samples of the policy, is that of the divergence: arXiv 2506.09477. k3 as a loss has another, and a sum over
    tokens only a part of it.
    """
    return 0.5 * (pairs.policy_B2 - pairs.reference_B2).square().mean(dim=1)


def _score(log_ratio_B: Tensor, settings: Divergent) -> Tensor:
    """[B] f'(t) of a divergence, from log t."""
    if settings.divergence == "js":
        return math.log(2) + logsigmoid(log_ratio_B)  # log (2 t / (t + 1))
    if settings.divergence == "reverseKL":
        return log_ratio_B
    # (t^(α-1) - 1) / (α-1); at α = 0 this is forward KL's 1 - 1/t.
    alpha = 0.0 if settings.divergence == "forwardKL" else 0.5 if settings.alpha is None else settings.alpha
    exponents_B = ((alpha - 1) * log_ratio_B).clamp(max=LARGEST_EXPONENT)
    return torch.expm1(exponents_B) / (alpha - 1)


def sigmoid(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] DPO: -(1-ε) log σ(βh) - ε log σ(-βh), with ε the label smoothing, and h the difference of scores.

    Sources: arXiv 2305.18290, eq. 7; the smoothed form is cDPO, https://ericmitchell.ai/cdpo.pdf, eq. 3; other divergences,
    arXiv 2309.16240.
    """
    settings = method.sigmoid or Sigmoid()
    chosen_B, rejected_B = pairs.scores(settings)
    scaled_B, smoothing = method.beta * (chosen_B - rejected_B), settings.label_smoothing
    return -(1 - smoothing) * logsigmoid(scaled_B) - smoothing * logsigmoid(-scaled_B)


def sigmoid_norm(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] -log σ(βh) with log-ratios per token: DPO normalised by length, as in Tülu 3, arXiv 2411.15124."""
    return -logsigmoid(method.beta * pairs.per_token().margins)


def hinge(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] max(0, 1 - βh): SLiC's, arXiv 2305.10425, over log-ratios as in RSO, arXiv 2309.06657, or other scores."""
    chosen_B, rejected_B = pairs.scores(method.hinge or Hinge())
    return torch.relu(1 - method.beta * (chosen_B - rejected_B))


def ipo(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] IPO: (h - 1/(2β))², arXiv 2310.12036, eq. 17; its τ is β.

    With `average` log-probs are taken per token, as the paper's authors did for their results; without it they are summed.
    """
    measured = pairs.per_token() if (method.ipo or Ipo()).average else pairs
    return (measured.margins - 1 / (2 * method.beta)).square()


def robust(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] (-(1-ε) log σ(βh) + ε log σ(-βh)) / (1-2ε): unbiased when a share ε of the preferences is flipped. May be negative.

    Source: arXiv 2403.00409.
    """
    scaled_B, flipped = method.beta * pairs.margins, (method.robust or Robust()).label_smoothing
    return (-(1 - flipped) * logsigmoid(scaled_B) + flipped * logsigmoid(-scaled_B)) / (1 - 2 * flipped)


def exo(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] reverse KL from the policy's preference [σ(βh), σ(-βh)] to the target [1 - δ, δ], with δ the floor.

    Source: arXiv 2402.00856, eq. 16.
    """
    scaled_B, floor = method.beta * pairs.margins, (method.exo or Exo()).floor
    chosen_B = torch.sigmoid(scaled_B) * (logsigmoid(scaled_B) - math.log1p(-floor))
    rejected_B = torch.sigmoid(-scaled_B) * (logsigmoid(-scaled_B) - math.log(floor))
    return chosen_B + rejected_B


def nca(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] -log σ(βc) - ½ log σ(-βc) - ½ log σ(-βr), with c and r the log-ratios of chosen and rejected.

    Source: arXiv 2402.05369, for two answers.
    """
    chosen_B, rejected_B = (method.beta * log_ratio_B for log_ratio_B in pairs.log_ratios)
    return -logsigmoid(chosen_B) - 0.5 * logsigmoid(-chosen_B) - 0.5 * logsigmoid(-rejected_B)


def bco(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] -log σ(βc) - log σ(-βr): each answer told from the reference's.

    Source: arXiv 2404.04656, for pairs and without its running mean, as TRL's bco_pair.
    """
    chosen_B, rejected_B = (method.beta * log_ratio_B for log_ratio_B in pairs.log_ratios)
    return -logsigmoid(chosen_B) - logsigmoid(-rejected_B)


def apo_zero(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] σ(-βc) + σ(βr): makes chosen likelier and rejected less likely. Source: arXiv 2408.06266, eq. 7."""
    chosen_B, rejected_B = (method.beta * log_ratio_B for log_ratio_B in pairs.log_ratios)
    return torch.sigmoid(-chosen_B) + torch.sigmoid(rejected_B)


def apo_down(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] σ(βc) + σ(-βh): makes both less likely, rejected more so. Source: arXiv 2408.06266, eq. 8."""
    chosen_B, _ = pairs.log_ratios
    return torch.sigmoid(method.beta * chosen_B) + torch.sigmoid(-method.beta * pairs.margins)


def discopop(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] (1-m) (-log σ(x)) + m e^-x with x = βh and m = σ(x/τ).

    Source: arXiv 2406.08414, eq. 5. The second part is taken as one exponential, which no x overflows, since τ is 1 at most.
    """
    scaled_B, tau = method.beta * pairs.margins, (method.discopop or Discopop()).tau
    return -torch.sigmoid(-scaled_B / tau) * logsigmoid(scaled_B) + torch.exp(logsigmoid(scaled_B / tau) - scaled_B)


def dpop(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] -log σ(β (h - λ max(0, -c))): what the chosen answer became less likely by is taken from the margin.

    Source: DPO-Positive, arXiv 2402.13228.
    """
    lost_B = torch.relu(-pairs.log_ratios[0])
    return -logsigmoid(method.beta * (pairs.margins - (method.dpop or Dpop()).weight * lost_B))


def simpo(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] -log σ(β (log π(chosen) / T - log π(rejected) / T) - γ), without a reference. Source: arXiv 2405.14734, eq. 6."""
    chosen_B, rejected_B = pairs.per_token().policy_B2.unbind(1)
    return -logsigmoid(method.beta * (chosen_B - rejected_B) - (method.simpo or Simpo()).gamma)


def orpo(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] -log p(chosen) - λ log σ(log odds(chosen) - log odds(rejected)): p is the geometric mean of the tokens' probabilities.

    There is no reference. Odds are p / (1 - p). Source: arXiv 2403.07691, eqs. 6 and 7.
    """
    per_token_B2 = pairs.per_token().policy_B2
    bounded_B2 = per_token_B2.clamp(max=MOST_LIKELY)
    log_odds_B2 = bounded_B2 - torch.log(-torch.expm1(bounded_B2))
    return -per_token_B2[:, 0] - (method.orpo or Orpo()).weight * logsigmoid(log_odds_B2[:, 0] - log_odds_B2[:, 1])


def sppo_hard(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] (c - 1/(2β))² + (r + 1/(2β))², with β as SPPO's 1/η. Source: arXiv 2405.00675, eq. 4.7 with P = 1 and 0."""
    target = 1 / (2 * method.beta)
    chosen_B, rejected_B = pairs.log_ratios
    return (chosen_B - target).square() + (rejected_B + target).square()


def sppo(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] ½ (c - η (P(chosen) - ½))² + ½ (r - η (P(rejected) - ½))², P the win rates.

    Source: arXiv 2405.00675, eq. 4.7, as its authors' trainer averages it over the two completions; its beta is 1/η.
    """
    targets_B2 = (method.sppo or Sppo()).eta * (pairs.rewards_B2 - 0.5)
    return (pairs.policy_B2 - pairs.reference_B2 - targets_B2).square().mean(dim=1)


def sppo_advantage(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] ½ (c - η A(chosen))² + ½ (r - η A(rejected))², A the advantages; a missing answer, with advantage 0, adds nothing.

    Divided by half the answers this is the mean of (log-ratio - η A)² over them: verl's recipe/sppo.
    """
    targets_B2 = (method.sppo_advantage or SppoAdvantage()).eta * pairs.rewards_B2
    return (pairs.policy_B2 - pairs.reference_B2 - targets_B2).square().mean(dim=1)


def cringe(pairs: PairLogprobs, method: Method) -> Tensor:
    """[B] σ((b - (log π(chosen) - log π(rejected))) / τ) · (-log π(chosen) - α · contrast): pairwise cringe.

    Source: arXiv 2312.16682; the contrast is that of the binary form, arXiv 2211.05826.
    """
    settings = method.cringe_settings
    assert settings is not None
    assert pairs.contrast_B is not None
    chosen_B, rejected_B = pairs.policy_B2.unbind(1)
    gate_B = torch.sigmoid((settings.bias - (chosen_B - rejected_B)) / settings.temperature)
    return gate_B * (-chosen_B - settings.weight * pairs.contrast_B)


LOSSES: Mapping[str, PairLoss] = {
    "sigmoid": sigmoid,
    "sigmoidNorm": sigmoid_norm,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "exo": exo,
    "nca": nca,
    "bco": bco,
    "apoZero": apo_zero,
    "apoDown": apo_down,
    "discopop": discopop,
    "dpop": dpop,
    "simpo": simpo,
    "orpo": orpo,
    "sppoHard": sppo_hard,
    "sppo": sppo,
    "sppoAdvantage": sppo_advantage,
    "cringe": cringe,
}
"""By their names in `method.loss`."""
