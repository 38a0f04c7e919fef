"""The spec of a SpinRun: what a user writes. Each rule that spans fields is written once, here.

`crd.py` turns these models into the CustomResourceDefinition; each rule brings its CEL expression for it, and a test feeds
the same invalid documents to both.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from spinrun_api import base
from spinrun_api.base import ApiModel, rule

# Lengths are bounded so that the API server can bound the cost of the CEL rules over them.
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=65536)]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$", max_length=32)]
EntryPoint = Annotated[str, StringConstraints(pattern=r"^[^:\s]+:[^:\s]+$", max_length=1024)]
PodTemplate = dict[str, Any]


def _number_or_text(value: object) -> object:
    """Kubernetes has no type for "number, text or truth value": what is neither whole number nor text travels as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'must be a whole number or text: write "{json.dumps(value, default=str)}", with the quotes')
    return value


EngineArgument = Annotated[int | str, BeforeValidator(_number_or_text)]


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
    """Held-out prompts, answered greedily and scored by the run's rule."""

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


class Method(ApiModel):
    """How answers become a training signal."""

    name: Literal["onlineDPO", "spin", "sppo"] = "onlineDPO"
    """onlineDPO: a prompt's own samples become pairs, as `pairing` says. spin: each own sample is rejected in favour of the
    data's true answer (arXiv 2401.01335); an own one that says the same makes no pair. sppo: as onlineDPO, but an answer counts
    by how often it wins against the prompt's other ones (2405.00675)."""

    loss: Literal["sigmoid", "hinge", "ipo", "robust", "exo", "nca", "apoZero", "apoDown", "sppoHard", "cringe", "sppo"] = (
        "sigmoid"
    )
    """sigmoid: DPO (arXiv 2305.18290). hinge: SLiC (2305.10425). ipo: a squared distance to a fixed margin (2310.12036).
    robust: DPO made unbiased for flipped preferences (2403.00409). exo: reverse KL to the preference (2402.00856).
    nca: keeps chosen answers likely (2402.05369). apoZero: chosen up, rejected down; apoDown: both down (2408.06266).
    sppoHard: SPPO with certain preferences (2405.00675). cringe: likelihood of the chosen answer and, token by token, other
    tokens than the rejected answer's (2312.16682); it has no reference. sppo: each log-ratio towards its answer's win rate
    (2405.00675), for the method sppo."""

    beta: float = Field(default=0.1, gt=0, le=1000)
    """Strength of the pull towards the reference; larger stays closer. 0.1 is the DPO paper's choice. For sppoHard it is 1/η,
    for which SPPO's authors take 0.001."""

    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """For sigmoid (conservative DPO) and robust: assumed share of pairs whose preference is wrong, below one half. 0 trusts
    every pair."""

    ipo_average: bool = True
    """For ipo: take log-probs per token, so that an answer's length does not change the margin; false sums them."""

    eta: float = Field(default=1000.0, gt=0, le=1_000_000)
    """For the method sppo: nats of log-ratio between an answer that always wins and one that always loses. SPPO's authors take
    1000, and call 1/η beta."""

    include_self: bool = True
    """For the method sppo: whether an answer's win rate counts a draw with itself, as its authors do."""

    cringe: Cringe | None = None
    """For cringe: its settings. Absent: their defaults."""

    sft_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the chosen answer's negative log-likelihood, in nats per token, that is added to the loss (RPO,
    arXiv 2404.19733). 0 adds none."""

    ref_update_freq: int = Field(default=16, ge=1, le=1_000_000)
    """Optimizer steps between two boundaries. At a boundary the trained weights are published, and become both the
    rollout policy and the reference."""

    pairing: Literal["bestVsWorst", "bestVsRandom", "allPairs"] = "bestVsWorst"
    """Which answers of a prompt become pairs; equal rewards never do. bestVsWorst: highest against lowest reward.
    bestVsRandom: highest against a random lower one. allPairs: every two."""

    min_margin: float = Field(default=0.0, ge=0)
    """Rewards that differ by less than this make no pair."""

    @rule(
        cel="!has(self.name) || self.name != 'spin' || ((!has(self.pairing) || self.pairing == 'bestVsWorst')"
        " && (!has(self.minMargin) || self.minMargin == 0.0))",
        message="method spin pairs the true answer with every own one, whatever their rewards: remove pairing and minMargin",
    )
    def _pairing_is_for_rewards(self) -> bool:
        return self.name != "spin" or (self.pairing == "bestVsWorst" and self.min_margin == 0.0)

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
        cel="!has(self.name) || !has(self.loss) || (self.name == 'sppo') == (self.loss == 'sppo')",
        message="the method sppo has the loss sppo, which no other method has: set name and loss both to sppo, or neither",
    )
    def _sppo_has_its_loss(self) -> bool:
        return (self.name == "sppo") == (self.loss == "sppo")

    @rule(
        cel="((!has(self.eta) || self.eta == 1000.0) && (!has(self.includeSelf) || self.includeSelf))"
        " || (has(self.name) && self.name == 'sppo')",
        message="eta and includeSelf are for the method sppo: remove them or set name and loss to sppo",
    )
    def _win_rates_are_for_sppo(self) -> bool:
        return (self.eta == 1000.0 and self.include_self) or self.name == "sppo"

    @property
    def cringe_settings(self) -> Cringe | None:
        """The settings of the loss cringe; None with another loss."""
        return (self.cringe or Cringe()) if self.loss == "cringe" else None


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


class Preference(ApiModel):
    """What tells a better answer from a worse one: exactly one of the two."""

    rule: Rule | None = None
    """A rule over the text of the answer."""

    ground_truth: GroundTruth | None = None
    """The data's true answer is better than any other. For the method spin."""

    # `rule` itself is the name of a field here.
    @base.rule(
        cel="has(self.rule) != has(self.groundTruth)",
        message="exactly one of rule and groundTruth must be set",
    )
    def _exactly_one(self) -> bool:
        return (self.rule is None) != (self.ground_truth is None)

    @property
    def scoring(self) -> Rule:
        """The rule that scores answers."""
        scoring = self.ground_truth.rule if self.ground_truth else self.rule
        assert scoring is not None, "exactly one is set"
        return scoring

    @property
    def needs_answer(self) -> bool:
        """Whether a row without the true answer is of no use."""
        return self.ground_truth is not None or self.scoring.needs_answer


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

    engine_args: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)], EngineArgument] = Field(
        default_factory=dict, max_length=64
    )
    """Further vLLM server arguments by their long names without dashes in front, such as max-num-seqs: 256, or
    gpu-memory-utilization: "0.85". "true" is a flag without a value, "false" leaves out a flag that SpinRun sets. They win
    over SpinRun's own choices."""

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


class Trainer(ApiModel):
    """The FSDP job that trains: pods with the same number of ranks in each."""

    nodes: int = Field(default=1, ge=1, le=1024)
    """Pods of the trainer."""

    procs_per_node: int = Field(default=1, ge=1, le=64)
    """Ranks in each pod: the number of its GPUs, or 1 on CPUs."""

    prompts_per_step: int = Field(default=64, ge=1, le=1_000_000)
    """Prompts answered for each optimizer step. A window draws this many times refUpdateFreq prompts; its pairs are
    divided evenly among its steps."""

    tokens_per_micro_batch: int = Field(default=4096, ge=16, le=10_000_000)
    """Most tokens that one rank processes at once. Lower saves memory; the result does not depend on it. A pair
    longer than this is a micro-batch of its own."""

    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """AdamW keeps two numbers beside each weight; RMSprop, which SPIN was published with, keeps one, so that
    checkpoints are a third smaller. RMSprop's first steps are larger, up to ten times the learning rate: give it a lower one,
    or warm-up steps."""

    learning_rate: float = Field(default=5e-7, gt=0, le=1)
    """Peak learning rate."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or falling to zero at the run's last step."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""

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


# The opposite of Preference.needs_answer, seen from the spec.
_NEEDS_NO_ANSWER = (
    "(has(self.preference.rule) && (self.preference.rule.kind == 'python'"
    " || (has(self.preference.rule.pattern) && !self.preference.rule.pattern.contains('{answer}'))))"
)


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

    trainer: Trainer = Field(default_factory=Trainer)
    """The FSDP job that trains: pods with the same number of ranks in each."""

    duration: Duration = Field(default_factory=lambda: Duration(epochs=1))
    """How long the run goes on. One epoch unless said otherwise."""

    storage: Storage = Field(default_factory=lambda: Storage(size="50Gi"))
    """The volume that holds the ledger."""

    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    """When the run pauses, is tried again, and goes away."""

    @rule(
        cel=f"{_NEEDS_NO_ANSWER} || self.data.prompts.source == 'arithmetic' || has(self.data.prompts.answerColumn)",
        message="this preference compares with a true answer: set data.prompts.answerColumn",
    )
    def _prompts_have_answers(self) -> bool:
        return not self.preference.needs_answer or self.data.prompts.has_answers

    @rule(
        cel=f"{_NEEDS_NO_ANSWER} || !has(self.data.evaluation) || self.data.evaluation.source == 'arithmetic'"
        " || has(self.data.evaluation.answerColumn)",
        message="this preference compares with a true answer: set data.evaluation.answerColumn",
    )
    def _evaluation_has_answers(self) -> bool:
        return not self.preference.needs_answer or self.data.evaluation is None or self.data.evaluation.has_answers

    @rule(
        cel="(self.method.name == 'spin') == has(self.preference.groundTruth)",
        message="method.name: spin and preference.groundTruth go together: set both or neither",
    )
    def _spin_prefers_ground_truth(self) -> bool:
        return (self.method.name == "spin") == (self.preference.ground_truth is not None)

    @rule(
        cel="self.method.name == 'spin' || self.rollout.samplesPerPrompt >= 2",
        message="a prompt's own answers are compared with each other: rollout.samplesPerPrompt must be at least 2",
    )
    def _there_are_samples_to_compare(self) -> bool:
        return self.method.name == "spin" or self.rollout.samples_per_prompt >= 2
