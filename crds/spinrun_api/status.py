"""The status of a SpinRun: what `kubectl get` and `kubectl describe` show."""

from typing import Literal

from pydantic import ConfigDict, Field

from spinrun_api.base import ApiModel

Phase = Literal["Pending", "Starting", "Running", "Suspended", "Restarting", "Complete", "Failed"]


class StatusModel(ApiModel):
    """A part of the status. Unknown fields are ignored: a newer operator may have written them."""

    model_config = ConfigDict(extra="ignore", strict=False)


class Condition(StatusModel):
    """One observation, by the conventions of the Kubernetes API."""

    type: str = Field(max_length=316)
    """Ready, Progressing, Suspended, Complete, Failed, Degraded or LedgerUnavailable."""

    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""

    reason: str = Field(max_length=1024)
    """One word in PascalCase that programs may compare with."""

    message: str = Field(default="", max_length=32768)
    """What happened and what to do, for people."""

    last_transition_time: str
    """When `status` last changed, RFC 3339."""

    observed_generation: int | None = None
    """Generation of the spec that was observed."""


class RolloutStatus(StatusModel):
    """The rollouts as one group."""

    ready: int = 0
    """Rollouts that serve the wanted version."""

    desired: int = 0
    """Rollouts asked for."""

    version: int | None = None
    """Version that the ready rollouts serve."""


class ScorerStatus(StatusModel):
    """The scorers as one group."""

    ready: int = 0
    """Scorers that answer."""

    desired: int = 0
    """Scorers asked for."""


class Metrics(StatusModel):
    """The newest figures of the run."""

    loss: float | None = None
    """Loss of the last step, nats per pair."""

    reward: float | None = None
    """Mean reward of the last window's samples."""

    accuracy: float | None = None
    """Mean reward of the last evaluation: for 0/1 rules the share of right answers, for a judge or a ranker the win rate against
    the true ones."""

    margin: float | None = None
    """Mean of beta times the chosen minus rejected log-ratio in the last step."""

    samples_per_second: float | None = None
    """Samples per second of generation in the last window."""


class Best(StatusModel):
    """The version with the highest evaluation so far; the earlier one when two are equal."""

    window: int
    """Window at whose start it was evaluated."""

    version: int
    """The version."""

    accuracy: float
    """Its accuracy."""


class SpinRunStatus(StatusModel):
    """What the operator saw last."""

    phase: Phase | None = None
    """A summary for people; programs read the conditions."""

    conditions: list[Condition] = Field(default_factory=list[Condition], max_length=32)
    """What holds now."""

    observed_generation: int | None = None
    """Generation of the spec that this status describes."""

    attempt: int | None = None
    """Number of the trainer's current attempt, from 1."""

    failed_attempts: int | None = None
    """Attempts that count against backoffLimit."""

    attempt_start_time: str | None = None
    """When the trainer of this attempt first ran, RFC 3339. Absent while it has not."""

    next_attempt_time: str | None = None
    """When this attempt may start, RFC 3339. Absent: at once."""

    paused_seconds: int | None = None
    """Seconds of all pauses that are over; activeDeadlineSeconds does not count them."""

    window: int | None = None
    """Window being worked on, from 0."""

    windows: int | None = None
    """Windows in all."""

    step: int | None = None
    """Optimizer steps done."""

    total_steps: int | None = None
    """Optimizer steps in all."""

    version: int | None = None
    """Newest published version."""

    activity: str | None = None
    """What the trainer does now: publish, activate, generate, score, reference, train, checkpoint or evaluate."""

    rollouts: RolloutStatus | None = None
    """The rollouts as one group."""

    scorers: ScorerStatus | None = None
    """The scorers as one group. Absent: the run serves no model of its preference."""

    metrics: Metrics | None = None
    """The newest figures."""

    eta: str | None = None
    """When the run will end at its present pace, RFC 3339."""

    start_time: str | None = None
    """When the first attempt started, RFC 3339."""

    completion_time: str | None = None
    """When the run ended, RFC 3339."""

    best: Best | None = None
    """The best version so far."""

    ledger_image: str | None = None
    """Image in which the command line reads the ledger: the operator's own worker image, whichever the run itself names."""
