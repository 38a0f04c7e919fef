"""Prompts that the rollouts are asked to answer, and answers on their way. Rank 0 alone makes requests."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from spinrun_api.run import SpinRun
from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import SampleGroup, Sampling, VersionWanted
from spinrun_worker.records import Answers, PromptRecord
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.sampling.client import RolloutClient


class PendingAnswers:
    """Prompts that the rollouts are answering."""

    def __init__(self, prompts: Sequence[PromptRecord], groups: Future[list[SampleGroup]]) -> None:
        self.prompts = prompts
        self.started = time.monotonic()
        """When they were asked, in seconds of the monotonic clock."""
        self._groups = groups
        self._ended = math.inf
        groups.add_done_callback(lambda _: setattr(self, "_ended", time.monotonic()))

    def cancel(self) -> None:
        """Nobody needs the answers any more."""
        self._groups.cancel()

    def wait(self) -> Answers:
        """The prompts that were answered, in order, with their samples. Raises what the generation raises."""
        by_id = {group.id: group for group in self._groups.result()}
        return [(prompt, by_id[prompt.id]) for prompt in self.prompts if prompt.id in by_id]

    @property
    def ended(self) -> float:
        """When they were answered; now, while they are not."""
        return min(self._ended, time.monotonic())


class Requests:
    """Asks the rollouts as the run's spec says."""

    def __init__(
        self,
        run: SpinRun,
        *,
        rollouts: RolloutClient,
        board: ProgressBoard,
        stop: Callable[[], bool],
    ) -> None:
        """Prepare to ask.

        Args:
            run: Says how to sample.
            rollouts: Whom to ask.
            board: Shows how many prompts are answered.
            stop: Whether the run is asked to stop; whoever waits for answers then raises Preempted.
        """
        self._rollouts = rollouts
        self._spec = run.spec
        self._board = board
        self._stop = stop

    def activate(self, weights: Manifest) -> None:
        """Bring a version to the rollouts. Returns once the first one serves it; the others follow while that one generates."""
        with self._board.during("activate"):
            self._rollouts.activate(VersionWanted(version=weights.version, manifest=weights), stop=self._stop)
        self._board.update(version=weights.version)

    def for_training(
        self, prompts: Sequence[PromptRecord], weights: Manifest, on_progress: Callable[[int], None] | None = None
    ) -> PendingAnswers:
        """Begin to have prompts of a window answered by these weights, which the rollouts serve.

        Args:
            prompts: Those to answer.
            weights: Those that the rollouts serve.
            on_progress: Told how many are done, in place of the board.
        """
        method = self._spec.method
        sampling = self._sampling(self._spec.rollout.samples_per_prompt).model_copy(
            update={
                "logprobs": method.reference_logprobs == "rollouts" and method.uses_reference,
                "token_logprobs": self._spec.asks_token_logprobs,
            }
        )
        return self._start(prompts, weights, sampling, on_progress or self._show(len(prompts)))

    def once(self, prompts: Sequence[PromptRecord], weights: Manifest) -> PendingAnswers:
        """Begin to have prompts answered once each, as in training."""
        return self._start(prompts, weights, self._sampling(1), self._show(len(prompts)))

    def greedily(self, prompts: Sequence[PromptRecord], weights: Manifest, *, shown: bool) -> PendingAnswers:
        """Begin to have prompts answered greedily, once each. shown: whether the progress shown is theirs."""
        sampling = Sampling(n=1, temperature=0.0, max_tokens=self._spec.max_tokens)
        return self._start(prompts, weights, sampling, self._show(len(prompts)) if shown else lambda _: self._board.beat())

    def _sampling(self, n: int) -> Sampling:
        rollout = self._spec.rollout
        return Sampling(n=n, temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=self._spec.max_tokens)

    def _show(self, total: int) -> Callable[[int], None]:
        """Show on the board how many prompts of so many are done; returns who is to be told."""
        self._board.update(prompts_done=0, prompts_total=total)
        return lambda done: self._board.update(prompts_done=done)

    def _start(
        self, prompts: Sequence[PromptRecord], weights: Manifest, sampling: Sampling, on_progress: Callable[[int], None]
    ) -> PendingAnswers:
        groups = self._rollouts.start(
            prompts,
            version=weights.version,
            digest=weights.digest,
            sampling=sampling,
            on_progress=on_progress,
            stop=self._stop,
        )
        return PendingAnswers(prompts, groups)
