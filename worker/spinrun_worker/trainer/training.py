"""One attempt of a run: windows until the last, the same steps on every rank.

    boundary:  publish version k -> activate
    window k:  generate, evaluate | checkpoint -> prefer -> reference -> commit -> train

While the rollouts generate, the trainer writes the checkpoint of the boundary. With `overlap: 1` they answer the next window's
prompts instead, until the next boundary, where the trainer waits for them:

    boundary:  publish version k -> hear what version k-1 answered to window k -> activate version k
    window k:  checkpoint -> prefer -> reference -> commit -> train | version k answers window k+1 and the held-out prompts

The reference is the policy itself where a window is compared with the version that it begins with, else an older version, read
back from the ledger. By choice the rollouts, where they serve that very version, say its log-probs, as long as those of the
window's first step agree with the trainer's own.

The number of steps done says where a run is; nothing else is kept between windows but the model, the optimizer and the
ledger. Whatever happens between two writes to the ledger can be repeated, and an attempt that starts anew repeats it.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, islice

from spinrun_api.spec import Method
from spinrun_protocol.ledger import Manifest
from spinrun_worker.errors import Preempted, RunError
from spinrun_worker.records import Pair
from spinrun_worker.trainer.coordinator import Rank0
from spinrun_worker.trainer.model.learner import Learner, StepResult
from spinrun_worker.trainer.model.memory import trim_memory
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.schedule import Schedule, mix, unmix
from spinrun_worker.trainer.storage.store import Storage

logger = logging.getLogger(__name__)

Shares = Mapping[int, Sequence[Pair]]
"""Pairs of a step, by the window that they come from."""

SELF_CHECK_TOLERANCE = 1e-3
"""Nats, or a share of a loss above one. The reference pass and the first step run the same forward; they differ only by
floating-point order, where an attempt with another number of ranks packs the pairs in another way."""


class Loop:
    """Runs windows from a step to the end. All ranks run it; `rank0` is None on all but rank 0."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        ranks: Distributed,
        learner: Learner,
        storage: Storage,
        rank0: Rank0 | None,
        board: ProgressBoard,
        should_stop: Callable[[], bool],
        method: Method,
        rate: Callable[[int], float],
        checkpoint_every_steps: int | None,
        export: Callable[[Manifest], Manifest] | None,
    ) -> None:
        """Put the parts together.

        method: the run's, from which each window takes its own. rate: learning rate of a step, counted from 0.
        checkpoint_every_steps: None saves at every boundary. export: makes what is wanted of the last version; None: nothing.
        """
        self.schedule = schedule
        self.ranks = ranks
        self.learner = learner
        self.storage = storage
        self.rank0 = rank0
        self.board = board
        self.should_stop = should_stop
        self.method = method
        self.rate = rate
        self.checkpoint_every_steps = checkpoint_every_steps
        self.export = export
        self.step = 0
        self._saved_step = 0

    def run(self, step: int) -> None:
        """Go on after a number of steps until the last version is published and evaluated.

        Raises Preempted, after a checkpoint, when the run is asked to stop.
        """
        self.step = self._saved_step = step
        try:
            while True:
                window, position = self.schedule.locate(self.step)
                self.board.update(window=window, step=self.step)
                weights = self._publish(window) if position == 0 else self._published(window)
                if window == self.schedule.windows:
                    self._finish(weights)
                    break
                self._window(window, position, weights)
        except BaseException as error:
            if self.rank0 is not None:
                self.rank0.hush()
            if isinstance(error, Preempted):
                self._save()
            raise
        self.board.update(activity="finished", eta_seconds=0.0)

    def _publish(self, window: int) -> Manifest:
        """Publish the weights of this moment."""
        with self.board.during("publish"):
            weights = self.storage.publish(version=window, step=self.step)
        self.board.wrote(weights)
        return weights

    def _finish(self, weights: Manifest) -> None:
        """Evaluate the last version, and make of it what is wanted beside it."""
        if self.schedule.overlap:
            self._catch_up(weights, is_committed=True)
        self._ask(weights, sample=None)
        self._tidy(weights)
        self._hear()
        if self.export is not None:
            with self.board.during("publish"):
                exported = self.export(weights)
            self.board.wrote(exported)

    def _published(self, window: int) -> Manifest:
        """The version that the window under way began with; published by an earlier attempt."""
        return self.ranks.from_rank0(lambda: self.storage.ledger.verify("weights", window))

    def _window(self, window: int, position: int, weights: Manifest) -> None:
        """Train the steps of a window that are left."""
        started = time.monotonic()
        self.learner.method = self.method.in_window(window)
        num_steps = self.schedule.steps(window)
        committed = self.ranks.from_rank0(lambda: self._rank0().recall(window, weights))
        self._converse(window, position, weights, is_committed=committed is not None)
        if committed is not None:
            steps = mix(committed, num_steps)
        else:
            pairs = self.ranks.from_rank0(lambda: self._rank0().prefer(window))
            steps = self._first_step(window, weights, mix(pairs, num_steps))
            position = max(position, 1)
        for index in range(position, num_steps):
            self._train([*chain(*steps[index].values())], window, index)
        self.ranks.from_rank0(lambda: self._rank0().finish_window(window, self.step))
        windows_left = self.schedule.windows - window - 1
        self.board.update(eta_seconds=windows_left * (time.monotonic() - started))

    def _converse(self, window: int, position: int, weights: Manifest, *, is_committed: bool) -> None:
        """Have the answers to the window's prompts, unless the ledger holds it, and the rollouts busy while it trains, where they
        are ahead; meanwhile tidy up."""
        if self.schedule.overlap:
            self._catch_up(weights, is_committed=is_committed)
            self._ask(weights, sample=self._next(window, weights))
            self._tidy(weights)
        elif position == 0:
            self._ask(weights, sample=None if is_committed else window)
            self._tidy(weights)
            self._hear()

    def _catch_up(self, weights: Manifest, *, is_committed: bool) -> None:
        """Hear what was asked a window ago; an attempt that begins here asks now for what is missing."""
        self._hear()
        window = weights.version
        if is_committed:
            sampler = self.ranks.from_rank0(lambda: self._rank0().unevaluated(self.schedule.sampler(window)))
        elif self.ranks.from_rank0(lambda: self._rank0().has_heard):
            sampler = None
        else:
            sampler = self.storage.sampler(weights)
        if sampler is not None:
            self._ask(sampler, sample=None if is_committed else window)
            self._hear()

    def _next(self, window: int, weights: Manifest) -> int | None:
        """The window after this one, if its prompts are still to be answered."""
        following = window + 1
        if following == self.schedule.windows or self.ranks.from_rank0(lambda: self._rank0().holds(following, weights)):
            return None
        return following

    def _ask(self, weights: Manifest, *, sample: int | None) -> None:
        """Bring a version to the rollouts, and have it begin to answer the held-out prompts and those of a window."""
        self.ranks.from_rank0(lambda: self._rank0().activate(weights))
        self.ranks.from_rank0(lambda: self._rank0().ask(weights, sample=sample))

    def _hear(self) -> None:
        """Wait for the answers to what was asked, if anything was."""
        self.ranks.from_rank0(lambda: self._rank0().hear())

    def _tidy(self, weights: Manifest) -> None:
        """At a boundary, while the rollouts answer: write the checkpoint, delete what nobody needs."""
        if self.checkpoint_every_steps is None or self.step % self.checkpoint_every_steps == 0:
            self._save()
        self.storage.collect_garbage(newest=weights.version, best=self.board.now.best)
        trim_memory()  # beside it vLLM now generates, often on the same machine

    def _first_step(self, window: int, weights: Manifest, steps: Sequence[Shares]) -> list[Shares]:
        """Give the pairs of a window their reference log-probs, commit them, and train the first step; the steps as committed.

        Where the policy is the reference, the first step needs no pass for it: its own forward pass is one.
        """
        reference = self.storage.reference(weights)
        first = [*chain(*steps[0].values())]
        is_policy = reference.version == weights.version
        is_own_reference = is_policy and bool(first)
        by_rollouts = is_own_reference and self.method.reference_logprobs == "rollouts"
        with self.board.during("reference"), nullcontext() if is_policy else self.storage.in_place_of_policy(reference):
            later = steps[1:] if by_rollouts else [self._refer(shares) for shares in steps[1:]]
            now = steps[0] if is_own_reference else self._refer(steps[0])

        def commit(first: Shares, later: Sequence[Shares]) -> list[Shares]:
            referred = [first, *later]
            self.ranks.from_rank0(lambda: self._rank0().commit(window, unmix(referred), reference))
            return referred

        if not is_own_reference:
            referred = commit(now, later)
            self._train([*chain(*now.values())], window, 0)
            return referred
        try:
            result, seconds = self._step([pair.without_reference() for pair in first])
        except Preempted:
            # The policy is still as it was: the samples are not lost.
            commit(self._refer(now), [self._refer(shares) for shares in later] if by_rollouts else later)
            raise
        if by_rollouts:
            result, later = self._admit(first, result, later, weights)
        referred = commit(with_reference(now, result.logprobs), later)
        self._count_step(window, first, result, seconds)
        return referred

    def _admit(
        self, first: Sequence[Pair], result: StepResult, later: Sequence[Shares], weights: Manifest
    ) -> tuple[StepResult, Sequence[Shares]]:
        """Let the rollouts' log-probs of the later steps' pairs stand, if they are near the trainer's own for the pairs of the
        first step, before which the policy was the reference. The step's result with how near, and the later steps.

        Otherwise the trainer computes them, with the reference in the policy's place: the policy has moved by now.
        """
        mismatch = logprob_mismatch(first, result.logprobs)
        result = replace(result, figures={**result.figures, "logps/mismatch": mismatch})
        if mismatch <= self.method.max_mismatch:
            return result, later
        if self.ranks.is_rank0:
            logger.warning(
                "rollouts and trainer differ by %.4f nats a token in version %d, more than spec.method.maxMismatch (%g): "
                "the trainer computes this window's reference",
                mismatch,
                weights.version,
                self.method.max_mismatch,
            )
        with self.board.during("reference"), self.storage.in_place_of_policy(weights):
            return result, [self._refer(shares) for shares in later]

    def _refer(self, shares: Shares) -> Shares:
        """The pairs of a step with log-probs of the weights that the model holds now, computed as they will be trained on."""
        batch = [*chain(*shares.values())]
        return with_reference(shares, self.learner.reference_logprobs(batch)) if batch else shares

    def _train(self, batch: Sequence[Pair], window: int, index: int) -> None:
        """One optimizer step; a step without pairs only counts."""
        if not batch:
            self._count_step(window, batch, None, 0.0)
            return
        result, seconds = self._step(batch)
        if index == 0 and self.schedule.reference(window) == window:
            self_check(result)
        self._count_step(window, batch, result, seconds)

    def _step(self, batch: Sequence[Pair]) -> tuple[StepResult, float]:
        """One optimizer step and the seconds that it took. Raises Preempted, with the weights as they were."""
        with self.board.during("train"):
            started = time.monotonic()
            result = self.learner.step(batch, learning_rate=self.rate(self.step), should_stop=self.should_stop)
            if result is None:
                raise Preempted(f"stopped during step {self.step}")
            return result, time.monotonic() - started

    def _count_step(self, window: int, batch: Sequence[Pair], result: StepResult | None, seconds: float) -> None:
        """Write down a step, if it had pairs, and save the run when it is time."""
        if result is not None:
            figures = {**result.figures, "timing/train_seconds": seconds}
            if self.method.beta_by_window:
                figures |= {"beta": self.learner.method.beta}
            if self.ranks.is_rank0:
                figures |= {"mfu": self.learner.utilization(batch, seconds)}
            self.ranks.from_rank0(lambda: self._rank0().report_step(window, self.step + 1, figures))
        self.step += 1
        self.board.update(step=self.step)
        is_boundary = self.schedule.locate(self.step)[1] == 0
        if self.checkpoint_every_steps is not None and self.step % self.checkpoint_every_steps == 0 and not is_boundary:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint, unless this step has one. Step 0 needs none: it is the source model."""
        if self.step == self._saved_step:
            return
        with self.board.during("checkpoint"):
            window, _ = self.schedule.locate(self.step)
            checkpoint = self.storage.save(step=self.step, version=window)
        if checkpoint is not None:
            self.board.wrote(checkpoint)
        self._saved_step = self.step

    def _rank0(self) -> Rank0:
        assert self.rank0 is not None, "only rank 0 calls this"
        return self.rank0


def with_reference(shares: Shares, logprobs: Sequence[tuple[float, float]]) -> Shares:
    """The pairs of a step with their (chosen, rejected) log-probs under the reference, in order.

    Raises RunError for log-probs that are no numbers.
    """
    batch = [*chain(*shares.values())]
    strange = [pair.prompt_id for pair, values in zip(batch, logprobs, strict=True) if not all(map(math.isfinite, values))]
    if strange:
        raise RunError(
            f"the reference gives {len(strange)} pairs, such as one of prompt {strange[0]}, log-probs that are no numbers: "
            "its weights are broken; lower trainer.learningRate"
        )
    referred = (
        replace(pair, reference_chosen=chosen, reference_rejected=rejected)
        for pair, (chosen, rejected) in zip(batch, logprobs, strict=True)
    )
    return {window: [*islice(referred, len(share))] for window, share in shares.items()}


def logprob_mismatch(pairs: Sequence[Pair], logprobs: Sequence[tuple[float, float]]) -> float:
    """Mean absolute difference, in nats per token, between the pairs' own log-probs, which are the rollouts', and others of the
    same answers; infinite where a pair has none."""
    difference, num_tokens = 0.0, 0
    for pair, (chosen, rejected) in zip(pairs, logprobs, strict=True):
        if pair.reference_chosen is None or pair.reference_rejected is None:
            return math.inf
        difference += abs(pair.reference_chosen - chosen) + abs(pair.reference_rejected - rejected)
        num_tokens += len(pair.chosen) + len(pair.rejected)
    return difference / num_tokens if math.isfinite(difference) else math.inf


def self_check(first: StepResult) -> None:
    """The first step of a window that is compared with the version it begins with starts at its own reference, where a loss has
    a value known beforehand: ln 2 for sigmoid.

    Raises RunError when it has another: the reference of the loss is then not the policy that was published.
    """
    got, want = first.figures["loss"], first.loss_at_reference
    if abs(got - want) > SELF_CHECK_TOLERANCE * max(1.0, abs(want)):
        raise RunError(
            f"self-check failed: the first step of a window must have the loss at its reference, {want:.6f}, got {got:.6f}. "
            "The weights changed between the reference pass and the step; please report this with the run's ledger"
        )
