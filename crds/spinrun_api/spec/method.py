"""The block `method`: how answers become a training signal, with a block for the settings of each loss that has some."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from pydantic.alias_generators import to_snake

from spinrun_api.base import ApiModel, ModelRule, models_in, rule

LossName = Literal[
    "sigmoid",
    "sigmoidNorm",
    "hinge",
    "ipo",
    "robust",
    "exo",
    "nca",
    "bco",
    "apoZero",
    "apoDown",
    "discopop",
    "dpop",
    "simpo",
    "orpo",
    "sppoHard",
    "cringe",
    "sppo",
    "sppoAdvantage",
    "grpo",
]


class LossSettings(ApiModel):
    """Settings of one loss. In `Method` their block has the name of the loss."""


class Divergent(LossSettings):
    """Settings of a loss over margins, which may be of another divergence than DPO's."""

    divergence: Literal["reverseKL", "forwardKL", "js", "alpha"] = "reverseKL"
    """The divergence from the reference that keeps the policy near it, by which an answer's score takes the place of its
    log-ratio (arXiv 2309.16240). reverseKL: DPO's own, whose score is the log-ratio. forwardKL: an answer that has become
    unlikely costs most. js: Jensen and Shannon's, which bounds how much an answer gains by becoming likelier. alpha: from
    forwardKL at α = 0 to reverseKL at α = 1."""

    alpha: float | None = Field(default=None, gt=0, lt=1)
    """α of the divergence alpha. Absent: one half."""

    @rule(
        cel="!has(self.alpha) || (has(self.divergence) && self.divergence == 'alpha')",
        message="alpha is for the divergence alpha: remove it or set divergence: alpha",
    )
    def _alpha_is_for_its_divergence(self) -> bool:
        return self.alpha is None or self.divergence == "alpha"


class Sigmoid(Divergent):
    """Settings of the loss sigmoid."""

    label_smoothing: float = Field(default=0.0, ge=0, le=0.5)
    """Assumed share of pairs whose preference is wrong (conservative DPO). 0 trusts every pair; at one half nothing is learned
    but to stay near the reference."""


class Hinge(Divergent):
    """Settings of the loss hinge."""


class Robust(LossSettings):
    """Settings of the loss robust."""

    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """Assumed share of pairs whose preference is flipped, below one half. 0 trusts every pair."""


class Ipo(LossSettings):
    """Settings of the loss ipo."""

    average: bool = True
    """Take log-probs per token, so that an answer's length does not change the margin; false sums them."""


class Exo(LossSettings):
    """Settings of the loss exo."""

    floor: float = Field(default=1e-3, gt=0, lt=0.5)
    """Probability that the target gives to the rejected answer; TRL takes its label smoothing."""


class Discopop(LossSettings):
    """Settings of the loss discopop."""

    tau: float = Field(default=0.05, gt=0, le=1)
    """How fast the loss goes over from the logistic to the exponential form as βh rises through 0; the paper's is 0.05."""


class Dpop(LossSettings):
    """Settings of the loss dpop."""

    weight: float = Field(default=50.0, ge=0, le=1_000_000)
    """Weight of what the chosen answer has become less likely by: λ of the paper, which takes 50."""


class Simpo(LossSettings):
    """Settings of the loss simpo."""

    gamma: float = Field(default=0.5, ge=0, le=1000)
    """How much larger β times the chosen answer's log-prob per token shall be: γ of the paper. TRL takes 0.5."""


class Orpo(LossSettings):
    """Settings of the loss orpo."""

    weight: float = Field(default=0.1, ge=0, le=1000)
    """Weight of the odds ratio beside the chosen answer's likelihood: λ of the paper, which takes 0.1."""


class Sppo(LossSettings):
    """Settings of the loss sppo."""

    eta: float = Field(default=1000.0, gt=0, le=1_000_000)
    """Nats of log-ratio between an answer that always wins and one that always loses: η of the paper. Its authors take 1000, and
    call 1/η beta."""

    include_self: bool = True
    """Whether an answer's win rate counts a draw with itself, as its authors do."""


class SppoAdvantage(LossSettings):
    """Settings of the loss sppoAdvantage."""

    eta: float = Field(default=1.0, gt=0, le=1_000_000)
    """Nats of log-ratio for each unit of advantage. verl takes 1."""

    advantage: Literal["prompt", "batch"] = "prompt"
    """What an answer's reward is measured against. prompt: the prompt's answers. batch: all answers of the window, as verl does;
    a prompt may then have a single answer."""

    kappa: float = Field(default=1.0, ge=0, le=1000)
    """How much the best answers weigh in what a reward is measured against. 0: the mean of all; larger moves from it towards the
    highest reward. verl takes 1."""


class Cringe(LossSettings):
    """Settings of the loss cringe."""

    weight: float = Field(default=1.0, gt=0, le=1000)
    """Weight of the rejected answer's part of the loss against the chosen answer's: α of the paper."""

    bias: float = Field(default=0.0, ge=-1_000_000, le=1_000_000)
    """How much likelier the chosen answer must be than the rejected one, in nats, for a pair to count half; beyond it a pair
    fades out of the loss. b of the paper."""

    temperature: float = Field(default=10.0, gt=0, le=1_000_000)
    """Over how many nats a pair fades out: τ of the paper. Small: at once."""

    top_k: int = Field(default=5, ge=1, le=100)
    """Each token of a rejected answer is contrasted with one drawn from this many of the likeliest other tokens."""


class PassRateBand(ApiModel):
    """The pass rates of prompts that windows draw."""

    min: float = Field(default=0.0, ge=0, le=1)
    """Lowest pass rate of a prompt that is drawn. Above 0, prompts that no answer passed are left out."""

    max: float = Field(default=1.0, ge=0, le=1)
    """Highest pass rate of a prompt that is drawn. Below 1, prompts that every answer passed are left out."""

    retry_after_epochs: int = Field(default=2, ge=1, le=1000)
    """Epochs in which a prompt outside is left out. In the one after them it is asked again, whatever its pass rate."""

    when_none: Literal["end", "widen"] = "end"
    """What happens when an epoch has no prompt inside. end: the run ends, and says how the pass rates are distributed. widen: the
    window takes prompts from a wider band, as far as it must; the next one begins with this one again."""

    widen_by: float = Field(default=0.1, ge=0.01, le=1)
    """For `whenNone: widen`: min is lowered and max is raised by this much, again and again until there is a prompt inside."""

    @rule(
        cel="(has(self.min) ? self.min : 0.0) <= (has(self.max) ? self.max : 1.0)",
        message="no pass rate lies between min and max: passRate.min must not be above passRate.max",
    )
    def _there_are_rates_between(self) -> bool:
        return self.min <= self.max


class WeightedLoss(ApiModel):
    """One of several losses whose weighted sum a pair has."""

    name: LossName
    """The loss, as in `loss`."""

    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """What it is multiplied by."""

    beta: float | None = Field(default=None, gt=0, le=1000)
    """Its own β. Absent: that of the method."""


class Grpo(LossSettings):
    """Settings of the loss grpo."""

    scale_rewards: Literal["group", "none"] = "group"
    """What an answer's advantage is, from its reward minus the mean of its prompt's. group: divided by their standard deviation
    (GRPO). none: as it is (Dr. GRPO, arXiv 2503.20783), so that prompts that are nearly always right or wrong count no more
    than others."""

    mean: Literal["tokens", "answers", "maxTokens"] = "tokens"
    """Over what the losses of tokens are averaged. tokens: all tokens of a step (DAPO, arXiv 2503.14476). answers: the tokens of
    each answer, then the answers (GRPO, 2402.03300), so that a token counts less the longer its answer. maxTokens: an answer's
    sum over `rollout.maxTokens`, then the answers (Dr. GRPO)."""

    clip_low: float = Field(default=0.2, ge=0, le=1)
    """How far below 1 the ratio of a token's probability to that at the window's beginning still moves the model."""

    clip_high: float = Field(default=0.2, ge=0, le=1000)
    """How far above 1 it does. DAPO takes 0.28, which lets unlikely tokens grow."""

    importance_cap: float = Field(default=2.0, ge=0, le=1000)
    """A token's loss is multiplied by how much likelier it is for the trainer at the window's beginning than it was for the
    rollout that sampled it, up to this: that corrects for two programs that compute differently, and with overlap or
    replayWindows for answers of an older version. 0: no such correction."""


class SamplingSettings(ApiModel):
    """Which prompts a window asks."""

    max_prompts_factor: float = Field(default=4.0, ge=1, le=1000)
    """Most prompts that a window with `trainer.pairsPerStep` asks, as a multiple of the pairs that it wants. With this many it
    trains on the pairs that it has."""

    pass_rate: PassRateBand | None = None
    """Draw a prompt again only if its pass rate, when it was last asked, lies within these bounds. The pass rate is the mean of
    its answers' rewards, each taken as 0 below 0 and as 1 above 1; a prompt that was never asked, or none of whose answers has a
    reward, is drawn. For preferences with a rule. Absent: all prompts are drawn."""


WITHOUT_REFERENCE = frozenset({"simpo", "orpo", "cringe"})
"""Losses that know the policy's log-probs alone."""


def of_window(values: Sequence[float], window: int) -> float:
    """The value of a window from a list by window, whose last one holds for all later windows."""
    return values[min(window, len(values) - 1)]


class Method(ApiModel):
    """How answers become a training signal."""

    name: Literal["onlineDPO", "spin", "sppo", "grpo"] = "onlineDPO"
    """onlineDPO: a prompt's own samples become pairs, as `pairing` says. spin: each own sample is rejected in favour of the
    data's true answer (arXiv 2401.01335); an own one that says the same makes no pair. sppo: as onlineDPO, but an answer counts
    by how often it wins against the prompt's other ones (2405.00675). grpo: no pairs, but a policy gradient over every answer,
    by its reward against those of the prompt's other ones (2402.03300)."""

    loss: LossName = "sigmoid"
    """sigmoid: DPO (arXiv 2305.18290). sigmoidNorm: the same with log-ratios per token (2411.15124). hinge: SLiC (2305.10425).
    ipo: a squared distance to a fixed margin (2310.12036). robust: DPO made unbiased for flipped preferences (2403.00409).
    exo: reverse KL to the preference (2402.00856). nca: keeps chosen answers likely (2402.05369). bco: chosen up, rejected down,
    each for itself (2404.04656). apoZero: chosen up, rejected down; apoDown: both down (2408.06266). discopop: logistic or
    exponential, by the margin (2406.08414). dpop: DPO with a price for chosen answers that become less likely (2402.13228).
    simpo: log-probs per token, without a reference (2405.14734). orpo: likelihood and odds, without a reference (2403.07691).
    sppoHard: SPPO with certain preferences (2405.00675). cringe: likelihood of the chosen answer and, token by token, other
    tokens than the rejected answer's (2312.16682); it has no reference. sppo: each log-ratio towards its answer's win rate
    (2405.00675), for the method sppo. sppoAdvantage: the log-ratio of every answer, not only of pairs, towards its advantage, for
    the method sppo too (verl's recipe/sppo). grpo: each token's clipped probability ratio times its answer's advantage
    (2402.03300), for the method grpo."""

    losses: list[WeightedLoss] | None = Field(default=None, min_length=1, max_length=16)
    """In place of `loss`: several losses, each once, whose weighted sum a pair has (MPO, arXiv 2411.10442). Their settings stand
    in the blocks of their names."""

    beta: float = Field(default=0.1, gt=0, le=1000)
    """Strength of the pull towards the reference; larger stays closer. 0.1 is the DPO paper's choice. For sppoHard it is 1/η,
    for which SPPO's authors take 0.001."""

    beta_by_window: list[Annotated[float, Field(gt=0, le=1000)]] | None = Field(default=None, min_length=1, max_length=1000)
    """In place of `beta`: that of window 0, 1, and so on; the last one holds for all later windows."""

    sigmoid: Sigmoid | None = None
    """Settings of the loss sigmoid. Absent: their defaults."""

    hinge: Hinge | None = None
    """Settings of the loss hinge. Absent: their defaults."""

    robust: Robust | None = None
    """Settings of the loss robust. Absent: their defaults."""

    ipo: Ipo | None = None
    """Settings of the loss ipo. Absent: their defaults."""

    exo: Exo | None = None
    """Settings of the loss exo. Absent: their defaults."""

    discopop: Discopop | None = None
    """Settings of the loss discopop. Absent: their defaults."""

    dpop: Dpop | None = None
    """Settings of the loss dpop. Absent: their defaults."""

    simpo: Simpo | None = None
    """Settings of the loss simpo. Absent: their defaults."""

    orpo: Orpo | None = None
    """Settings of the loss orpo. Absent: their defaults."""

    sppo: Sppo | None = None
    """Settings of the loss sppo. Absent: their defaults."""

    sppo_advantage: SppoAdvantage | None = None
    """Settings of the loss sppoAdvantage. Absent: their defaults."""

    cringe: Cringe | None = None
    """Settings of the loss cringe. Absent: their defaults."""

    grpo: Grpo | None = None
    """Settings of the loss grpo. Absent: their defaults."""

    sft_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the chosen answer's negative log-likelihood, in nats per token, that is added to the loss (RPO,
    arXiv 2404.19733). 0 adds none."""

    kl_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of an estimate of the policy's divergence from the reference on the pair's answers, in nats an answer, that is added
    to the loss; with grpo of one on each token, in nats a token. 0 adds none."""

    weight_by_likelihood: bool = False
    """Multiply a pair's loss by the likelihood per token of each of its two answers under the policy as it is, without a gradient
    (WPO, arXiv 2406.11827): the less likely the policy has come to give an answer, the less its pairs count."""

    weight_by_margin: bool = False
    """Multiply a pair's loss by the difference of its rewards or, with the method sppo, of its win rates."""

    length_desensitize: float = Field(default=1.0, ge=0, le=1)
    """Weight of the tokens of a pair's longer answer that stand beyond the length of the shorter one: α of LD-DPO
    (arXiv 2409.06411). 1 counts all alike; 0 leaves them out."""

    ref_update_freq: int = Field(default=16, ge=0, le=1_000_000)
    """Optimizer steps after which the weights of the moment become the reference. 0: it stays version 0, the source model."""

    reference_mixture: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weights of the moment in the next reference, the rest of which is the one before: each time that the reference
    changes it moves so far towards the policy, weight by weight (TR-DPO, arXiv 2404.09656). Absent: the weights of the moment
    take its place."""

    rollout_update_freq: int | None = Field(default=None, ge=1, le=1_000_000)
    """Optimizer steps of a window, after which the trained weights are published and the rollouts answer with them. Absent:
    refUpdateFreq, so that a window is compared with the weights that its answers come from. With fewer, windows share a
    reference, which each reads back from the ledger."""

    replay_windows: int = Field(default=0, ge=0, le=1000)
    """Train also on the pairs of this many windows before, compared with this window's reference. Each of them makes a window
    longer by as many steps as it has without; refUpdateFreq and rolloutUpdateFreq count steps without."""

    overlap: int = Field(default=0, ge=0, le=1)
    """Windows that the rollouts are ahead of the trainer. 0: they answer a window's prompts with the very weights that it begins
    to train, and the trainer waits for them. 1: they answer the next window's while this one trains, so that neither waits
    for the other; a window then learns from answers of the version before (arXiv 2410.18252)."""

    reference_logprobs: Literal["trainer", "rollouts"] = "trainer"
    """Who computes the log-probs of a window's pairs under its reference. trainer: a forward pass over them, which a window's
    first step can do without. rollouts: vLLM, while it samples. The first step's pairs, which the trainer computes anyway, show
    how far the two are apart in every window; beyond `maxMismatch` the trainer computes the rest of that window too."""

    max_mismatch: float = Field(default=0.05, gt=0, le=1000)
    """For `referenceLogprobs: rollouts`: mean absolute difference of an answer's log-prob between rollouts and trainer, in nats
    per token, up to which the rollouts' are used."""

    pairing: Literal["bestVsWorst", "bestVsRandom", "bestVsBase", "allPairs"] = "bestVsWorst"
    """Which answers of a prompt become pairs; equal rewards never do. bestVsWorst: highest against lowest reward.
    bestVsRandom: highest against a random lower one. bestVsBase: highest against an answer of version 0, sampled before window 0
    to every prompt that the run draws. allPairs: every pair."""

    sampling: SamplingSettings | None = None
    """Which prompts a window asks. Absent: the defaults."""

    min_margin: float = Field(default=0.0, ge=0, le=1_000_000_000)
    """Rewards that differ by less than this make no pair."""

    truncated: Literal["score", "penalise", "drop"] = "score"
    """What becomes of an answer that was cut off at `rollout.maxTokens`, and so has no end token, whatever prefers. score: it is
    paired by its reward like any other. penalise: `truncatedPenalty` is first taken from its reward. drop: it is in no pair, and
    with the method spin neither is a true answer that is longer. What a rule rewards such an answer with, `rule.truncated`
    says."""

    truncated_penalty: float | None = Field(default=None, gt=0, le=1_000_000_000)
    """For `truncated: penalise`: what is taken from a reward; of a win rate no more than there is. Absent: 1."""

    # The API server checks the default of this block, which is empty, before it fills in those of the fields: hence has().
    @rule(
        cel="!has(self.name) || self.name != 'spin' || ((!has(self.pairing) || self.pairing == 'bestVsWorst')"
        " && (!has(self.minMargin) || self.minMargin == 0.0) && (!has(self.weightByMargin) || !self.weightByMargin))",
        message="method spin pairs the true answer with every own one, whatever their rewards: remove pairing, minMargin and "
        "weightByMargin",
    )
    def _pairing_is_for_rewards(self) -> bool:
        of_rewards = (self.pairing, self.min_margin, self.weight_by_margin)
        return self.name != "spin" or of_rewards == ("bestVsWorst", 0.0, False)

    @rule(
        cel="!has(self.truncatedPenalty) || (has(self.truncated) && self.truncated == 'penalise')",
        message="truncatedPenalty is for truncated: penalise: remove it or set truncated: penalise",
    )
    def _penalty_is_for_penalising(self) -> bool:
        return self.truncated_penalty is None or self.truncated == "penalise"

    @rule(
        cel="!has(self.name) || self.name != 'spin' || !has(self.truncated) || self.truncated != 'penalise'",
        message="method spin pairs answers whatever their rewards, so that there is nothing to take a penalty from: set "
        "truncated to drop or score",
    )
    def _penalties_are_for_rewards(self) -> bool:
        return self.name != "spin" or self.truncated != "penalise"

    @rule(
        cel="!has(self.pairing) || self.pairing != 'bestVsBase' || !has(self.name) || self.name == 'onlineDPO'",
        message="the pairing bestVsBase is for the method onlineDPO: choose another pairing, or remove name and loss",
    )
    def _base_is_for_online_dpo(self) -> bool:
        return self.pairing != "bestVsBase" or self.name == "onlineDPO"

    @rule(
        cel="!has(self.name) || !has(self.loss) || (self.name == 'sppo') == (self.loss in ['sppo', 'sppoAdvantage'])",
        message="the method sppo has the losses sppo and sppoAdvantage, which no other method has: set name to sppo and loss to "
        "one of them, or neither",
    )
    def _sppo_has_its_losses(self) -> bool:
        return (self.name == "sppo") == (self.loss in ("sppo", "sppoAdvantage"))

    @rule(
        cel="!has(self.losses) || !has(self.loss) || self.loss == 'sigmoid'",
        message="loss is for one loss and losses for several: set one of them",
    )
    def _loss_or_losses(self) -> bool:
        return self.losses is None or self.loss == "sigmoid"

    @rule(
        cel="!has(self.losses) || self.losses.all(one, self.losses.exists_one(other, other.name == one.name))",
        message="losses names a loss twice: give it one entry with the sum of the weights",
    )
    def _each_loss_once(self) -> bool:
        names = [each.name for each in self.losses or ()]
        return len(names) == len(set(names))

    @rule(
        cel="!has(self.losses) || !self.losses.exists(each, each.name in ['sppo', 'sppoAdvantage', 'grpo'])",
        message="sppo, sppoAdvantage and grpo cannot be among losses: they go by win rates and advantages, which answers have "
        "with the methods sppo and grpo alone, and no other loss is made for those: take one of them as loss",
    )
    def _losses_are_of_pairs(self) -> bool:
        return not {"sppo", "sppoAdvantage", "grpo"} & {each.name for each in self.losses or ()}

    @rule(
        cel="!has(self.minMargin) || self.minMargin <= 1.0 || self.loss != 'sppo'",
        message="win rates differ by 1 at most: with the loss sppo, minMargin must not be above 1",
    )
    def _margin_is_one_of_win_rates(self) -> bool:
        return self.min_margin <= 1 or self.loss != "sppo"

    @rule(
        cel="!has(self.loss) || self.loss != 'sppoAdvantage' || ((!has(self.pairing) || self.pairing == 'bestVsWorst')"
        " && (!has(self.minMargin) || self.minMargin == 0.0) && (!has(self.sftWeight) || self.sftWeight == 0.0)"
        " && (!has(self.lengthDesensitize) || self.lengthDesensitize == 1.0)"
        " && (!has(self.weightByLikelihood) || !self.weightByLikelihood) && (!has(self.weightByMargin) || !self.weightByMargin))",
        message="sppoAdvantage trains on every answer, not on pairs: remove pairing, minMargin, sftWeight, lengthDesensitize, "
        "weightByLikelihood and weightByMargin",
    )
    def _pairs_are_not_for_advantages(self) -> bool:
        of_pairs = (self.pairing, self.min_margin, self.sft_weight, self.length_desensitize)
        plain = of_pairs == ("bestVsWorst", 0.0, 0.0, 1.0) and not self.weighs_pairs
        return self.loss != "sppoAdvantage" or plain

    @rule(
        cel="!has(self.name) || !has(self.loss) || (self.name == 'grpo') == (self.loss == 'grpo')",
        message="the method grpo has the loss grpo, which no other method has: set name and loss to grpo, or neither",
    )
    def _grpo_has_its_loss(self) -> bool:
        return (self.name == "grpo") == (self.loss == "grpo")

    @rule(
        cel="!has(self.loss) || self.loss != 'grpo' || ((!has(self.pairing) || self.pairing == 'bestVsWorst')"
        " && (!has(self.minMargin) || self.minMargin == 0.0) && (!has(self.sftWeight) || self.sftWeight == 0.0)"
        " && (!has(self.lengthDesensitize) || self.lengthDesensitize == 1.0) && (!has(self.beta) || self.beta == 0.1)"
        " && (!has(self.weightByMargin) || !self.weightByMargin)"
        " && (!has(self.weightByLikelihood) || !self.weightByLikelihood)"
        " && !has(self.betaByWindow) && (!has(self.referenceLogprobs) || self.referenceLogprobs == 'trainer'))",
        message="grpo trains on every answer by its reward, not on pairs: remove pairing, minMargin, sftWeight, "
        "lengthDesensitize, weightByMargin, weightByLikelihood, beta, betaByWindow and referenceLogprobs; its pull towards the "
        "reference is klWeight",
    )
    def _pairs_are_not_for_grpo(self) -> bool:
        of_pairs = (self.pairing, self.min_margin, self.sft_weight, self.length_desensitize, self.beta, self.beta_by_window)
        unset = ("bestVsWorst", 0.0, 0.0, 1.0, 0.1, None)
        plain = of_pairs == unset and not self.weighs_pairs and self.reference_logprobs == "trainer"
        return self.loss != "grpo" or plain

    @rule(
        cel="!has(self.grpo) || !has(self.grpo.importanceCap) || self.grpo.importanceCap > 0.0"
        " || ((!has(self.overlap) || self.overlap == 0) && (!has(self.replayWindows) || self.replayWindows == 0))",
        message="with overlap or replayWindows answers are older than the version that grpo trains: grpo.importanceCap "
        "corrects for that, so set it above 0, or remove overlap and replayWindows",
    )
    def _older_answers_are_corrected(self) -> bool:
        corrected = self.grpo is None or self.grpo.importance_cap > 0
        return corrected or (self.overlap == 0 and self.replay_windows == 0)

    @rule(
        cel="!has(self.betaByWindow) || !has(self.beta) || self.beta == 0.1",
        message="beta is for all windows and betaByWindow for each: set one of them",
    )
    def _one_beta(self) -> bool:
        return self.beta_by_window is None or self.beta == 0.1

    @rule(
        cel="!has(self.referenceLogprobs) || self.referenceLogprobs != 'rollouts' || ((!has(self.name) || self.name != 'spin')"
        " && (!has(self.pairing) || self.pairing != 'bestVsBase') && (!has(self.replayWindows) || self.replayWindows == 0)"
        " && (!has(self.lengthDesensitize) || self.lengthDesensitize == 1.0) && !has(self.rolloutUpdateFreq)"
        " && !has(self.referenceMixture)"
        " && (!has(self.refUpdateFreq) || self.refUpdateFreq > 0) && (!has(self.overlap) || self.overlap == 0))",
        message="rollouts know the log-probs of their own answers alone, and only under the weights that gave them: with "
        "referenceLogprobs: rollouts remove name: spin, pairing: bestVsBase, replayWindows, overlap, lengthDesensitize, "
        "rolloutUpdateFreq, referenceMixture and refUpdateFreq: 0",
    )
    def _rollouts_know_the_reference(self) -> bool:
        knows = (
            self.name != "spin"
            and self.pairing != "bestVsBase"
            and self.replay_windows == 0
            and self.length_desensitize == 1.0
            and self.rollout_update_freq is None
            and self.reference_mixture is None
            and self.ref_update_freq > 0
            and self.overlap == 0
        )
        return self.reference_logprobs == "trainer" or knows

    @rule(
        cel="!has(self.rolloutUpdateFreq) || self.rolloutUpdateFreq < 1"
        " || (has(self.refUpdateFreq) ? self.refUpdateFreq : 16) % self.rolloutUpdateFreq == 0",
        message="refUpdateFreq must be a multiple of rolloutUpdateFreq: only published weights become the reference",
    )
    def _references_are_published(self) -> bool:
        return self.ref_update_freq % self.steps_per_window == 0 if self.rollout_update_freq else True

    @rule(
        cel="!has(self.refUpdateFreq) || self.refUpdateFreq != 0 || has(self.rolloutUpdateFreq)",
        message="refUpdateFreq: 0 leaves open how many steps a window has: set rolloutUpdateFreq",
    )
    def _windows_have_steps(self) -> bool:
        return self.ref_update_freq != 0 or self.rollout_update_freq is not None

    @rule(
        cel="!has(self.referenceMixture) || !has(self.refUpdateFreq) || self.refUpdateFreq != 0",
        message="with refUpdateFreq: 0 the reference stays version 0, and nothing is mixed: set refUpdateFreq or remove "
        "referenceMixture",
    )
    def _mixtures_need_changes(self) -> bool:
        return self.reference_mixture is None or self.ref_update_freq != 0

    @rule(
        cel="!has(self.referenceMixture) || (has(self.klWeight) && self.klWeight > 0.0)"
        f" || (has(self.losses) ? self.losses.exists(each, !(each.name in {sorted(WITHOUT_REFERENCE)}))"
        f" : !(self.loss in {sorted(WITHOUT_REFERENCE | {'grpo'})}))",
        message="simpo, orpo, cringe and grpo compare with no reference that could be a mixture, unless klWeight is above 0: set "
        "it, or remove referenceMixture",
    )
    def _mixtures_need_a_reference(self) -> bool:
        compares = self.uses_reference and (self.loss != "grpo" or self.kl_weight > 0)
        return self.reference_mixture is None or compares

    @property
    def steps_per_window(self) -> int:
        """Optimizer steps between two publications, without those on replayed pairs."""
        return self.rollout_update_freq or self.ref_update_freq

    @property
    def windows_per_reference(self) -> int:
        """Windows that share a reference; 0: all."""
        return self.ref_update_freq // self.steps_per_window

    def in_window(self, window: int) -> "Method":
        """The method with the beta of a window."""
        if self.beta_by_window is None:
            return self
        return self.model_copy(update={"beta": of_window(self.beta_by_window, window)})

    @property
    def pass_rate(self) -> PassRateBand | None:
        """The pass rates of prompts that windows draw; None where they draw all."""
        return self.sampling.pass_rate if self.sampling is not None else None

    @property
    def weighted_losses(self) -> Sequence[WeightedLoss]:
        """The losses whose weighted sum a pair has: `losses`, or `loss` alone."""
        return self.losses or [WeightedLoss(name=self.loss)]

    @property
    def weighs_pairs(self) -> bool:
        """Whether pairs have weights."""
        return self.weight_by_likelihood or self.weight_by_margin

    def takes(self, loss: str) -> bool:
        """Whether it is one of the losses."""
        return any(each.name == loss for each in self.weighted_losses)

    @property
    def uses_reference(self) -> bool:
        """Whether anything reads log-probs of a reference. Where nothing does, none are computed, and no older version is kept or
        read back for them."""
        return self.kl_weight > 0 or any(each.name not in WITHOUT_REFERENCE for each in self.weighted_losses)

    @property
    def cringe_settings(self) -> Cringe | None:
        """The settings of the loss cringe; None with other losses."""
        return (self.cringe or Cringe()) if self.takes("cringe") else None

    @property
    def grpo_settings(self) -> Grpo | None:
        """The settings of the loss grpo; None with another loss."""
        return (self.grpo or Grpo()) if self.loss == "grpo" else None

    def resolved(self) -> "Method":
        """The method with the blocks of its losses filled in where the document leaves them out, as one compares methods."""
        blocks = {to_snake(each.name): LOSS_BLOCKS[each.name] for each in self.weighted_losses if each.name in LOSS_BLOCKS}
        return self.model_copy(update={name: block() for name, block in blocks.items() if getattr(self, name) is None})


LOSS_BLOCKS: Mapping[str, type[LossSettings]] = {
    field.alias or name: block
    for name, field in Method.model_fields.items()
    for block in models_in(field.annotation)
    if issubclass(block, LossSettings)
}
"""The blocks with settings of a loss, by its name, which is theirs too."""


def _is_for_its_loss(loss: str) -> ModelRule:
    return ModelRule(
        cel=f"!has(self.{loss}) || (has(self.losses) ? self.losses.exists(each, each.name == '{loss}') : self.loss == '{loss}')",
        message=f"the block {loss} is for the loss {loss}: remove it or set loss: {loss}",
        holds=lambda method: getattr(method, to_snake(loss)) is None or method.takes(loss),
    )


Method.rules |= {f"_{to_snake(loss)}_is_for_its_loss": _is_for_its_loss(loss) for loss in LOSS_BLOCKS}


@dataclass(frozen=True)
class Moved:
    """A field that was one of `method` itself, and is one of the block of each loss that has it."""

    old: str
    """Its name in `method`."""

    new: str
    """Its name in the blocks."""

    losses: tuple[str, ...]
    """The losses that have it."""

    @property
    def path(self) -> str:
        """Where it was."""
        return f"spec.method.{self.old}"

    @property
    def place(self) -> str:
        """Where it belongs today, for people."""
        first, *others = (f"spec.method.{loss}.{self.new}" for loss in self.losses)
        return first + "".join(f" (or {path} for the loss {loss})" for path, loss in zip(others, self.losses[1:], strict=True))

    @property
    def refusal(self) -> str:
        """What is wrong with a document that has it, and what to do."""
        return f"{self.path} has moved to {self.place}: write it there"


MOVED = (
    Moved("labelSmoothing", "labelSmoothing", ("sigmoid", "robust")),
    Moved("ipoAverage", "average", ("ipo",)),
    Moved("eta", "eta", ("sppo", "sppoAdvantage")),
    Moved("includeSelf", "includeSelf", ("sppo",)),
    Moved("advantage", "advantage", ("sppoAdvantage",)),
    Moved("kappa", "kappa", ("sppoAdvantage",)),
)
"""What v1alpha1 had elsewhere once: refused where a user writes it, converted where a run was stored with it."""
