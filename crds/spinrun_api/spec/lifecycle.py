"""The blocks `duration` and `lifecycle`: how long a run trains, and when it pauses, is retried, and is deleted."""

from typing import Annotated, Literal

from pydantic import Field

from spinrun_api.base import ApiModel, rule
from spinrun_api.spec.types import Text


class Duration(ApiModel):
    """How long the run trains: exactly one of the three."""

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


class FailureRule(ApiModel):
    """What to do when the trainer ends in a certain way. The first rule that matches decides."""

    exit_codes: list[Annotated[int, Field(ge=1, le=255)]] = Field(min_length=1, max_length=64)
    """Exit codes of the trainer's container that the rule covers."""

    action: Literal["Fail", "Restart", "RestartUncounted"]
    """Fail: the run fails at once. Restart: a new attempt that counts against backoffLimit.
    RestartUncounted: one that does not."""


class Lifecycle(ApiModel):
    """When a run pauses, is retried, and is deleted."""

    suspend: bool = False
    """true removes the pods after a checkpoint and keeps the ledger; false resumes from there."""

    backoff_limit: int = Field(default=6, ge=0, le=1000)
    """Failed attempts of the trainer that are retried before the run fails. Preemptions do not count."""

    active_deadline_seconds: int | None = Field(default=None, ge=1)
    """Longest time from the first start, pauses excluded, after which the run fails."""

    progress_deadline_seconds: int | None = Field(default=None, ge=1)
    """Longest time in which an attempt gets no further once its pods have nodes: no answer, no step, no other activity, no
    rollout that becomes ready. Then it is ended, and counts as failed. Make it longer than models take to load, versions to be
    written and steps to be taken. Absent: no limit."""

    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    """Seconds after the end at which the SpinRun is deleted, its pods with it. Absent: never."""

    managed_by: Text | None = None
    """Name of another controller that runs this SpinRun. Absent or spinrun.dev/operator: this operator.
    It cannot change."""

    failure_policy: list[FailureRule] = Field(default_factory=list[FailureRule], max_length=32)
    """Rules by exit code, which come before the built-in ones (2 fails at once, 3 is not counted, others count)."""
