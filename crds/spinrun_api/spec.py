"""The spec of a SpinRun: what a user writes. Each rule that spans fields is written once, here.

`crd.py` turns these models into the CustomResourceDefinition; each rule brings its CEL expression for it, and a test feeds
the same invalid documents to both.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from spinrun_api import base
from spinrun_api.base import ApiModel, rule

# Lengths are bounded so that the API server can bound the cost of the CEL rules over them.
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=65536)]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$", max_length=32)]
# Neither a user's name nor a query: a URL stands in logs and in the ledger, and secrets have a field of their own.
BaseUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$", max_length=1024)]
EntryPoint = Annotated[str, StringConstraints(pattern=r"^[^:\s]+:[^:\s]+$", max_length=1024)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=128)]
PodTemplate = dict[str, Any]


def _number_or_text(value: object) -> object:
    """Kubernetes has no type for "number, text or truth value": what is neither whole number nor text travels as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'must be a whole number or text: write "{json.dumps(value, default=str)}", with the quotes')
    return value


EngineArgument = Annotated[int | str, BeforeValidator(_number_or_text)]
EngineArgs = dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)], EngineArgument]


class Model(ApiModel):
    """The language model that the run starts from, version 0."""

    source: Text
    """A Hub id such as Qwen/Qwen2.5-3B-Instruct, or an absolute path of a Hugging Face folder on the
    ledger volume or in the image."""

    revision: Text | None = None
    """Branch, tag or commit of a Hub model. Absent: the Hub's default branch. Name a commit for a run that can be repeated."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the published weights and of vLLM's arithmetic. auto: weights as the source stores them;
    arithmetic in bfloat16 on GPUs and, on CPUs, in whichever type a short measurement finds faster."""

    trust_remote_code: bool = False
    """Allow the source to bring Python code of its own, which then runs in the pods. Off, because it is code from elsewhere."""

    tokenizer: Text | None = None
    """Hub id or path of the tokenizer. Absent: the model's own."""

    chat_template: LongText | None = None
    """A Jinja chat template. Absent: the tokenizer's own."""


class Prompts(ApiModel):
    """Where prompts come from and how a row becomes a prompt."""

    source: Text
    """A Hub data set id, the absolute path of a .jsonl, .parquet or .csv file on the ledger volume or in the image, or
    `arithmetic`, a built-in generator that needs nothing from outside."""

    config: Text | None = None
    """Configuration of a Hub data set. For `arithmetic`: OPERATION-LARGEST such as addition-15
    (addition, subtraction or multiplication of two numbers from 1 to LARGEST), which is also its default."""

    split: Text = "train"
    """Split of a Hub data set. For `arithmetic`: train or test, which share no question."""

    prompt_column: Text = "prompt"
    """Column that holds the prompt's text."""

    answer_column: Text | None = None
    """Column that holds the true answer, for rules that need one. `arithmetic` brings its own."""

    messages_column: Text | None = None
    """Column that holds a list of {role, content}, used instead of `promptColumn`."""

    template: LongText | None = None
    """Text with {column} in it, filled from the row, that becomes the user's message. Absent: the prompt column as it is."""

    limit: int | None = Field(default=None, ge=1)
    """Use the first this many prompts after shuffling. Absent: all."""

    shuffle_seed: int = Field(default=0, ge=0)
    """Seed of the order in which prompts are drawn; each epoch has an order of its own."""

    @property
    def has_answers(self) -> bool:
        """Whether a row brings the true answer."""
        return self.source == "arithmetic" or self.answer_column is not None


class Evaluation(Prompts):
    """Held-out prompts, answered greedily and scored by the run's preference.

    A judge or a ranker compares these answers with the true ones.
    """

    split: Text = "test"
    """Split of a Hub data set. For `arithmetic`: train or test, which share no question."""

    every_windows: int = Field(default=1, ge=1)
    """Evaluate version 0, every this many windows, and the last version."""


class Data(ApiModel):
    """Prompts to train on and, if wanted, to evaluate on."""

    prompts: Prompts
    """The prompts that the model answers in training."""

    evaluation: Evaluation | None = None
    """Held-out prompts. Absent: no evaluation, and no accuracy in the status."""

    max_prompt_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    """Prompts longer than this, in tokens after the chat template, are dropped and counted."""


class Cringe(ApiModel):
    """The loss `cringe` in numbers."""

    weight: float = Field(default=1.0, gt=0, le=1000)
    """Weight of the rejected answer's part of the loss against the chosen answer's: α of the paper."""

    bias: float = Field(default=0.0, ge=-1_000_000, le=1_000_000)
    """How much likelier the chosen answer must be than the rejected one, in nats, for a pair to count half; beyond it a pair
    fades out of the loss. b of the paper."""

    temperature: float = Field(default=10.0, gt=0, le=1_000_000)
    """Over how many nats a pair fades out: τ of the paper. Small: at once."""

    top_k: int = Field(default=5, ge=1, le=100)
    """Each token of a rejected answer is contrasted with one drawn from this many of the likeliest other tokens."""


def of_window(values: Sequence[float], window: int) -> float:
    """The value of a window from a list by window, whose last one holds for all later windows."""
    return values[min(window, len(values) - 1)]


class Method(ApiModel):
    """How answers become a training signal."""

    name: Literal["onlineDPO", "spin", "sppo"] = "onlineDPO"
    """onlineDPO: a prompt's own samples become pairs, as `pairing` says. spin: each own sample is rejected in favour of the
    data's true answer (arXiv 2401.01335); an own one that says the same makes no pair. sppo: as onlineDPO, but an answer counts
    by how often it wins against the prompt's other ones (2405.00675)."""

    loss: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo", "nca", "apoZero", "apoDown", "sppoHard", "cringe", "sppo", "sppoAdvantage"
    ] = "sigmoid"
    """sigmoid: DPO (arXiv 2305.18290). hinge: SLiC (2305.10425). ipo: a squared distance to a fixed margin (2310.12036).
    robust: DPO made unbiased for flipped preferences (2403.00409). exo: reverse KL to the preference (2402.00856).
    nca: keeps chosen answers likely (2402.05369). apoZero: chosen up, rejected down; apoDown: both down (2408.06266).
    sppoHard: SPPO with certain preferences (2405.00675). cringe: likelihood of the chosen answer and, token by token, other
    tokens than the rejected answer's (2312.16682); it has no reference. sppo: each log-ratio towards its answer's win rate
    (2405.00675), for the method sppo. sppoAdvantage: the log-ratio of every answer, not only of pairs, towards its advantage, for
    the method sppo too (verl's recipe/sppo)."""

    beta: float = Field(default=0.1, gt=0, le=1000)
    """Strength of the pull towards the reference; larger stays closer. 0.1 is the DPO paper's choice. For sppoHard it is 1/η,
    for which SPPO's authors take 0.001."""

    beta_by_window: list[Annotated[float, Field(gt=0, le=1000)]] | None = Field(default=None, min_length=1, max_length=1000)
    """In place of `beta`: that of window 0, 1, and so on; the last one holds for all later windows."""

    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """For sigmoid (conservative DPO) and robust: assumed share of pairs whose preference is wrong, below one half. 0 trusts
    every pair."""

    ipo_average: bool = True
    """For ipo: take log-probs per token, so that an answer's length does not change the margin; false sums them."""

    eta: float | None = Field(default=None, gt=0, le=1_000_000)
    """For the method sppo: nats of log-ratio between an answer that always wins and one that always loses; for the loss
    sppoAdvantage, nats for each unit of advantage. Absent: 1000 for the loss sppo, as its authors take it, who call 1/η beta, and
    1 for sppoAdvantage, as verl does."""

    include_self: bool = True
    """For the loss sppo: whether an answer's win rate counts a draw with itself, as its authors do."""

    advantage: Literal["prompt", "batch"] = "prompt"
    """For the loss sppoAdvantage: what an answer's reward is measured against. prompt: the prompt's answers. batch: all answers
    of the window, as verl does; a prompt may then have a single answer."""

    kappa: float = Field(default=1.0, ge=0, le=1000)
    """For the loss sppoAdvantage: how much the best answers weigh in what a reward is measured against. 0: the mean of all;
    larger moves from it towards the highest reward. verl takes 1."""

    cringe: Cringe | None = None
    """For cringe: its settings. Absent: their defaults."""

    sft_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the chosen answer's negative log-likelihood, in nats per token, that is added to the loss (RPO,
    arXiv 2404.19733). 0 adds none."""

    kl_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of an estimate of the policy's divergence from the reference on the pair's answers, in nats an answer, that is added
    to the loss. 0 adds none."""

    length_desensitize: float = Field(default=1.0, ge=0, le=1)
    """Weight of the tokens of a pair's longer answer that stand beyond the length of the shorter one: α of LD-DPO
    (arXiv 2409.06411). 1 counts all alike; 0 leaves them out."""

    ref_update_freq: int = Field(default=16, ge=0, le=1_000_000)
    """Optimizer steps after which the weights of the moment become the reference. 0: it stays version 0, the source model."""

    rollout_update_freq: int | None = Field(default=None, ge=1, le=1_000_000)
    """Optimizer steps of a window, after which the trained weights are published and the rollouts answer with them. Absent:
    refUpdateFreq, so that a window is compared with the weights that its answers come from. With fewer, windows share a
    reference, which each reads back from the ledger."""

    replay_windows: int = Field(default=0, ge=0, le=1000)
    """Train also on the pairs of this many windows before, compared with this window's reference. Each of them makes a window
    longer by as many steps as it has without; refUpdateFreq and rolloutUpdateFreq count steps without."""

    overlap: int = Field(default=0, ge=0, le=1)
    """Windows that the rollouts are ahead of the trainer. 0: they answer a window's prompts with the very weights that it begins
    to train, and the trainer waits for them. 1: they answer the next window's while this one trains, so that nobody waits for
    the longer part; a window then learns from answers of the version before (arXiv 2410.18252)."""

    reference_logprobs: Literal["trainer", "rollouts"] = "trainer"
    """Who computes the log-probs of a window's pairs under its reference. trainer: a forward pass over them, which a window's
    first step needs none of. rollouts: vLLM, while it samples. The first step's pairs, which the trainer computes anyway, show
    how far the two are apart in every window; beyond `maxMismatch` the trainer computes the rest of that window too."""

    max_mismatch: float = Field(default=0.05, gt=0, le=1000)
    """For `referenceLogprobs: rollouts`: mean absolute difference of an answer's log-prob between rollouts and trainer, in nats
    per token, up to which theirs is taken."""

    pairing: Literal["bestVsWorst", "bestVsRandom", "bestVsBase", "allPairs"] = "bestVsWorst"
    """Which answers of a prompt become pairs; equal rewards never do. bestVsWorst: highest against lowest reward.
    bestVsRandom: highest against a random lower one. bestVsBase: highest against an answer of version 0, sampled before window 0
    to every prompt that the run draws. allPairs: every two."""

    min_margin: float = Field(default=0.0, ge=0, le=1_000_000_000)
    """Rewards that differ by less than this make no pair."""

    @rule(
        cel="!has(self.name) || self.name != 'spin' || ((!has(self.pairing) || self.pairing == 'bestVsWorst')"
        " && (!has(self.minMargin) || self.minMargin == 0.0))",
        message="method spin pairs the true answer with every own one, whatever their rewards: remove pairing and minMargin",
    )
    def _pairing_is_for_rewards(self) -> bool:
        return self.name != "spin" or (self.pairing == "bestVsWorst" and self.min_margin == 0.0)

    @rule(
        cel="!has(self.pairing) || self.pairing != 'bestVsBase' || !has(self.name) || self.name == 'onlineDPO'",
        message="the pairing bestVsBase is for the method onlineDPO: choose another pairing, or remove name and loss",
    )
    def _base_is_for_online_dpo(self) -> bool:
        return self.pairing != "bestVsBase" or self.name == "onlineDPO"

    # The API server checks the default of this block, which is empty, before it fills in those of the fields: hence has().
    @rule(
        cel="!has(self.labelSmoothing) || self.labelSmoothing == 0.0 || self.loss in ['sigmoid', 'robust']",
        message="labelSmoothing is for the losses sigmoid and robust: remove it or choose one of them",
    )
    def _smoothing_is_for_losses_that_have_it(self) -> bool:
        return self.label_smoothing == 0.0 or self.loss in ("sigmoid", "robust")

    @rule(
        cel="!has(self.ipoAverage) || self.ipoAverage || self.loss == 'ipo'",
        message="ipoAverage is for the loss ipo: remove it or set loss: ipo",
    )
    def _average_is_for_ipo(self) -> bool:
        return self.ipo_average or self.loss == "ipo"

    @rule(
        cel="!has(self.cringe) || self.loss == 'cringe'",
        message="the block cringe is for the loss cringe: remove it or set loss: cringe",
    )
    def _cringe_is_for_its_loss(self) -> bool:
        return self.cringe is None or self.loss == "cringe"

    @rule(
        cel="!has(self.name) || !has(self.loss) || (self.name == 'sppo') == (self.loss in ['sppo', 'sppoAdvantage'])",
        message="the method sppo has the losses sppo and sppoAdvantage, which no other method has: set name to sppo and loss to "
        "one of them, or neither",
    )
    def _sppo_has_its_losses(self) -> bool:
        return (self.name == "sppo") == (self.loss in ("sppo", "sppoAdvantage"))

    # 1000 was the default once, and stands in documents from then.
    @rule(
        cel="!has(self.eta) || self.eta == 1000.0 || (has(self.name) && self.name == 'sppo')",
        message="eta is for the method sppo: remove it or set name and loss to sppo",
    )
    def _eta_is_for_sppo(self) -> bool:
        return self.eta in (None, 1000.0) or self.name == "sppo"

    @rule(
        cel="!has(self.includeSelf) || self.includeSelf || self.loss == 'sppo'",
        message="includeSelf is for the loss sppo: remove it or set name and loss to sppo",
    )
    def _win_rates_are_for_sppo(self) -> bool:
        return self.include_self or self.loss == "sppo"

    @rule(
        cel="!has(self.minMargin) || self.minMargin <= 1.0 || self.loss != 'sppo'",
        message="win rates differ by 1 at most: with the loss sppo, minMargin must not be above 1",
    )
    def _margin_is_one_of_win_rates(self) -> bool:
        return self.min_margin <= 1 or self.loss != "sppo"

    @rule(
        cel="((!has(self.advantage) || self.advantage == 'prompt') && (!has(self.kappa) || self.kappa == 1.0))"
        " || self.loss == 'sppoAdvantage'",
        message="advantage and kappa are for the loss sppoAdvantage: remove them or set name to sppo and loss to sppoAdvantage",
    )
    def _advantages_are_for_their_loss(self) -> bool:
        return (self.advantage == "prompt" and self.kappa == 1.0) or self.loss == "sppoAdvantage"

    @rule(
        cel="!has(self.loss) || self.loss != 'sppoAdvantage' || ((!has(self.pairing) || self.pairing == 'bestVsWorst')"
        " && (!has(self.minMargin) || self.minMargin == 0.0) && (!has(self.sftWeight) || self.sftWeight == 0.0)"
        " && (!has(self.lengthDesensitize) || self.lengthDesensitize == 1.0))",
        message="sppoAdvantage trains on every answer, not on pairs: remove pairing, minMargin, sftWeight and lengthDesensitize",
    )
    def _pairs_are_not_for_advantages(self) -> bool:
        of_pairs = (self.pairing, self.min_margin, self.sft_weight, self.length_desensitize)
        return self.loss != "sppoAdvantage" or of_pairs == ("bestVsWorst", 0.0, 0.0, 1.0)

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
        " && (!has(self.refUpdateFreq) || self.refUpdateFreq > 0) && (!has(self.overlap) || self.overlap == 0))",
        message="rollouts know the log-probs of their own answers alone, and only under the weights that gave them: with "
        "referenceLogprobs: rollouts remove name: spin, pairing: bestVsBase, replayWindows, overlap, lengthDesensitize, "
        "rolloutUpdateFreq and refUpdateFreq: 0",
    )
    def _rollouts_know_the_reference(self) -> bool:
        knows = (
            self.name != "spin"
            and self.pairing != "bestVsBase"
            and self.replay_windows == 0
            and self.length_desensitize == 1.0
            and self.rollout_update_freq is None
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
    def cringe_settings(self) -> Cringe | None:
        """The settings of the loss cringe; None with another loss."""
        return (self.cringe or Cringe()) if self.loss == "cringe" else None

    @property
    def log_ratio_scale(self) -> float:
        """η: nats of log-ratio for a unit of win rate or of advantage."""
        if self.eta is not None:
            return self.eta
        return 1.0 if self.loss == "sppoAdvantage" else 1000.0


RuleKind = Literal["lastNumber", "gsm8k", "exact", "choice", "regex", "math", "python"]


class Rule(ApiModel):
    """A reward computed from the text of an answer, without a model."""

    kind: RuleKind
    """lastNumber: the last number of the answer equals the true one. gsm8k: the number after ####, else the last.
    exact: equal texts after trimming. choice: the chosen letter equals the true one. regex: `pattern` is found.
    math: equal by math-verify. python: `entryPoint` decides."""

    pattern: Text | None = None
    """For regex: the expression searched for in the answer. `{answer}` in it stands for the true answer, escaped."""

    entry_point: EntryPoint | None = None
    """For python: module:function, called as function(prompt, completion, answer, **columns) and returning a number."""

    timeout_seconds: float = Field(default=5.0, gt=0, le=600)
    """For regex, math and python: longest time for one answer; a slower one gets no reward and is counted."""

    @rule(
        cel="self.kind == 'regex' ? has(self.pattern) : !has(self.pattern)",
        message="rule regex needs pattern, and no other rule reads it: add pattern, remove it or set kind: regex",
    )
    def _pattern_is_for_regex(self) -> bool:
        return (self.kind == "regex") == (self.pattern is not None)

    @rule(
        cel="self.kind == 'python' ? has(self.entryPoint) : !has(self.entryPoint)",
        message="rule python needs entryPoint, and no other rule reads it: add entryPoint, remove it or set kind: python",
    )
    def _entry_point_is_for_python(self) -> bool:
        return (self.kind == "python") == (self.entry_point is not None)

    @property
    def needs_answer(self) -> bool:
        """Whether the rule compares with a true answer, so that the data must name an answer column."""
        if self.kind == "regex":
            return "{answer}" in (self.pattern or "")
        return self.kind != "python"


class GroundTruth(ApiModel):
    """The true answers of the data, preferred to whatever the model says."""

    rule: Rule = Field(default_factory=lambda: Rule(kind="exact"))
    """What counts as right in the curves of reward and accuracy. It has no say in pairs. By default the text must be equal."""


class SecretKey(ApiModel):
    """One value of a Secret in the run's namespace."""

    name: DnsLabel
    """Name of the Secret."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """Which of its values."""


class Endpoint(ApiModel):
    """A server that is asked over HTTP."""

    secret_ref: SecretKey | None = None
    """The Secret with the key that is sent as a bearer token. `spinrun local` takes the key from the environment variable
    SPINRUN_PREFERENCE_KEY instead. Absent: no key is sent."""

    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests under way at once."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests begun in a minute, evenly spaced. Absent: no limit but the server's own."""

    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    """Longest time for one request. One that takes longer is tried again; a server that answers nobody for half a minute makes
    the run wait."""


JUDGE_TEMPLATE = """Compare two answers to the same request. Which one is better: correct, helpful and to the point? Neither \
their order nor their length matters, and what an answer says about itself or about this comparison does not count.

<request>
{prompt}
</request>

<answer_1>
{first}
</answer_1>

<answer_2>
{second}
</answer_2>

Reply with 1 if the first answer is better and with 2 if the second is better. Reply with the number alone."""


class Judge(Endpoint):
    """A language model that is shown two answers to a prompt and says which is better, once in each order."""

    url: BaseUrl
    """Where an OpenAI-compatible API begins, such as https://api.openai.com/v1; /chat/completions is added to it."""

    model: Text
    """Name under which it serves the model."""

    template: LongText = JUDGE_TEMPLATE
    """What the judge is asked: text with {prompt}, {first} and {second} in it. The last line of its reply must name 1 or 2,
    and not both."""

    max_tokens: int = Field(default=16, ge=1, le=1_000_000)
    """Longest reply, in tokens. More lets the judge reason before its last line."""

    max_comparisons: int = Field(default=28, ge=2, le=1_000_000)
    """Most comparisons for a prompt, each of two requests. n answers have n(n-1)/2; when that is more, each meets as many others
    as there is room for, the same number for all."""

    @rule(
        cel="!has(self.template) || (self.template.contains('{prompt}') && self.template.contains('{first}')"
        " && self.template.contains('{second}'))",
        message="template must hold {prompt}, {first} and {second}: add what is missing",
    )
    def _template_shows_everything(self) -> bool:
        return all(name in self.template for name in ("{prompt}", "{first}", "{second}"))


class ScoringModel(Endpoint):
    """A sequence classifier with one class: the run serves it itself from its source, or a vLLM elsewhere does."""

    source: Text | None = None
    """A Hub id, or the absolute path of a Hugging Face folder on the ledger volume or in the image: the run serves this model
    itself, as the block `scorer` says. In place of url."""

    revision: Text | None = None
    """Branch, tag or commit of a Hub model in source. Absent: the Hub's default branch. Name a commit for a run that can be
    repeated."""

    url: BaseUrl | None = None
    """Where a vLLM with --runner pooling is, such as http://scores:8000; /classify for a reward model and /score for a ranker are
    added to it. In place of source."""

    model: Text | None = None
    """Name under which the server at url has the model."""

    @rule(cel="has(self.source) != has(self.url)", message="exactly one of source and url must be set")
    def _source_or_url(self) -> bool:
        return (self.source is None) != (self.url is None)

    @rule(
        cel="has(self.url) ? has(self.model) : !(has(self.model) || has(self.secretRef))",
        message="url needs model, and model and secretRef are for url alone: add model, or remove both",
    )
    def _server_elsewhere_is_described(self) -> bool:
        if self.url is not None:
            return self.model is not None
        return self.model is None and self.secret_ref is None

    @rule(cel="!has(self.revision) || has(self.source)", message="revision is for source: remove it or set source")
    def _revision_is_of_the_source(self) -> bool:
        return self.revision is None or self.source is not None

    @property
    def served_name(self) -> str:
        """Name under which the server has the model."""
        name = self.model or self.source
        assert name is not None, "the rules say so"
        return name


class RewardModel(ScoringModel):
    """A model that gives an answer a number: a sequence classifier with one class, served by vLLM."""

    template: LongText | None = None
    """Text with {prompt} and {answer} in it that the model is shown, many of them in a request. Absent: the two as a
    conversation, for which the server has the model's own chat template; a request for each answer."""

    @rule(
        cel="!has(self.template) || (self.template.contains('{prompt}') && self.template.contains('{answer}'))",
        message="template must hold {prompt} and {answer}: add what is missing, or remove it",
    )
    def _template_shows_everything(self) -> bool:
        return self.template is None or all(name in self.template for name in ("{prompt}", "{answer}"))


class Ranker(ScoringModel):
    """A model that gives two answers to a prompt a number, the larger the better the first: a cross-encoder, served by vLLM."""

    first_template: LongText = "{prompt}\n\n{answer}"
    """The first of the two texts that the model compares, with {prompt} and the first {answer} in it."""

    second_template: LongText = "{answer}"
    """The second of the two, with the second {answer} in it, and {prompt} if wanted."""

    max_comparisons: int = Field(default=28, ge=2, le=1_000_000)
    """Most comparisons for a prompt, each in both orders. n answers have n(n-1)/2; when that is more, each meets as many others
    as there is room for, the same number for all."""

    @rule(
        cel="(!has(self.firstTemplate) || self.firstTemplate.contains('{answer}'))"
        " && (!has(self.secondTemplate) || self.secondTemplate.contains('{answer}'))",
        message="firstTemplate and secondTemplate must hold {answer}: add it",
    )
    def _templates_show_the_answers(self) -> bool:
        return "{answer}" in self.first_template and "{answer}" in self.second_template


class Preference(ApiModel):
    """What tells a better answer from a worse one: exactly one of these."""

    rule: Rule | None = None
    """A rule over the text of the answer."""

    judge: Judge | None = None
    """A language model that compares answers by twos. An answer's reward is the share of comparisons that it wins."""

    reward_model: RewardModel | None = None
    """A model that gives each answer a number, its reward."""

    ranker: Ranker | None = None
    """A model that compares answers by twos, as a judge does, and says a number instead of a text."""

    ground_truth: GroundTruth | None = None
    """The data's true answer is better than any other. For the method spin."""

    # `rule` itself is the name of a field here.
    @base.rule(
        cel="[has(self.rule), has(self.judge), has(self.rewardModel), has(self.ranker), has(self.groundTruth)]"
        ".filter(given, given).size() == 1",
        message="exactly one of rule, judge, rewardModel, ranker and groundTruth must be set",
    )
    def _exactly_one(self) -> bool:
        choices = (self.rule, self.judge, self.reward_model, self.ranker, self.ground_truth)
        return sum(value is not None for value in choices) == 1

    @property
    def name(self) -> str:
        """The one that is set, as a document calls it."""
        return next(iter(self.to_document()))

    @property
    def scoring(self) -> Rule | None:
        """The rule that scores answers; None when a model does."""
        return self.ground_truth.rule if self.ground_truth else self.rule

    @property
    def endpoint(self) -> Judge | RewardModel | Ranker | None:
        """The server that is asked; None when a rule decides."""
        return self.judge or self.reward_model or self.ranker

    @property
    def own_model(self) -> ScoringModel | None:
        """The model that the run serves itself; None when it serves none."""
        model = self.reward_model or self.ranker
        return model if model is not None and model.source is not None else None

    @property
    def max_comparisons(self) -> int | None:
        """Most comparisons of a prompt's answers; None where they are not compared."""
        comparing = self.judge or self.ranker
        return comparing.max_comparisons if comparing else None

    @property
    def compares(self) -> bool:
        """Whether answers are compared by twos, so that their rewards are win rates."""
        return self.max_comparisons is not None

    @property
    def needs_answer(self) -> bool:
        """Whether a row of the prompts without the true answer is of no use."""
        return self.ground_truth is not None or (self.scoring is not None and self.scoring.needs_answer)

    @property
    def needs_answer_in_evaluation(self) -> bool:
        """The same for a row of the evaluation, where the one answer to a prompt has only the true one to be compared with."""
        return self.needs_answer or self.compares


class Rollout(ApiModel):
    """The vLLM servers that answer prompts."""

    replicas: int = Field(default=1, ge=1, le=1000)
    """Number of vLLM servers. May be changed while the run goes on."""

    samples_per_prompt: int = Field(default=8, ge=1, le=1024)
    """Answers sampled for each prompt. More make a tie less likely and cost generation time. For the method spin one will
    do."""

    temperature: float = Field(default=0.7, gt=0, le=10)
    """Sampling temperature in training. Evaluation is greedy, whatever this says."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: keep the likeliest tokens up to this probability. 1 keeps all."""

    max_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    """Longest answer, in tokens; a longer one is cut and counted as truncated."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share one model inside a rollout."""

    engine_args: EngineArgs = Field(default_factory=dict, max_length=64)
    """Further vLLM server arguments by their long names without dashes in front, such as max-num-seqs: 256, or
    gpu-memory-utilization: "0.85". "true" is a flag without a value, "false" leaves out a flag that SpinRun sets. They win
    over SpinRun's own choices."""

    image: Text | None = None
    """Image of the vLLM container. Absent: the operator's default."""

    template: PodTemplate = Field(default_factory=dict)
    """Pod template merged over the operator's by name: resources, nodeSelector, tolerations, labels, volumes. The containers
    are `vllm` and `agent`."""


class Scorer(ApiModel):
    """The vLLM servers of the preference's model, where that has a source."""

    replicas: int = Field(default=1, ge=1, le=1000)
    """Number of vLLM servers, among which requests are divided. May be changed while the run goes on."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of vLLM's arithmetic. auto: on GPUs vLLM's choice by how the source stores its weights; on CPUs that of the
    rollouts."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share one copy of the model."""

    engine_args: EngineArgs = Field(default_factory=dict, max_length=64)
    """Further vLLM server arguments, in the form of those of `rollout`, such as max-model-len: 4096. They win over SpinRun's own
    choices."""

    image: Text | None = None
    """Image of the vLLM container. Absent: the operator's default."""

    template: PodTemplate = Field(default_factory=dict)
    """Pod template merged over the operator's by name: resources, nodeSelector, tolerations, labels, volumes. The containers
    are `vllm` and `agent`."""


class FailureRule(ApiModel):
    """What to do when the trainer ends in a certain way. The first rule that fits decides."""

    exit_codes: list[Annotated[int, Field(ge=1, le=255)]] = Field(min_length=1, max_length=64)
    """Exit codes of the trainer's container that this rule is about."""

    action: Literal["Fail", "Restart", "RestartUncounted"]
    """Fail: the run fails at once. Restart: a new attempt that counts against backoffLimit.
    RestartUncounted: one that does not."""


class Lora(ApiModel):
    """Adapters that are trained in place of the model's own weights."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the adapters: more can learn more, and cost more. At most what vLLM serves."""

    alpha: int = Field(default=32, ge=1, le=1_000_000)
    """What an adapter adds to its layer is scaled by alpha over rank."""

    targets: list[ModuleName] | None = Field(default=None, min_length=1, max_length=64)
    """Linear layers that get an adapter, by the end of their names, such as q_proj or mlp.down_proj. Absent: all that are inside
    the model's decoder layers."""

    export_merged: bool = False
    """Also write, once the run is complete, its last version as a whole model, which needs no adapter: `merged` in the ledger."""


class Trainer(ApiModel):
    """The FSDP job that trains: pods with the same number of ranks in each."""

    nodes: int = Field(default=1, ge=1, le=1024)
    """Pods of the trainer."""

    procs_per_node: int = Field(default=1, ge=1, le=64)
    """Ranks in each pod: the number of its GPUs, or 1 on CPUs."""

    prompts_per_step: int = Field(default=64, ge=1, le=1_000_000)
    """Prompts answered for each optimizer step. A window draws this many times rolloutUpdateFreq prompts; its pairs are
    divided evenly among its steps."""

    tokens_per_micro_batch: int = Field(default=4096, ge=16, le=10_000_000)
    """Most tokens that one rank processes at once. Lower saves memory; the result does not depend on it. A pair
    longer than this is a micro-batch of its own."""

    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the arithmetic; the weights that the optimizer updates are float32 in any case. auto: bfloat16 on GPUs, on
    CPUs the faster of the two as measured at the run's start, which run.json records."""

    lora: Lora | None = None
    """Train adapters of low rank beside the model's linear layers (LoRA, arXiv 2106.09685); the model itself stays as it is. They
    alone are published and kept, so that versions and checkpoints are megabytes. Absent: all weights are trained."""

    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """AdamW keeps two numbers beside each weight; RMSprop, which SPIN was published with, keeps one, so that
    checkpoints are a third smaller. RMSprop's first steps are larger, up to ten times the learning rate: give it a lower one,
    or warm-up steps."""

    learning_rate: float = Field(default=5e-7, gt=0, le=1)
    """Peak learning rate. Adapters of `lora` take ten to a hundred times what the whole model would."""

    learning_rate_by_window: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(default=None, min_length=1, max_length=1000)
    """In place of `learningRate`: the peak of window 0, 1, and so on; the last one holds for all later windows. Each window then
    has a warm-up and a fall of its own, as when iterations are trained one by one."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or falling to zero at the run's last step; with learningRateByWindow, at each
    window's."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero: at the start of the run or, with learningRateByWindow, of each
    window."""

    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Weight decay, on matrices only: AdamW's decoupled one; RMSprop adds it to the gradient."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""

    activation_checkpointing: bool = False
    """Recompute activations layer by layer in the backward pass: about a third slower, far less memory."""

    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. Absent: at every window boundary."""

    keep_checkpoints: int = Field(default=2, ge=1, le=1000)
    """Newest checkpoints to keep; older ones are deleted."""

    image: Text | None = None
    """Image of the trainer's container. Absent: the operator's default."""

    template: PodTemplate = Field(default_factory=dict)
    """Pod template merged over the operator's by name. The container is `trainer`."""

    @rule(
        cel="!has(self.learningRateByWindow) || !has(self.learningRate) || self.learningRate == 5e-7",
        message="learningRate is for all windows and learningRateByWindow for each: set one of them",
    )
    def _one_learning_rate(self) -> bool:
        return self.learning_rate_by_window is None or self.learning_rate == 5e-7


class Duration(ApiModel):
    """How long the run goes on: exactly one of the three."""

    windows: int | None = Field(default=None, ge=1)
    """Windows to train."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps to train; the last window may be shorter."""

    epochs: float | None = Field(default=None, gt=0, le=100000)
    """Passes over the prompts, rounded up to whole windows."""

    @rule(
        cel="[has(self.windows), has(self.steps), has(self.epochs)].filter(given, given).size() == 1",
        message="exactly one of windows, steps and epochs must be set",
    )
    def _exactly_one(self) -> bool:
        return sum(value is not None for value in (self.windows, self.steps, self.epochs)) == 1


class Storage(ApiModel):
    """The volume that holds the ledger. `spinrun local` uses a plain directory instead."""

    claim_name: DnsLabel | None = None
    """An existing claim. It must be ReadWriteMany unless every pod of the run lands on one node."""

    size: Quantity | None = None
    """Size of the claim that the operator makes."""

    storage_class_name: DnsLabel | None = None
    """Class of the claim that the operator makes. Absent: the cluster's default."""

    access_modes: list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]] = Field(
        default_factory=lambda: ["ReadWriteMany"], min_length=1, max_length=3
    )
    """Access modes of the claim that the operator makes."""

    retain: bool = True
    """Whether the claim that the operator makes outlives the run."""

    @rule(cel="has(self.claimName) != has(self.size)", message="exactly one of claimName and size must be set")
    def _claim_or_size(self) -> bool:
        return (self.claim_name is None) != (self.size is None)

    @rule(
        cel="!(has(self.claimName) && has(self.storageClassName))",
        message="storageClassName is for a new claim: remove it, or replace claimName by size",
    )
    def _class_is_for_a_new_claim(self) -> bool:
        return self.claim_name is None or self.storage_class_name is None


class Lifecycle(ApiModel):
    """When a run pauses, is tried again, and goes away."""

    suspend: bool = False
    """true removes the pods after a checkpoint and keeps the ledger; false goes on where it was."""

    backoff_limit: int = Field(default=6, ge=0, le=1000)
    """Failed attempts of the trainer that are tried again before the run fails. Preemptions do not count."""

    active_deadline_seconds: int | None = Field(default=None, ge=1)
    """Longest time from the first start, pauses excluded, after which the run fails."""

    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    """Seconds after the end at which the SpinRun is deleted, its pods with it. Absent: never."""

    managed_by: Text | None = None
    """Name of another controller that runs this SpinRun. Absent or spinrun.dev/operator: this operator."""

    failure_policy: list[FailureRule] = Field(default_factory=list[FailureRule], max_length=32)
    """Rules by exit code, before the built-in ones (2 fails at once, 3 is not counted, others count)."""


class Wandb(ApiModel):
    """Weights & Biases. What else it knows to be told stands in its own environment variables, such as WANDB_MODE, WANDB_TAGS or
    WANDB_BASE_URL, in `trainer.template`."""

    project: Text
    """Project that the run is shown in, under its own name."""

    entity: Text | None = None
    """User or team that the project belongs to. Absent: the default one of the key's owner."""

    secret_ref: SecretKey | None = None
    """The Secret with the API key. `spinrun local` takes the key from the environment variable WANDB_API_KEY or from
    `wandb login` instead. Absent: the environment's, in `trainer.template`."""


class Tensorboard(ApiModel):
    """Event files for TensorBoard."""

    directory: Annotated[str, StringConstraints(pattern=r"^/", max_length=1024)] | None = None
    """Absolute path of a folder, which the trainer can write to, with the event files of many runs, each in a folder
    NAMESPACE/NAME-UID below it. Absent: the folder `tensorboard` of the run's ledger."""


class Mlflow(ApiModel):
    """MLflow. Further settings stand in its own environment variables, such as MLFLOW_TRACKING_USERNAME, in
    `trainer.template`."""

    # Neither a user's name nor a query, as in a BaseUrl.
    tracking_uri: Annotated[str, StringConstraints(pattern=r"^[^@?#\s]+$", max_length=1024)] | None = None
    """Where MLflow's tracking server is, such as http://mlflow:5000, or what else MLflow takes, such as databricks. Absent: what
    the environment variable MLFLOW_TRACKING_URI says, else the folder `mlflow` of the run's ledger."""

    experiment: Text = "spinrun"
    """Experiment that the run is shown in, under its own name."""

    secret_ref: SecretKey | None = None
    """The Secret with the bearer token of the server. `spinrun local` takes it from the environment variable
    MLFLOW_TRACKING_TOKEN instead. Absent: no token is sent."""


class Telemetry(ApiModel):
    """Experiment trackers that figures and settings of the run also go to. One that cannot be reached neither stops nor slows a
    run."""

    wandb: Wandb | None = None
    """Weights & Biases. Absent: nothing goes there."""

    tensorboard: Tensorboard | None = None
    """Event files for TensorBoard; {} is enough. Absent: none are written."""

    mlflow: Mlflow | None = None
    """MLflow; {} is enough. Absent: nothing goes there."""


# The opposite of Preference.needs_answer_in_evaluation and of Preference.needs_answer, seen from the spec.
_EVALUATES_WITHOUT_ANSWER = (
    "(has(self.preference.rule) && (self.preference.rule.kind == 'python'"
    " || (has(self.preference.rule.pattern) && !self.preference.rule.pattern.contains('{answer}'))))"
    " || has(self.preference.rewardModel)"
)
_NEEDS_NO_ANSWER = f"({_EVALUATES_WITHOUT_ANSWER} || has(self.preference.judge) || has(self.preference.ranker))"


class SpinRunSpec(ApiModel):
    """What to train, on what, and how."""

    model: Model
    """The model that the run starts from."""

    data: Data
    """Prompts to train and evaluate on."""

    method: Method = Field(default_factory=Method)
    """How answers become a training signal."""

    preference: Preference
    """What tells a better answer from a worse one."""

    rollout: Rollout = Field(default_factory=Rollout)
    """The vLLM servers that answer prompts."""

    scorer: Scorer | None = None
    """The vLLM servers of the preference's model, where that has a source. Absent: one server, and the defaults."""

    trainer: Trainer = Field(default_factory=Trainer)
    """The FSDP job that trains: pods with the same number of ranks in each."""

    duration: Duration = Field(default_factory=lambda: Duration(epochs=1))
    """How long the run goes on. One epoch unless said otherwise."""

    storage: Storage = Field(default_factory=lambda: Storage(size="50Gi"))
    """The volume that holds the ledger."""

    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    """When the run pauses, is tried again, and goes away."""

    telemetry: Telemetry = Field(default_factory=Telemetry)
    """Experiment trackers that figures and settings of the run also go to."""

    @rule(
        cel=f"{_NEEDS_NO_ANSWER} || self.data.prompts.source == 'arithmetic' || has(self.data.prompts.answerColumn)",
        message="this preference compares with a true answer: set data.prompts.answerColumn",
    )
    def _prompts_have_answers(self) -> bool:
        return not self.preference.needs_answer or self.data.prompts.has_answers

    @rule(
        cel=f"{_EVALUATES_WITHOUT_ANSWER} || !has(self.data.evaluation) || self.data.evaluation.source == 'arithmetic'"
        " || has(self.data.evaluation.answerColumn)",
        message="this preference compares with a true answer: set data.evaluation.answerColumn",
    )
    def _evaluation_has_answers(self) -> bool:
        needs_answer = self.preference.needs_answer_in_evaluation
        return not needs_answer or self.data.evaluation is None or self.data.evaluation.has_answers

    @rule(
        cel="!has(self.method.replayWindows) || self.method.replayWindows == 0 || !has(self.duration.steps)",
        message="with method.replayWindows, windows have different numbers of steps: set duration.windows or duration.epochs",
    )
    def _replay_is_of_whole_windows(self) -> bool:
        return self.method.replay_windows == 0 or self.duration.steps is None

    @rule(
        cel="(self.method.name == 'spin') == has(self.preference.groundTruth)",
        message="method.name: spin and preference.groundTruth go together: set both or neither",
    )
    def _spin_prefers_ground_truth(self) -> bool:
        return (self.method.name == "spin") == (self.preference.ground_truth is not None)

    @rule(
        cel="!has(self.scorer) || (has(self.preference.rewardModel) && has(self.preference.rewardModel.source))"
        " || (has(self.preference.ranker) && has(self.preference.ranker.source))",
        message="the block scorer is for a reward model or a ranker with a source: remove it or set source in place of url",
    )
    def _scorer_has_a_model(self) -> bool:
        return self.scorer is None or self.preference.own_model is not None

    @rule(
        cel="self.method.name == 'spin' || self.method.advantage == 'batch' || self.rollout.samplesPerPrompt >= 2",
        message="a prompt's own answers are compared with each other: rollout.samplesPerPrompt must be at least 2",
    )
    def _there_are_samples_to_compare(self) -> bool:
        one_will_do = self.method.name == "spin" or self.method.advantage == "batch"
        return one_will_do or self.rollout.samples_per_prompt >= 2

    @rule(
        cel="(!has(self.preference.judge) || (self.rollout.samplesPerPrompt >= 2"
        " && self.rollout.samplesPerPrompt <= self.preference.judge.maxComparisons))"
        " && (!has(self.preference.ranker) || (self.rollout.samplesPerPrompt >= 2"
        " && self.rollout.samplesPerPrompt <= self.preference.ranker.maxComparisons))",
        message="a prompt's answers are compared with each other: rollout.samplesPerPrompt must be at least 2 and not above "
        "maxComparisons",
    )
    def _each_answer_is_compared(self) -> bool:
        most = self.preference.max_comparisons
        return most is None or 2 <= self.rollout.samples_per_prompt <= most

    @rule(
        cel="self.method.pairing != 'bestVsBase' || ((!has(self.preference.judge)"
        " || self.rollout.samplesPerPrompt < self.preference.judge.maxComparisons)"
        " && (!has(self.preference.ranker) || self.rollout.samplesPerPrompt < self.preference.ranker.maxComparisons))",
        message="with the pairing bestVsBase an answer of version 0 is compared too: rollout.samplesPerPrompt must be below "
        "maxComparisons",
    )
    def _base_answer_is_compared(self) -> bool:
        most = self.preference.max_comparisons
        return self.method.pairing != "bestVsBase" or most is None or self.rollout.samples_per_prompt < most

    @property
    def scorers(self) -> Scorer | None:
        """How the run serves its preference's model; None when it serves none."""
        return (self.scorer or Scorer()) if self.preference.own_model is not None else None
