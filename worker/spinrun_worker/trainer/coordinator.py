"""What rank 0 does with a window: make pairs of its answers, write it to the ledger, and tell people of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spinrun_protocol.ledger import Drawn, Manifest
from spinrun_worker.methods.pairing import Pairing
from spinrun_worker.records import Pair
from spinrun_worker.trainer.figures import drawn_figures, pass_rate_figures, throughput_figures, window_figures
from spinrun_worker.trainer.rank0 import Rank0Parts
from spinrun_worker.trainer.ranks.distributed import Distributed, Kept, collective
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.sampling.draws import Collected
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.windows import Pairs, ScoredAnswers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """A window with its pairs, the same on every rank."""

    number: int
    pairs: Pairs
    """By the window that they come from, its own first."""
    figures: Mapping[str, float]
    """What its answers and pairs look like."""


@dataclass(frozen=True)
class NewWindow(Window):
    """A window that is still to be committed: its pairs lack log-probs of their reference, or have those of the rollouts."""

    sampler: Manifest
    """The weights that answered its prompts."""
    answers: Kept[ScoredAnswers]
    drawn: Drawn | None
    """Which prompts these were, where their pairs or pass rates decided it."""


class Coordinator:
    """All ranks call every method together, and rank 0 carries it out."""

    def __init__(self, ranks: Distributed, parts: Rank0Parts, schedule: Schedule, board: ProgressBoard) -> None:
        """Put the parts together. parts: on rank 0 alone."""
        self.ranks = ranks
        self._parts = parts
        self._schedule = schedule
        self._board = board

    @collective
    def load(self, weights: Manifest, *, begun: bool) -> Window | None:
        """The window that begins with these weights, if the ledger holds it; see `Windows.read`."""
        found = self._parts.windows.read(weights, begun=begun)
        if found is None:
            return None
        answers, pairs = found
        return Window(weights.version, pairs, self._figures(answers, self._parts.pairs.pair(answers), pairs, weights.version))

    @collective
    def score(self, number: int, collected: Kept[Collected]) -> NewWindow:
        """Score the answers to a window's prompts, and make pairs of them, beside those that the window replays."""
        answered = collected.value
        with self._board.during("score"):
            answers = answered.scored or self._parts.pairs.score(answered.answers)
            pairing = self._parts.pairs.pair(answers)
        self._parts.pairs.warn_of_truncated_truths(number, pairing, len(answers.groups))
        pairs = {number: pairing.pairs, **self._parts.windows.replayed(number)}
        figures = self._figures(answers, pairing, pairs, number) | throughput_figures(answers.groups, answered.seconds)
        drawn, rates = answered.drawn, self._parts.windows.rates
        figures |= drawn_figures(drawn) if drawn is not None else {}
        if drawn is not None and rates is not None:
            known = rates.learn(number, answers.groups)
            figures |= pass_rate_figures(answers.groups, known, rates.band, skipped=drawn.skipped, widened=answered.widened)
        self._board.update_metrics(samples_per_second=figures["throughput/samples_per_second"])
        return NewWindow(number, pairs, figures, answered.weights, Kept(answers), answered.drawn)

    @collective
    def commit(self, window: NewWindow, pairs: Mapping[int, Sequence[Pair]], reference: Manifest | None) -> None:
        """Write a window to the ledger. pairs: those of the window, with log-probs of the reference, if the loss has one."""
        windows, answers = self._parts.windows, window.answers.value
        windows.write(window.number, window.sampler, answers, pairs, reference, window.drawn)
        self._parts.pairs.refuse_endless_ties(window.number, answers, windows.num_pairs, windows.answers)

    @collective
    def report_step(self, window: int, step: int, figures: dict[str, float]) -> None:
        """Write down one optimizer step. step: the steps done with it."""
        self._parts.recorder.record("step", figures, window=window, step=step, version=self._schedule.sampler(window))
        margin = {"margin": figures["rewards/margins"]} if "rewards/margins" in figures else {}
        self._board.update_metrics(loss=figures["loss"], **margin)

    @collective
    def finish(self, window: Window, step: int) -> None:
        """Write down a window's figures once its last step is done."""
        counts = {f"rollouts/{name}_total": float(count) for name, count in self._parts.rollouts.counts.items()}
        counts |= {f"preference/{name}_total": float(count) for name, count in self._parts.pairs.scorer.counts.items()}
        figures = {**window.figures, **counts, **self._board.take_seconds()}
        number, version = window.number, self._schedule.sampler(window.number)
        self._parts.recorder.record("window", figures, window=number, step=step, version=version)
        logger.info(
            "window %d of %d done: %d pairs, %d ties%s, reward %.3f%s",
            number + 1,
            self._schedule.windows,
            figures["pairs"],
            figures["ties"],
            f" ({figures['all_right']:.0f} all right, {figures['all_wrong']:.0f} all wrong)" if "all_right" in figures else "",
            figures["reward/mean"],
            f", {cut_off:.0f} answers cut off" if (cut_off := figures.get("truncated_samples")) else "",
        )

    def _figures(self, answers: ScoredAnswers, pairing: Pairing, pairs: Pairs, number: int) -> dict[str, float]:
        """What a window looks like, shown on the board too."""
        replayed = sum(len(of_window) for window, of_window in pairs.items() if window != number)
        figures = window_figures(
            answers.groups,
            pairing,
            replayed=replayed,
            by_rule=self._parts.pairs.is_by_rule,
            unusable=self._parts.pairs.unusable(answers.groups),
            counts_truncated=self._parts.pairs.counts_truncated,
        )
        self._board.update_metrics(reward=figures["reward/mean"])
        return figures
