"""What processes say to each other: agent and collector, rank 0 and whoever watches it.

HTTP of an agent (JSON; bearer token of the run; NDJSON where it streams):
    PUT  /v1/version   VersionWanted   -> 202 VersionState      level-triggered and idempotent
    GET  /v1/version                   -> 200 VersionState
    POST /v1/samples   SamplesRequest  -> 200 stream of SamplesLine, one per finished prompt, then one End
                                          409 ErrorBody when another version is served, 429 when too busy
    GET  /healthz, /readyz, /metrics   -> without token; the first two also on a port of their own, for the kubelet
    any refusal                        -> 4xx or 503 ErrorBody: without the token before anything of the body is read, as are
                                          bodies that are too large or encoded
HTTP of rank 0:
    GET  /progress                     -> 200 Progress
    GET  /metrics, /healthz
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from spinrun_api.base import Count, Record
from spinrun_api.status import Best, Metrics, RolloutStatus
from spinrun_protocol.ledger import Manifest

TOKEN_HEADER = "Authorization"


class VersionWanted(Record):
    """Which weights an agent shall serve."""

    version: int = Field(ge=0)
    """Version to serve."""

    manifest: Manifest
    """Its manifest: the agent refuses a directory on the volume that disagrees with it."""


Activation = Literal["waiting", "staging", "switching", "serving", "failed"]


class VersionState(Record):
    """What an agent serves and how far it is."""

    serving: int | None = None
    """Version that vLLM serves. Absent while it serves none that is known."""

    serving_digest: str | None = None
    """Digest of the served weights."""

    staged: int | None = None
    """Version whose files lie checked in the pod's scratch space."""

    wanted: int | None = None
    """Version asked for last."""

    wanted_digest: str | None = None
    """Digest of the weights asked for last."""

    state: Activation
    """waiting: for vLLM, or for a wanted version. failed: `reason` says why; it is tried again."""

    reason: str = ""
    """Why the wanted version is not served."""


class Sampling(Record):
    """How to sample; the same for all prompts of a request."""

    n: int = Field(default=1, ge=1, le=1024)
    """Samples for each prompt."""

    temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    """0 is greedy."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""

    max_tokens: int = Field(default=1024, ge=1, le=2**31)
    """Longest sample in tokens."""

    logprobs: bool = False
    """Whether each sample comes with its log-prob."""

    token_logprobs: bool = False
    """Whether each sample comes with the log-prob of each of its tokens. Agents of 0.1.0 do not know of it, and send none."""


class Prompt(Record):
    """One prompt, already tokens, so that trainer and rollout cannot disagree about it."""

    id: str
    """Name of the prompt, unique in the request."""

    tokens: tuple[int, ...] = Field(min_length=1)
    """Token ids of the prompt after the chat template."""


class SamplesRequest(Record):
    """Prompts to answer with a certain version."""

    version: int = Field(ge=0)
    """Version that shall answer."""

    digest: str
    """Digest of that version's weights."""

    sampling: Sampling
    """How to sample."""

    prompts: tuple[Prompt, ...] = Field(min_length=1)
    """The prompts."""


class Sample(Record):
    """One completion of one prompt."""

    tokens: tuple[int, ...]
    """Token ids of the completion, with the end token where there is one."""

    text: str
    """The completion as text, without special tokens."""

    finish_reason: Literal["stop", "length"]
    """stop: the model ended it. length: it was cut at max_tokens."""

    logprob: float | None = Field(default=None, allow_inf_nan=False)
    """Summed log-prob of its tokens under the version that made it, in nats at temperature 1, whatever it was sampled with.
    Absent where it was not asked for."""

    token_logprobs: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = None
    """Log-prob of each of its tokens, in nats at temperature 1; with grpo of the distribution that it was sampled from. Absent
    where it was not asked for, and from agents that do not know of it."""


class SampleGroup(Record):
    """All samples of one prompt: one line of the stream."""

    event: Literal["group"] = "group"
    """Kind of line."""

    id: str
    """The prompt's name."""

    version: int
    """Version that made the samples: served from the first token to the last."""

    digest: str
    """Digest of that version's weights."""

    samples: tuple[Sample, ...]
    """The samples."""


class PromptFailed(Record):
    """A prompt that this agent could not answer: one line of the stream. Another agent may."""

    event: Literal["failed"] = "failed"
    """Kind of line."""

    id: str
    """The prompt's name."""

    reason: str
    """What happened."""

    retryable: bool = True
    """false: the prompt itself is at fault, such as one too long for the model."""


class End(Record):
    """Last line of a stream that ended as it should; a stream without it was cut."""

    event: Literal["end"] = "end"
    """Kind of line."""


SamplesLine = Annotated[SampleGroup | PromptFailed | End, Field(discriminator="event")]


class ErrorBody(Record):
    """Body of every answer that is not 2xx."""

    error: str
    """What is wrong and what to do, for people."""

    reason: str
    """One word in PascalCase: Unauthorized, StaleVersion, TooManyRequests, TooLarge, Invalid, Draining."""

    serving: int | None = None
    """With StaleVersion: the version that is served."""


Activity = Literal[
    "starting", "publish", "activate", "evaluate", "generate", "score", "reference", "train", "checkpoint", "finished"
]


class Progress(Record):
    """What rank 0 says of the run."""

    uid: str
    """The run."""

    attempt: Count
    """This attempt."""

    # Trainers of 0.1.0, which an upgrade of the operator leaves at work, say "prefer".
    activity: Annotated[Activity, BeforeValidator(lambda said: "score" if said == "prefer" else said)]
    """What it does now."""

    window: Count
    """Window being worked on, from 0."""

    windows: Count
    """Windows in all."""

    step: Count
    """Optimizer steps done."""

    total_steps: Count
    """Optimizer steps in all."""

    version: Count | None = None
    """Newest published version."""

    prompts_done: Count = 0
    """Prompts answered in the generation under way."""

    prompts_total: Count = 0
    """Prompts of that generation."""

    beats: int = 0
    """Grows with everything that this attempt gets done: answers, steps, another activity. It stands still while rank 0 waits or
    hangs; 0 from trainers that do not count."""

    rollouts: RolloutStatus = RolloutStatus()
    """The rollouts as one group."""

    metrics: Metrics = Metrics()
    """The newest figures."""

    best: Best | None = None
    """The best version so far."""

    message: str = ""
    """What it waits for, when it waits."""

    trouble: str = ""
    """What stands in the run's way outside of it, such as a judge that is down, until it is gone; empty when nothing does."""

    eta_seconds: float | None = None
    """Seconds until the end at the present pace."""
