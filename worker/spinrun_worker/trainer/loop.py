"""One attempt of a run: windows until the last, the same steps on every rank.

    boundary:  publish version k -> activate
    window k:  generate, evaluate | checkpoint -> prefer -> reference -> commit -> train

While the rollouts generate, the trainer writes the checkpoint of the boundary. The reference is the policy itself where a window
is compared with the version that it samples from, else an older version, read back from the ledger. By choice the rollouts, which
serve that very version, say its log-probs, as long as those of the window's first step agree with the trainer's own.

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

from spinrun_api.ledger import Manifest
from spinrun_api.spec import Method
from spinrun_worker.errors import Preempted, RunError
from spinrun_worker.records import Pair
from spinrun_worker.trainer.distributed import Distributed
from spinrun_worker.trainer.learner import Learner, StepResult
from spinrun_worker.trainer.memory import give_back
from spinrun_worker.trainer.progress import ProgressBoard
from spinrun_worker.trainer.rank0 import Rank0
from spinrun_worker.trainer.schedule import Schedule, mix, unmix
from spinrun_worker.trainer.storage import Storage

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
                    self._answers(window, weights, sample=False)
                    self._export(weights)
                    break
                self._window(window, position, weights)
        except Preempted:
            self._save()
            raise
        self.board.update(activity="finished", eta_seconds=0.0)

    def _publish(self, window: int) -> Manifest:
        """Publish the weights of this moment, and bring them to the rollouts."""
        with self.board.during("publish"):
            weights = self.storage.publish(version=window, step=self.step)
        self.board.wrote(weights)
        self.ranks.from_rank0(lambda: self._rank0().activate(weights))
        return weights

    def _export(self, weights: Manifest) -> None:
        """Make of the last version what is wanted of it beside it."""
        if self.export is not None:
            with self.board.during("publish"):
                exported = self.export(weights)
            self.board.wrote(exported)

    def _published(self, window: int) -> Manifest:
        """The version that the window under way was sampled from; published by an earlier attempt."""
        return self.ranks.from_rank0(lambda: self.storage.ledger.verify("weights", window))

    def _window(self, window: int, position: int, weights: Manifest) -> None:
        """Train the steps of a window that are left."""
        started = time.monotonic()
        self.learner.method = self.method.in_window(window)
        num_steps = self.schedule.steps(window)
        committed = self.ranks.from_rank0(lambda: self._rank0().recall(window, weights))
        answers = self._answers(window, weights, sample=committed is None) if position == 0 or committed is None else None
        if committed is not None:
            steps = mix(committed, num_steps)
        else:
            assert answers is not None
            steps = self._first_step(window, weights, mix(answers, num_steps))
            position = max(position, 1)
        for index in range(position, num_steps):
            self._train([*chain(*steps[index].values())], window, index)
        self.ranks.from_rank0(lambda: self._rank0().finish_window(window, self.step))
        windows_left = self.schedule.windows - window - 1
        self.board.update(eta_seconds=windows_left * (time.monotonic() - started))

    def _answers(self, window: int, weights: Manifest, *, sample: bool) -> dict[int, list[Pair]] | None:
        """The rollouts answer the held-out prompts and, with `sample`, those of the window; meanwhile the trainer writes its
        checkpoint. Returns the window's pairs, without reference."""
        self.ranks.from_rank0(lambda: self._rank0().ask(window, weights, sample=sample))
        try:
            if self.checkpoint_every_steps is None or self.step % self.checkpoint_every_steps == 0:
                self._save()
            self.storage.collect_garbage(newest=window, best=self.board.now.best)
        except BaseException:
            if self.rank0 is not None:
                self.rank0.hush()
            raise
        give_back()  # beside it vLLM now generates, often on the same machine
        return self.ranks.from_rank0(lambda: self._rank0().hear(window, weights))

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
            self.ranks.from_rank0(lambda: self._rank0().commit(window, unmix(referred), weights, reference))
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
    """The first step of a window that is compared with the version it samples from starts at its own reference, where a loss has
    a value known beforehand: ln 2 for sigmoid.

    Raises RunError when it has another: the reference of the loss is then not the policy that was published.
    """
    got, want = first.figures["loss"], first.loss_at_reference
    if abs(got - want) > SELF_CHECK_TOLERANCE * max(1.0, abs(want)):
        raise RunError(
            f"self-check failed: the first step of a window must have the loss at its reference, {want:.6f}, got {got:.6f}. "
            "The weights changed between the reference pass and the step; please report this with the run's ledger"
        )
