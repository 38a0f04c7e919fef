"""Prompts that the rollouts are asked to answer, and answers on their way. Rank 0 alone makes requests."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from spinrun_api.run import SpinRun
from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import SampleGroup, Sampling, VersionWanted
from spinrun_worker.data import PromptStream
from spinrun_worker.records import Answers, PromptRecord
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.schedule import Schedule


class PendingAnswers:
    """Prompts that the rollouts are answering."""

    def __init__(self, prompts: Sequence[PromptRecord], groups: Future[list[SampleGroup]]) -> None:
        self._prompts, self._groups = prompts, groups
        self._started, self._ended = time.monotonic(), math.inf
        groups.add_done_callback(lambda _: setattr(self, "_ended", time.monotonic()))

    def wait(self) -> Answers:
        """The prompts that were answered, in order, with their samples. Raises what the generation raises."""
        by_id = {group.id: group for group in self._groups.result()}
        return [(prompt, by_id[prompt.id]) for prompt in self._prompts if prompt.id in by_id]

    @property
    def seconds(self) -> float:
        """How long it took to answer, or has taken until now."""
        return min(self._ended, time.monotonic()) - self._started


@dataclass(frozen=True)
class Request:
    """What the rollouts are answering, and with which weights."""

    weights: Manifest
    samples: PendingAnswers | None
    """Of a window's prompts."""
    evaluation: PendingAnswers | None
    """Of the held-out prompts."""


@dataclass(frozen=True)
class Collected:
    """The answers to a window's prompts."""

    weights: Manifest
    """Those that gave them."""
    answers: Answers
    seconds: float
    """How long that took."""


class Requests:
    """Asks the rollouts as the run's spec says."""

    def __init__(
        self,
        run: SpinRun,
        schedule: Schedule,
        stream: PromptStream,
        *,
        rollouts: RolloutClient,
        board: ProgressBoard,
        stop: Callable[[], bool],
    ) -> None:
        """Prepare to ask.

        Args:
            run: Says how to sample.
            schedule: Says which prompts of the stream a window has.
            stream: The prompts to train on.
            rollouts: Whom to ask.
            board: Shows how many prompts are answered.
            stop: Whether the run is asked to stop; whoever waits for answers then raises Preempted.
        """
        self._rollouts = rollouts
        self._spec = run.spec
        self._schedule = schedule
        self._stream = stream
        self._board = board
        self._stop = stop

    def activate(self, weights: Manifest) -> None:
        """Bring a version to the rollouts. Returns once the first one serves it; the others follow while that one generates."""
        with self._board.during("activate"):
            self._rollouts.activate(VersionWanted(version=weights.version, manifest=weights), stop=self._stop)
        self._board.update(version=weights.version)

    def of_window(self, number: int, weights: Manifest) -> PendingAnswers:
        """Begin to have a window's prompts answered by these weights, which the rollouts serve."""
        prompts = self._stream.draw(*self._schedule.prompts(number))
        logprobs = self._spec.method.reference_logprobs == "rollouts"
        return self._sample(prompts, weights, n=self._spec.rollout.samples_per_prompt, logprobs=logprobs)

    def once(self, prompts: Sequence[PromptRecord], weights: Manifest) -> PendingAnswers:
        """Begin to have prompts answered once each, as in training."""
        return self._sample(prompts, weights, n=1)

    def greedily(self, prompts: Sequence[PromptRecord], weights: Manifest, *, shown: bool) -> PendingAnswers:
        """Begin to have prompts answered greedily, once each. shown: whether the progress shown is theirs."""
        sampling = Sampling(n=1, temperature=0.0, max_tokens=self._spec.rollout.max_tokens)
        return self._start(prompts, weights, sampling, shown=shown)

    def _sample(self, prompts: Sequence[PromptRecord], weights: Manifest, *, n: int, logprobs: bool = False) -> PendingAnswers:
        rollout = self._spec.rollout
        sampling = Sampling(
            n=n, temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens, logprobs=logprobs
        )
        return self._start(prompts, weights, sampling, shown=True)

    def _start(self, prompts: Sequence[PromptRecord], weights: Manifest, sampling: Sampling, *, shown: bool) -> PendingAnswers:
        if shown:
            self._board.update(prompts_done=0, prompts_total=len(prompts))
        groups = self._rollouts.start(
            prompts,
            version=weights.version,
            digest=weights.digest,
            sampling=sampling,
            on_progress=lambda done: self._board.update(prompts_done=done) if shown else self._board.beat(),
            stop=self._stop,
        )
        return PendingAnswers(prompts, groups)
