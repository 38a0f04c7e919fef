"""The windows of a ledger: which are there, what they hold, and how one is written. Rank 0 alone has them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spinrun_api.spec import PassRateBand
from spinrun_protocol.ledger import Drawn, Manifest, Reference
from spinrun_worker.ledger import LedgerWriter, TornError, read_pairs, read_samples, write_pairs, write_samples
from spinrun_worker.records import Pair, ScoredGroup
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.lineage import BASE, PAIRS, SAMPLES, check_window, replayed_file
from spinrun_worker.trainer.storage.rates import RateMemory

logger = logging.getLogger(__name__)

Pairs = Mapping[int, Sequence[Pair]]
"""Pairs of a window, by the window that they come from: its own, and those that it replays."""


@dataclass(frozen=True)
class ScoredAnswers:
    """A window's answers with their rewards."""

    groups: Sequence[ScoredGroup]
    base: Sequence[ScoredGroup] = ()
    """Answers of version 0 to the same prompts, where they are paired with."""
    failures: Sequence[str] = ()
    """Why answers have no reward, as sentences. They are not written down: answers that were read have none."""


def as_reference(weights: Manifest) -> Reference:
    """Weights as those that a manifest names."""
    kind = "reference" if weights.kind == "reference" else None
    return Reference(version=weights.version, kind=kind, digest=weights.digest)


class Windows:
    """Reads and writes windows."""

    def __init__(
        self, ledger: LedgerWriter, schedule: Schedule, *, has_base: bool, pass_rate: PassRateBand | None = None
    ) -> None:
        """Open the windows of a ledger.

        Args:
            ledger: The run's.
            schedule: Says which window each one replays, is sampled from and compared with.
            has_base: Whether a window has answers of version 0.
            pass_rate: The pass rates of prompts that windows draw; None where they draw all, and no rate is remembered.
        """
        self.rates = None if pass_rate is None else RateMemory(ledger, pass_rate)
        self._ledger = ledger
        self._schedule = schedule
        self._has_base = has_base

    def read(self, weights: Manifest, *, begun: bool) -> tuple[ScoredAnswers, Pairs] | None:
        """The window that begins with these weights, as `write` wrote it.

        Returns:
            None when the ledger does not hold it whole, sampled from exactly the weights that are to answer its prompts, and
            compared with its reference.

        Raises:
            TornError: In place of None, when the run has begun to train it: its first steps cannot be taken again.
        """
        number = weights.version
        try:
            check_window(self._ledger, self._schedule, weights)
        except TornError as error:
            if begun:
                raise
            if number in self._ledger.present("window"):
                logger.info("window %d is sampled again: %s", number, error)
            return None
        folder = self._ledger.layout.window(number)
        replayed = {window: read_pairs(folder / replayed_file(window)) for window in self._schedule.replayed(number)}
        return self.answers(number), {number: read_pairs(folder / PAIRS), **replayed}

    def answers(self, number: int) -> ScoredAnswers:
        """A window's answers with their rewards."""
        folder = self._ledger.layout.window(number)
        return ScoredAnswers(read_samples(folder / SAMPLES), read_samples(folder / BASE) if self._has_base else [])

    def replayed(self, number: int) -> dict[int, list[Pair]]:
        """Pairs of the earlier windows that a window replays, without their reference.

        Raises:
            TornError: A byte of one of them has changed.
        """
        return {
            window: [pair.without_reference() for pair in self._own_pairs(window)] for window in self._schedule.replayed(number)
        }

    def write(
        self,
        number: int,
        sampler: Manifest,
        answers: ScoredAnswers,
        pairs: Pairs,
        reference: Manifest | None,
        drawn: Drawn | None,
    ) -> None:
        """Commit a window.

        Args:
            number: The window.
            sampler: The weights that answered its prompts.
            answers: Those answers.
            pairs: Its own and those that it replays, all with log-probs of the reference.
            reference: The weights that they are compared with; None where the loss compares with none.
            drawn: Which prompts it asked, where their pairs or pass rates decided it.
        """
        folder = self._ledger.begin("window", number)
        files = [write_samples(folder / SAMPLES, answers.groups), write_pairs(folder / PAIRS, pairs[number])]
        files += [write_pairs(folder / replayed_file(window), pairs[window]) for window in self._schedule.replayed(number)]
        files += [write_samples(folder / BASE, answers.base)] if self._has_base else []
        if self.rates is not None:
            self.rates.learn(number, answers.groups)
            files.append(self.rates.write(number))
        self._ledger.commit(
            "window",
            number,
            files,
            step=self._schedule.first_step(number),
            version=sampler.version,
            parent=sampler.digest,
            reference=None if reference is None else as_reference(reference),
            drawn=drawn,
        )

    def drawn(self, number: int) -> Drawn | None:
        """Which prompts a window asked; None where the spec said which it has.

        Raises:
            TornError: The ledger does not hold the window.
        """
        return self._ledger.manifest("window", number).drawn

    def num_pairs(self, number: int) -> int:
        """Pairs of a window's own."""
        return len(read_pairs(self._ledger.layout.window(number) / PAIRS))

    def _own_pairs(self, number: int) -> list[Pair]:
        self._ledger.verify("window", number)
        return read_pairs(self._ledger.layout.window(number) / PAIRS)
