"""One window, front to back: its answers, its pairs, its reference, its steps.

    weights -> answers -> pairs -> reference log-probs -> the ledger -> optimizer steps

Whatever happens between two writes to the ledger can be repeated, and an attempt that resumes here repeats it.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from spinrun_protocol.ledger import Manifest
from spinrun_worker.errors import Preempted
from spinrun_worker.trainer.coordinator import Coordinator, NewWindow
from spinrun_worker.trainer.model.learner import StepResult
from spinrun_worker.trainer.ranks.distributed import Kept
from spinrun_worker.trainer.reference.passes import ReferencePasses, StepPairs, pairs_of, without_reference
from spinrun_worker.trainer.reference.self_check import self_check
from spinrun_worker.trainer.sampling.draws import Collected
from spinrun_worker.trainer.schedule import Schedule, by_window, split_into_steps
from spinrun_worker.trainer.stepper import Stepper
from spinrun_worker.trainer.storage.checkpoints import Checkpoints
from spinrun_worker.trainer.storage.store import RunStore


class SampleOrder(Protocol):
    """When a window's prompts are answered: `in_turn` with the trainer, or a window `ahead` of it."""

    def answers(self, weights: Manifest, *, loaded: bool, begun: bool, meanwhile: Callable[[], None]) -> Kept[Collected]:
        """The answers to the prompts of the window that begins with these weights; the rollouts serve them from here on.

        Args:
            weights: The window's.
            loaded: Whether the window came from the ledger: nobody is asked for answers, and the result is empty.
            begun: Whether an attempt has trained steps of it.
            meanwhile: What the trainer does while the rollouts are busy.
        """
        ...

    def finish(self, weights: Manifest, *, meanwhile: Callable[[], None]) -> None:
        """Have the last version evaluated."""
        ...


class FirstStepReference(Protocol):
    """A reference that is the policy as it is at the window's beginning: `own`, or as the `rollouts` say it."""

    def before_first_step(self, steps: Sequence[StepPairs]) -> list[StepPairs]:
        """The steps with what must be known while the policy has not moved yet."""
        ...

    def after_first_step(
        self, steps: Sequence[StepPairs], first: StepResult, weights: Manifest
    ) -> tuple[list[StepPairs], StepResult]:
        """All steps with their reference, and the first one's result. weights: the policy before it."""
        ...

    def without_first_step(self, steps: Sequence[StepPairs]) -> list[StepPairs]:
        """All steps with their reference where the first one could not be taken."""
        ...


class WindowTrainer:
    """Trains windows. All ranks call every method together."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        coordinator: Coordinator,
        order: SampleOrder,
        own_reference: FirstStepReference,
        passes: ReferencePasses,
        stepper: Stepper,
        store: RunStore,
        checkpoints: Checkpoints,
    ) -> None:
        """Put the parts together."""
        self.schedule = schedule
        self.coordinator = coordinator
        self.order = order
        self.own_reference = own_reference
        self.passes = passes
        self.stepper = stepper
        self.store = store
        self.checkpoints = checkpoints

    def train(self, weights: Manifest, done: int, *, meanwhile: Callable[[], None]) -> float:
        """Train the steps of a window that are left.

        Args:
            weights: Those that the window begins with; it has their number.
            done: Steps of it that are done.
            meanwhile: What to do while the rollouts answer.

        Returns:
            How long it took, in seconds.
        """
        started, number = time.monotonic(), weights.version
        self.stepper.enter(number)
        window = self.coordinator.load(weights, begun=done > 0)
        answers = self.order.answers(weights, loaded=window is not None, begun=done > 0, meanwhile=meanwhile)
        if window is None:
            window = self.coordinator.score(number, answers)
            steps, done = self.commit(window, weights)
        else:
            steps = split_into_steps(window.pairs, self.schedule.steps(number))
        for index in range(done, len(steps)):
            if index > 0:
                self.checkpoints.save_if_due(self.stepper.done)
            pairs = pairs_of(steps[index])
            result = self.stepper.take(pairs, is_first=index == 0) if pairs else None
            if result is not None and index == 0 and self.schedule.starts_at_its_reference(number):
                self_check(result)
            self.stepper.count(number, result)
        self.coordinator.finish(window, self.stepper.done)
        return time.monotonic() - started

    def commit(self, window: NewWindow, weights: Manifest) -> tuple[Sequence[StepPairs], int]:
        """Give the pairs of a window their reference log-probs, if the loss has a reference, and commit them.

        Where the policy is the reference, the first step's own forward pass gives it; then the window is committed after that.

        Returns:
            The steps as committed, and how many of them are taken.
        """
        steps = split_into_steps(window.pairs, self.schedule.steps(window.number))
        reference = self.store.reference(weights)
        first = pairs_of(steps[0])
        commit = partial(self.coordinator.commit, window, reference=reference)
        if reference is None:
            steps = [without_reference(step) for step in steps]
            commit(by_window(steps))
            return steps, 0
        by_policy = reference.digest == weights.digest
        if not by_policy or not first:
            steps = self.passes.by_policy(steps) if by_policy else self.passes.by_version(steps, reference)
            commit(by_window(steps))
            return steps, 0
        steps = self.own_reference.before_first_step(steps)
        try:
            result = self.stepper.take([pair.without_reference() for pair in first], is_first=True)
        except Preempted:
            # The policy is still as it was: the samples are not lost.
            commit(by_window(self.own_reference.without_first_step(steps)))
            raise
        steps, result = self.own_reference.after_first_step(steps, result, weights)
        commit(by_window(steps))
        self.stepper.count(window.number, result)
        return steps, 1
