"""Answers of version 0, with which the pairing bestVsBase pairs the best answers of later versions.

Rollouts serve one version at a time. So what the whole run needs is sampled before window 0, while they serve version 0: one
answer to each row of the data that any window will draw. The ledger holds them by the window that draws a row first, so that an
attempt that is interrupted there resumes where it was.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.data import PromptStream, row_and_epoch
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger import LedgerWriter, TornError, read_samples, write_samples
from spinrun_worker.records import PromptRecord, ScoredGroup
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.lineage import SAMPLES

logger = logging.getLogger(__name__)

Ask = Callable[[Sequence[PromptRecord]], Sequence[tuple[PromptRecord, SampleGroup]]]
"""Returns one answer to each prompt; prompts that no model can answer are left out."""


class BaseAnswers:
    """One answer of version 0 to every row that the run draws."""

    def __init__(self, ledger: LedgerWriter, schedule: Schedule, stream: PromptStream) -> None:
        self._ledger = ledger
        self._schedule = schedule
        self._stream = stream
        self._first_window = _first_windows(schedule, stream)

    def collect(self, weights: Manifest, ask: Ask) -> None:
        """Sample and write what is not on the ledger yet.

        Args:
            weights: Version 0, which the rollouts serve.
            ask: Has the rollouts answer prompts.
        """
        assert weights.version == 0, "the answers are version 0's"
        for window in sorted({*self._first_window.values()}):
            if self._is_there(window, weights):
                continue
            answers = ask(self._new_prompts(window))
            logger.info("%d answers of version 0, for the prompts of window %d", len(answers), window)
            # They are scored together with the answers that they are paired with.
            groups = [ScoredGroup(prompt, group.samples, (None,) * len(group.samples)) for prompt, group in answers]
            files = [write_samples(self._ledger.begin("base", window) / SAMPLES, groups)]
            self._ledger.commit("base", window, files, step=0, version=0, parent=weights.digest)

    def of(self, prompts: Iterable[PromptRecord]) -> dict[str, Sample]:
        """The answers to prompts of a window, by the prompts' ids; a prompt that could not be answered has none.

        Raises:
            TornError: The ledger does not hold them as they were written.
            ConfigurationError: They were never sampled.
        """
        # A window that reaches into another epoch may hold a row twice.
        rows = {prompt.id: row_and_epoch(prompt.id)[0] for prompt in prompts}
        wanted = {*rows.values()}
        by_row: dict[str, Sample] = {}
        for window in sorted({self._first_window[row] for row in wanted}):
            answers = ((row_and_epoch(group.prompt.id)[0], group.samples[0]) for group in self._read(window))
            by_row |= {row: answer for row, answer in answers if row in wanted}
        return {prompt_id: by_row[row] for prompt_id, row in rows.items() if row in by_row}

    def _new_prompts(self, window: int) -> list[PromptRecord]:
        """The prompts that the window draws first, each row once."""
        drawn = {row_and_epoch(prompt.id)[0]: prompt for prompt in self._stream.draw(*self._schedule.prompts(window))}
        return [prompt for row, prompt in drawn.items() if self._first_window[row] == window]

    def _read(self, window: int) -> list[ScoredGroup]:
        if window not in self._ledger.present("base"):
            raise ConfigurationError(
                f"method.pairing bestVsBase: there are no answers of version 0 to the prompts of window {window}, which the run "
                "did not have when it began: set duration back to what it was"
            )
        self._ledger.verify("base", window)
        return read_samples(self._ledger.layout.path("base", window) / SAMPLES)

    def _is_there(self, window: int, weights: Manifest) -> bool:
        """Whether the ledger holds the answers in full, and from exactly these weights."""
        try:
            return self._ledger.verify("base", window).parent == weights.digest
        except TornError:
            return False


def _first_windows(schedule: Schedule, stream: PromptStream) -> dict[str, int]:
    """For each row, the window that draws it first."""
    first: dict[str, int] = {}
    for window in range(schedule.windows):
        for prompt in stream.draw(*schedule.prompts(window)):
            first.setdefault(row_and_epoch(prompt.id)[0], window)
        if len(first) == len(stream):
            break
    return first
