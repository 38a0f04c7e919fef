"""Answers of version 0: which prompts get one, what of them is in the ledger, and what a window is told."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.data import Part, PromptStream
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger import LedgerWriter, TornError, verify_tree
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.base_answers import BaseAnswers

UID = "01234567-89ab-cdef-0123-456789abcdef"
SIX_PROMPTS = PromptStream([Part([PromptRecord(str(row), (row,), f"ask {row}") for row in range(6)])], seed=3)


def weights(digest: str = "of version 0") -> Manifest:
    return Manifest(kind="weights", number=0, uid=UID, version=0, step=0, attempt=1, files=(), digest=digest)


class FakeRollouts:
    """Answers each prompt with its row; notes what it was asked. Dies before a call where a test says so."""

    def __init__(self, *, dies_at: int | None = None, unanswerable: str = "") -> None:
        self.asked: list[list[str]] = []
        self.dies_at = dies_at
        self.unanswerable = unanswerable

    def __call__(self, prompts: Sequence[PromptRecord]) -> list[tuple[PromptRecord, SampleGroup]]:
        if len(self.asked) == self.dies_at:
            raise ConnectionError
        self.asked.append([row(prompt) for prompt in prompts])
        answered = [prompt for prompt in prompts if row(prompt) != self.unanswerable]
        return [(prompt, SampleGroup(id=prompt.id, version=0, digest="d", samples=(answer(prompt),))) for prompt in answered]


def row(prompt: PromptRecord) -> str:
    return prompt.id.partition("#")[0]


def answer(prompt: PromptRecord) -> Sample:
    return Sample(tokens=(100, *prompt.tokens), text=f"answer {row(prompt)}", finish_reason="stop")


def writer(folder: Path, attempt: int = 1) -> LedgerWriter:
    ledger = LedgerWriter(folder / "ledger", UID, attempt)
    ledger.claim()
    return ledger


def answers_of(ledger: LedgerWriter, windows: int) -> BaseAnswers:
    """Of a run with four prompts a window, so that a second epoch begins in its second window."""
    return BaseAnswers(ledger, Schedule(windows * 2, 2, 2), SIX_PROMPTS)


@pytest.mark.parametrize(("windows", "want"), [(1, [4]), (2, [4, 2]), (9, [4, 2])])
def test_every_row_that_the_run_draws_is_asked_once_and_no_other(tmp_path: Path, windows: int, want: list[int]) -> None:
    rollouts = FakeRollouts()
    answers_of(writer(tmp_path), windows).collect(weights(), rollouts)
    assert [len(asked) for asked in rollouts.asked] == want
    rows = [each for asked in rollouts.asked for each in asked]
    assert len(set(rows)) == len(rows)
    assert set(rollouts.asked[0]) == {row(prompt) for prompt in SIX_PROMPTS.draw(0, 4)}


def test_a_window_is_told_the_answers_to_its_prompts_in_every_epoch(tmp_path: Path) -> None:
    base = answers_of(writer(tmp_path), windows=9)
    base.collect(weights(), FakeRollouts())
    for window in range(9):
        prompts = SIX_PROMPTS.draw(window * 4, 4)
        assert base.of(prompts) == {prompt.id: answer(prompt) for prompt in prompts}


def test_a_row_that_a_window_draws_twice_is_answered_under_both_ids(tmp_path: Path) -> None:
    base = BaseAnswers(writer(tmp_path), Schedule(1, 1, 12), SIX_PROMPTS)
    base.collect(weights(), FakeRollouts())
    prompts = SIX_PROMPTS.draw(0, 12)
    assert base.of(prompts) == {prompt.id: answer(prompt) for prompt in prompts}


def test_an_attempt_that_is_interrupted_resumes_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        answers_of(writer(tmp_path), windows=9).collect(weights(), FakeRollouts(dies_at=1))
    rollouts, ledger = FakeRollouts(), writer(tmp_path, attempt=2)
    answers_of(ledger, windows=9).collect(weights(), rollouts)
    assert [len(asked) for asked in rollouts.asked] == [2], "window 0's are there already"
    assert ledger.numbers("base") == [0, 1]
    assert {finding.state for finding in verify_tree(ledger.root) if finding.kind == "base"} == {"committed"}


def test_answers_of_other_weights_are_sampled_again(tmp_path: Path) -> None:
    ledger = writer(tmp_path)
    answers_of(ledger, windows=1).collect(weights("others"), FakeRollouts())
    rollouts = FakeRollouts()
    answers_of(ledger, windows=1).collect(weights(), rollouts)
    assert len(rollouts.asked) == 1
    assert ledger.manifest("base", 0).parent == "of version 0"


def test_a_prompt_that_no_model_can_answer_has_none(tmp_path: Path) -> None:
    base = answers_of(writer(tmp_path), windows=9)
    base.collect(weights(), FakeRollouts(unanswerable="4"))
    assert {prompt_id.partition("#")[0] for prompt_id in base.of(SIX_PROMPTS.draw(0, 6))} == set("01235")


def test_one_byte_that_changed_is_refused(tmp_path: Path) -> None:
    ledger = writer(tmp_path)
    base = answers_of(ledger, windows=1)
    base.collect(weights(), FakeRollouts())
    file = ledger.layout.path("base", 0) / "samples.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(TornError, match=r"base/000000"):
        base.of(SIX_PROMPTS.draw(0, 4))


def test_a_run_that_became_longer_says_that_version_0_is_not_there_to_ask(tmp_path: Path) -> None:
    ledger = writer(tmp_path)
    answers_of(ledger, windows=1).collect(weights(), FakeRollouts())
    with pytest.raises(ConfigurationError, match=r"no answers of version 0 to the prompts of window 1.* set duration back"):
        answers_of(ledger, windows=2).of(SIX_PROMPTS.draw(4, 4))
