"""Evaluations: which versions have their turn, and what their answers to the held-out prompts say. Rank 0 alone has them."""

import logging
from collections.abc import Sequence
from itertools import islice

from spinrun_api.run import SpinRun
from spinrun_protocol.ledger import Manifest
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger import LedgerWriter, TornError, read_samples, write_samples
from spinrun_worker.records import Answers, PromptRecord, ScoredGroup
from spinrun_worker.trainer.figures import length_figures, mean_reward, truncation_figures
from spinrun_worker.trainer.pairs import PairMaker
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.recorder import Recorder
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.lineage import SAMPLES

logger = logging.getLogger(__name__)

MAX_EXAMPLES = 5
"""True answers that are named, of those that cannot be compared with."""


class Evaluations:
    """The accuracy of versions on held-out prompts."""

    def __init__(
        self,
        run: SpinRun,
        schedule: Schedule,
        prompts: Sequence[PromptRecord],
        *,
        ledger: LedgerWriter,
        pairs: PairMaker,
        board: ProgressBoard,
        recorder: Recorder,
    ) -> None:
        """Prepare to evaluate. prompts: the held-out ones; none where the run has no evaluation."""
        self._every_windows = run.spec.data.evaluation.every_windows if run.spec.data.evaluation else 0
        self._preference = run.spec.preference.name
        self._schedule = schedule
        self._prompts = prompts
        self._ledger = ledger
        self._pairs = pairs
        self._board = board
        self._recorder = recorder

    def load(self) -> None:
        """Name the true answers that nothing can be compared with, and show the evaluations of earlier attempts again.

        Raises:
            ConfigurationError: There are no others.
        """
        self._check_answers()
        for number in self._ledger.numbers("evaluation"):
            groups = read_samples(self._ledger.layout.evaluation(number) / SAMPLES)
            accuracy, _ = self._accuracy(groups)
            self._board.evaluated(window=number, version=number, accuracy=accuracy)

    def is_due(self, version: int) -> bool:
        """Whether it is a version's turn."""
        every = self._every_windows
        return every > 0 and (version % every == 0 or version == self._schedule.windows)

    def missing(self, weights: Manifest) -> Sequence[PromptRecord]:
        """The held-out prompts, if it is the version's turn and the ledger does not hold exactly its answers; else none."""
        return self._prompts if self.is_due(weights.version) and not self._is_held(weights) else ()

    def unevaluated(self, version: int) -> Manifest | None:
        """The weights of a version, if the ledger holds them and not their answers to the held-out prompts, whose turn it was."""
        try:
            weights = self._ledger.verify("weights", version, hashes=False)
        except TornError:
            return None
        return weights if self.missing(weights) else None

    def record(self, weights: Manifest, answers: Answers | None) -> None:
        """Note the accuracy of a version. answers: to the held-out prompts; None: they are in the ledger already."""
        number = weights.version
        step = self._schedule.first_step(number)
        if answers is None:
            groups = read_samples(self._ledger.layout.evaluation(number) / SAMPLES)
        else:
            groups = self._pairs.grade(answers)
            files = [write_samples(self._ledger.begin("evaluation", number) / SAMPLES, groups)]
            self._ledger.commit("evaluation", number, files, step=step, version=number, parent=weights.digest)
        accuracy, unrated = self._accuracy(groups)
        num_prompts = len(groups) - unrated
        figures = {"accuracy": accuracy, "num_prompts": float(num_prompts), **length_figures(groups)}
        figures |= truncation_figures(groups, counted=self._pairs.truncated not in (None, "score"))
        if unrated:
            figures |= {"unrated": float(unrated)}
        self._board.evaluated(window=number, version=number, accuracy=accuracy)
        self._recorder.record("evaluation", figures, window=number, step=step, version=number)
        logger.info("version %d: accuracy %.3f over %d prompts", number, accuracy, num_prompts)

    def _check_answers(self) -> None:
        unusable = self._pairs.unusable_answers(self._prompts)
        if not unusable:
            return
        examples = "; ".join(f"row {row}: {message}" for row, message in islice(unusable.items(), MAX_EXAMPLES))
        message = (
            f"data.evaluation: {len(unusable)} of {len(self._prompts)} true answers cannot be compared with by "
            f"preference.{self._preference}: {examples}{'; …' if len(unusable) > MAX_EXAMPLES else ''}"
        )
        if len(unusable) == len(self._prompts):
            raise ConfigurationError(f"{message}. Name another answerColumn, or another rule")
        logger.warning("%s. They do not count in the accuracy", message)

    def _accuracy(self, groups: Sequence[ScoredGroup]) -> tuple[float, int]:
        """The mean reward, and the number of prompts that it leaves out because of their true answers."""
        unusable = self._pairs.unusable(groups)
        return mean_reward(groups, by_rule=self._pairs.is_by_rule, unusable=unusable), len(unusable)

    def _is_held(self, weights: Manifest) -> bool:
        """Whether the evaluation is in the ledger, whole and of exactly these weights."""
        try:
            manifest = self._ledger.verify("evaluation", weights.version)
        except TornError:
            return False
        if manifest.parent != weights.digest:
            logger.info("evaluation %d was sampled from other weights: it is made again", weights.version)
        return manifest.parent == weights.digest
