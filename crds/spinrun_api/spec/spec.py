"""The spec as a whole, and the rules that span its blocks."""

from pydantic import Field

from spinrun_api.base import ApiModel, rule
from spinrun_api.spec.data import GENERATORS, Data
from spinrun_api.spec.lifecycle import Duration, Lifecycle
from spinrun_api.spec.method import Method
from spinrun_api.spec.model import Model
from spinrun_api.spec.network import Network
from spinrun_api.spec.preference import Preference
from spinrun_api.spec.rollout import DEFAULT_TOKENS, Rollout, Scorer
from spinrun_api.spec.storage import Storage
from spinrun_api.spec.telemetry import Telemetry
from spinrun_api.spec.trainer import Trainer

# The opposite of Preference.needs_answer_in_evaluation and of Preference.needs_answer, seen from the spec.
_EVALUATES_WITHOUT_ANSWER = (
    "(has(self.preference.rule) && (self.preference.rule.kind == 'python'"
    " || (has(self.preference.rule.pattern) && !self.preference.rule.pattern.contains('{answer}'))))"
    " || has(self.preference.rewardModel)"
)
_HAS_PASS_RATE = "(has(self.method.sampling) && has(self.method.sampling.passRate))"
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
    """How long the run trains. One epoch unless said otherwise."""

    storage: Storage = Field(default_factory=lambda: Storage(size="50Gi"))
    """The volume that holds the ledger."""

    network: Network = Field(default_factory=Network)
    """Whom the run's pods may talk to."""

    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    """When the run pauses, is retried, and is deleted."""

    telemetry: Telemetry = Field(default_factory=Telemetry)
    """Experiment trackers that also get the figures and settings of the run."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt, in tokens; where nothing has been said, of a model that reads as much."""
        return self.data.max_prompt_tokens or DEFAULT_TOKENS

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens; likewise."""
        return self.rollout.max_tokens or DEFAULT_TOKENS

    @property
    def asks_token_logprobs(self) -> bool:
        """Whether rollouts send the log-prob of every token."""
        grpo = self.method.grpo_settings
        return self.rollout.logprobs == "tokens" or (grpo is not None and grpo.importance_cap > 0)

    @property
    def logprob_temperature(self) -> float:
        """Temperature at which log-probs are taken, by trainer and rollouts alike: 1, except with grpo, whose gradient is that of
        the distribution that was sampled from."""
        return self.rollout.temperature if self.method.loss == "grpo" else 1.0

    @rule(
        cel=f"{_NEEDS_NO_ANSWER} || (has(self.data.prompts.sources)"
        f" ? self.data.prompts.sources.all(each, each.source in {list(GENERATORS)} || has(each.answerColumn))"
        f" : (has(self.data.prompts.source) && self.data.prompts.source in {list(GENERATORS)})"
        " || has(self.data.prompts.answerColumn))",
        message="this preference compares with a true answer: set data.prompts.answerColumn, of every source",
        culprit=lambda spec: ", ".join(place for place, source in spec.data.prompts.each.items() if not source.has_answers),
    )
    def _prompts_have_answers(self) -> bool:
        return not self.preference.needs_answer or self.data.prompts.has_answers

    @rule(
        cel=f"{_EVALUATES_WITHOUT_ANSWER} || !has(self.data.evaluation) || self.data.evaluation.source in {list(GENERATORS)}"
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
        cel="!has(self.trainer.pairsPerStep) || !has(self.duration.epochs)",
        message="with trainer.pairsPerStep the windows in an epoch are not known: set duration.windows or duration.steps",
    )
    def _pairs_do_not_count_epochs(self) -> bool:
        return self.trainer.pairs_per_step is None or self.duration.epochs is None

    @rule(
        cel="!has(self.trainer.pairsPerStep) || self.method.pairing != 'bestVsBase'",
        message="the pairing bestVsBase asks version 0 every prompt of the run before window 0, and with trainer.pairsPerStep "
        "nobody knows which these are: set promptsPerStep, or another pairing",
    )
    def _base_answers_have_known_prompts(self) -> bool:
        return self.trainer.pairs_per_step is None or self.method.pairing != "bestVsBase"

    @rule(
        cel=f"!{_HAS_PASS_RATE} || has(self.preference.rule) || has(self.preference.groundTruth)",
        message="method.sampling.passRate is the share of answers that pass a rule, and this preference has none: remove "
        "passRate, or set preference.rule",
    )
    def _pass_rates_are_of_rules(self) -> bool:
        return self.method.pass_rate is None or self.preference.scoring is not None

    @rule(
        cel=f"!{_HAS_PASS_RATE} || !has(self.duration.epochs)",
        message="with method.sampling.passRate an epoch has fewer prompts the more are left out: set duration.windows or "
        "duration.steps",
    )
    def _pass_rates_do_not_count_epochs(self) -> bool:
        return self.method.pass_rate is None or self.duration.epochs is None

    @rule(
        cel=f"!{_HAS_PASS_RATE} || self.method.pairing != 'bestVsBase'",
        message="the pairing bestVsBase asks version 0 every prompt of the run before window 0, and with "
        "method.sampling.passRate nobody knows which these are: remove passRate, or set another pairing",
    )
    def _base_answers_have_no_pass_rates(self) -> bool:
        return self.method.pass_rate is None or self.method.pairing != "bestVsBase"

    @rule(
        cel="!has(self.method.referenceMixture) || !has(self.trainer.lora)",
        message="the two factors of adapters, mixed, are not the mixture of the weights that they stand for: remove "
        "method.referenceMixture or trainer.lora",
    )
    def _mixtures_are_of_whole_weights(self) -> bool:
        return self.method.reference_mixture is None or self.trainer.lora is None

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
        # `advantage` itself stands in runs from before it moved, of which everything but the method may still change.
        cel="self.method.name == 'spin' || self.rollout.samplesPerPrompt >= 2"
        " || (has(self.method.sppoAdvantage) && self.method.sppoAdvantage.advantage == 'batch')"
        " || (has(self.method.advantage) && self.method.advantage == 'batch')",
        message="a prompt's own answers are compared with each other: rollout.samplesPerPrompt must be at least 2",
    )
    def _there_are_samples_to_compare(self) -> bool:
        advantages = self.method.sppo_advantage
        one_will_do = self.method.name == "spin" or (advantages is not None and advantages.advantage == "batch")
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
