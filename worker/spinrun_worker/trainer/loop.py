"""One attempt of a run: windows until the last, the same steps on every rank.

    boundary:  checkpoint -> publish version k -> activate -> evaluate
    window k:  generate -> prefer -> reference -> commit -> train

The reference is the policy itself where a window is compared with the version that it samples from, else an older version, read
back from the ledger.

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
from spinrun_worker.trainer.schedule import Schedule, mix
from spinrun_worker.trainer.storage import Storage

logger = logging.getLogger(__name__)

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
    ) -> None:
        """Put the parts together.

        method: the run's, from which each window takes its own. rate: learning rate of a step, counted from 0.
        checkpoint_every_steps: None saves at every boundary.
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
                weights = self._boundary(window) if position == 0 else self._published(window)
                if window == self.schedule.windows:
                    break
                self._window(window, position, weights)
        except Preempted:
            self._save()
            raise
        self.board.update(activity="finished", eta_seconds=0.0)

    def _boundary(self, window: int) -> Manifest:
        """Save and publish the weights of this moment, and bring them to the rollouts."""
        if self.checkpoint_every_steps is None or self.step % self.checkpoint_every_steps == 0:
            self._save()
        with self.board.during("publish"):
            weights = self.storage.publish(version=window, step=self.step)
        self.board.wrote(weights)
        self.ranks.from_rank0(lambda: self._rank0().meet(weights))
        self.storage.collect_garbage(newest=window, best=self.board.now.best)
        give_back()  # beside it vLLM now generates, often on the same machine
        return weights

    def _published(self, window: int) -> Manifest:
        """The version that the window under way was sampled from; published by an earlier attempt."""
        return self.ranks.from_rank0(lambda: self.storage.ledger.verify("weights", window))

    def _window(self, window: int, position: int, weights: Manifest) -> None:
        """Train the steps of a window that are left."""
        started = time.monotonic()
        self.learner.method = self.method.in_window(window)
        pairs = self._pairs(window, weights)
        for index, shares in enumerate(mix(pairs, self.schedule.steps(window))):
            if index >= position:
                self._train([*chain(*shares.values())], window, index)
        self.ranks.from_rank0(lambda: self._rank0().finish_window(window, self.step))
        windows_left = self.schedule.windows - window - 1
        self.board.update(eta_seconds=windows_left * (time.monotonic() - started))

    def _pairs(self, window: int, weights: Manifest) -> dict[int, list[Pair]]:
        """The window's pairs and those that it replays, by the window they come from, with their reference log-probs: from the
        ledger if they are there, else made and committed."""
        committed = self.ranks.from_rank0(lambda: self._rank0().recall(window, weights))
        if committed is not None:
            return committed
        reference = self.storage.reference(weights)
        bare = self.ranks.from_rank0(lambda: self._rank0().sample(window, weights))
        with self.board.during("reference"):
            # Where the two are the same the policy is the reference at this moment: its weights are those just published.
            same = reference.version == weights.version
            with nullcontext() if same else self.storage.in_place_of_policy(reference):
                pairs = self._refer_window(bare, self.schedule.steps(window))
        self.ranks.from_rank0(lambda: self._rank0().commit(window, pairs, weights, reference))
        return pairs

    def _refer_window(self, bare: Mapping[int, Sequence[Pair]], num_steps: int) -> dict[int, list[Pair]]:
        """The pairs with log-probs of the weights that the model holds now, computed step by step as they will be trained on."""
        referred = {window: list[Pair]() for window in bare}
        for shares in mix(bare, num_steps):
            batch = iter(self._refer([*chain(*shares.values())]))
            for window, share in shares.items():
                referred[window] += islice(batch, len(share))
        return referred

    def _refer(self, batch: Sequence[Pair]) -> list[Pair]:
        if not batch:
            return []
        logprobs = self.learner.reference_logprobs(batch)
        strange = [pair.prompt_id for pair, values in zip(batch, logprobs, strict=True) if not all(map(math.isfinite, values))]
        if strange:
            raise RunError(
                f"the reference gives {len(strange)} pairs, such as one of prompt {strange[0]}, log-probs that are no numbers: "
                "its weights are broken; lower trainer.learningRate"
            )
        return [
            replace(pair, reference_chosen=chosen, reference_rejected=rejected)
            for pair, (chosen, rejected) in zip(batch, logprobs, strict=True)
        ]

    def _train(self, batch: Sequence[Pair], window: int, index: int) -> None:
        """One optimizer step; a step without pairs only counts."""
        if batch:
            with self.board.during("train"):
                started = time.monotonic()
                result = self.learner.step(batch, learning_rate=self.rate(self.step), should_stop=self.should_stop)
                if result is None:
                    raise Preempted(f"stopped during step {self.step}")
            if index == 0 and self.schedule.reference(window) == window:
                self_check(result)
            figures = {**result.figures, "timing/train_seconds": time.monotonic() - started}
            if self.method.beta_by_window:
                figures |= {"beta": self.learner.method.beta}
            self.ranks.from_rank0(lambda: self._rank0().report_step(window, self.step + 1, figures))
        self.step += 1
        self.board.update(step=self.step)
        if self.checkpoint_every_steps is not None and self.step % self.checkpoint_every_steps == 0:
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
