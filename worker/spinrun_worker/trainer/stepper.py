"""Optimizer steps: taken, counted and reported."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from spinrun_api.spec import Method
from spinrun_worker.errors import Preempted
from spinrun_worker.records import Pair
from spinrun_worker.trainer.coordinator import Coordinator
from spinrun_worker.trainer.figures import mismatch_figures
from spinrun_worker.trainer.model.learner import Learner, StepResult
from spinrun_worker.trainer.reporting.board import ProgressBoard


class Stepper:
    """Takes the optimizer steps of a run. All ranks call every method together."""

    def __init__(
        self,
        learner: Learner,
        method: Method,
        coordinator: Coordinator,
        board: ProgressBoard,
        *,
        done: int,
        rate: Callable[[int], float],
        should_stop: Callable[[], bool],
    ) -> None:
        """Continue after a number of steps.

        Args:
            learner: Takes them.
            method: The run's, from which each window takes its own.
            coordinator: Writes them down.
            board: Shows them.
            done: Steps done so far.
            rate: Learning rate of a step, counted from 0.
            should_stop: Whether this rank is asked to stop.
        """
        self.done = done
        """Steps done: with the model, the optimizer and the ledger all that says where a run is."""
        self._learner = learner
        self._method = method
        self._coordinator = coordinator
        self._board = board
        self._rate = rate
        self._should_stop = should_stop

    def enter(self, window: int) -> None:
        """Train by a window's own method from here on."""
        self._learner.method = self._method.in_window(window)

    def take(self, pairs: Sequence[Pair], *, is_first: bool) -> StepResult:
        """Take one optimizer step; `count` it once what it depends on is in the ledger.

        Args:
            pairs: Those that it trains on.
            is_first: Whether it is the window's first: the policy is then the one that the rollouts' log-probs are compared with.

        Raises:
            Preempted: On all ranks, with the weights as they were.
        """
        with self._board.during("train"):
            started = time.monotonic()
            result = self._learner.step(pairs, learning_rate=self._rate(self.done), should_stop=self._should_stop)
            seconds = time.monotonic() - started
            if result is None:
                raise Preempted(f"stopped during step {self.done}")
        figures = {**result.figures, "timing/train_seconds": seconds}
        if is_first and result.by_token is not None:
            figures |= mismatch_figures(pairs, result.by_token)
        if self._method.beta_by_window:
            figures |= {"beta": self._learner.method.beta}
        if self._coordinator.ranks.is_rank0:
            figures |= {"mfu": self._learner.utilization(pairs, seconds)}
        return replace(result, figures=figures)

    def count(self, window: int, result: StepResult | None) -> None:
        """Write down a step. result: None for one without pairs, which only counts."""
        if result is not None:
            self._coordinator.report_step(window, self.done + 1, result.figures)
        self.done += 1
        self._board.update(step=self.done)
