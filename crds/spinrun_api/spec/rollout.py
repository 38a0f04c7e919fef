"""The blocks `rollout` and `scorer`: servers that run vLLM."""

from typing import Literal

from pydantic import Field

from spinrun_api.base import ApiModel
from spinrun_api.spec.engine_args import RolloutArgs, ScorerArgs
from spinrun_api.spec.types import PodTemplate, Text

DEFAULT_TOKENS = 1024
"""Of a prompt and of an answer, at most, where the spec does not say and the model reads as many."""


class Rollout(ApiModel):
    """The vLLM servers that answer prompts."""

    replicas: int = Field(default=1, ge=1, le=1000)
    """Number of vLLM servers. May be changed while the run is active."""

    samples_per_prompt: int = Field(default=8, ge=1, le=1024)
    """Answers sampled for each prompt. More make a tie less likely and cost generation time. For the method spin one will
    do."""

    temperature: float = Field(default=0.7, gt=0, le=10)
    """Sampling temperature in training. Evaluation is greedy, whatever this says."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: keep the likeliest tokens up to this probability. 1 keeps all."""

    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """Longest answer, in tokens; a longer one is cut and counted as truncated. Absent: 1024, or half of the model's positions, or
    what these leave beside `data.maxPromptTokens`, if that is less."""

    logprobs: Literal["none", "tokens"] = "none"
    """Whether rollouts send the log-prob of every token that they sample along. tokens: into the ledger's samples; then there are
    curves of the answers' entropy and of how far rollouts and trainer differ. The loss grpo asks for them in any case, unless
    `method.grpo.importanceCap` is 0."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share one model inside a rollout."""

    engine_args: RolloutArgs = Field(default_factory=dict, max_length=64)
    """Further vLLM server arguments by their long names without dashes in front, such as max-num-seqs: 256, or
    gpu-memory-utilization: "0.85". "true" is a flag without a value, "false" leaves out a flag that SpinRun sets. They win
    over SpinRun's own choices, except for those on which a run relies, which may not be set here."""

    image: Text | None = None
    """Image of the vLLM container. Absent: the operator's default."""

    template: PodTemplate = Field(default_factory=dict)
    """Pod template merged over the operator's by name: resources, nodeSelector, tolerations, labels, volumes. The containers
    are `vllm` and `agent`, the init container is `model-check`."""


class Scorer(ApiModel):
    """The vLLM servers of the preference's model, where that has a source."""

    replicas: int = Field(default=1, ge=1, le=1000)
    """Number of vLLM servers, among which requests are divided. May be changed while the run is active."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of vLLM's arithmetic. auto: on GPUs vLLM's choice by how the source stores its weights; on CPUs that of the
    rollouts."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share one copy of the model."""

    engine_args: ScorerArgs = Field(default_factory=dict, max_length=64)
    """Further vLLM server arguments, in the form of those of `rollout`, such as max-model-len: 4096. They win over SpinRun's own
    choices, except for those on which a run relies, which may not be set here."""

    image: Text | None = None
    """Image of the vLLM container. Absent: the operator's default."""

    template: PodTemplate = Field(default_factory=dict)
    """Pod template merged over the operator's by name: resources, nodeSelector, tolerations, labels, volumes. The containers
    are `vllm` and `agent`."""
