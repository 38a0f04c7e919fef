"""The block `trainer`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from spinrun_api.base import ApiModel, rule
from spinrun_api.spec.types import ModuleName, PodTemplate, Text


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

    prompts_per_step: int | None = Field(default=None, ge=1, le=1_000_000)
    """Prompts answered for each optimizer step. A window draws this many times rolloutUpdateFreq prompts; its pairs are
    divided evenly among its steps. Absent, and without pairsPerStep: 64."""

    pairs_per_step: int | None = Field(default=None, ge=1, le=1_000_000)
    """In place of promptsPerStep: pairs for each optimizer step. A window asks prompts, in their order, until it has this many
    times rolloutUpdateFreq pairs or, with too many prompts that give none, until `method.sampling.maxPromptsFactor` times as many
    prompts are answered; the next one continues where it ended."""

    tokens_per_micro_batch: int = Field(default=4096, ge=16, le=10_000_000)
    """Most tokens that one rank processes at once. Lower saves memory; the result does not depend on it. A pair
    longer than this is a micro-batch of its own. Models whose attention is their own, such as Falcon's, take a pair as two padded
    sequences, which need about twice as many."""

    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the arithmetic; the weights that the optimizer updates are float32 in any case. auto: bfloat16 on GPUs, on
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
        cel="!has(self.pairsPerStep) || !has(self.promptsPerStep)",
        message="the size of a step is given in prompts or in pairs: set promptsPerStep or pairsPerStep, not both",
    )
    def _prompts_or_pairs(self) -> bool:
        return self.pairs_per_step is None or self.prompts_per_step is None

    @model_validator(mode="after")
    def _fill_in_prompts(self) -> Self:
        """Not a default of the field: the API server would fill it in beside pairsPerStep."""
        if self.prompts_per_step is None and self.pairs_per_step is None:
            self.prompts_per_step = 64
        return self

    @property
    def least_prompts_per_step(self) -> int:
        """Prompts for each step; with pairsPerStep as many as there are if each gives a pair."""
        prompts = self.pairs_per_step or self.prompts_per_step
        assert prompts is not None  # filled in above
        return prompts

    @rule(
        cel="!has(self.learningRateByWindow) || !has(self.learningRate) || self.learningRate == 5e-7",
        message="learningRate is for all windows and learningRateByWindow for each: set one of them",
    )
    def _one_learning_rate(self) -> bool:
        return self.learning_rate_by_window is None or self.learning_rate == 5e-7
