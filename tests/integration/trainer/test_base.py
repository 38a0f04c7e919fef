"""The pairing bestVsBase through the real trainer, killed at every file that it brings to the ledger."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from spinrun_protocol.ledger import Kind
from spinrun_worker.ledger import Ledger, read_pairs, read_samples
from support.trainer_process import UID, Attempts

KINDS: tuple[Kind, ...] = ("weights", "window", "evaluation", "base")
# The first of a prompt's scripted answers, the only one that version 0 is asked for beforehand, is a 1, and the second a 2.
BASE: dict[str, Any] = {
    "method": {"refUpdateFreq": 2, "pairing": "bestVsBase"},
    "preference": {"rule": {"kind": "regex", "pattern": "2"}},
}


def test_best_answers_are_paired_with_answers_of_version_0(attempts: Attempts, tmp_path: Path) -> None:
    assert attempts.run(tmp_path / "ledger", **BASE) == 0, attempts.log(1).read_text()

    ledger = Ledger(tmp_path / "ledger", UID)
    first = ledger.manifest("weights", 0)
    assert {ledger.verify("base", number).parent for number in ledger.numbers("base")} == {first.digest}
    answers = {
        group.prompt.tokens: group.samples
        for number in ledger.numbers("base")
        for group in read_samples(ledger.layout.path("base", number) / "samples.parquet")
    }
    assert {len(samples) for samples in answers.values()} == {1}
    for window in (0, 1):
        directory = ledger.layout.window(window)
        pairs, own = read_pairs(directory / "pairs.parquet"), read_samples(directory / "samples.parquet")
        assert len(pairs) == 8, "four prompts a step, two steps"
        best = {group.prompt.id: group.samples[1].tokens for group in own}
        assert [(pair.chosen, pair.rejected) for pair in pairs] == [
            (best[pair.prompt_id], answers[pair.prompt][0].tokens) for pair in pairs
        ]
        assert {len(group.samples) for group in own} == {2}, "own answers alone"


@pytest.mark.timeout(900)
def test_a_run_killed_while_it_samples_version_0_ends_in_the_same_state(attempts: Attempts, tmp_path: Path) -> None:
    def end_state(root: Path) -> dict[str, str]:
        ledger = Ledger(root, UID)
        return {f"{kind} {number}": ledger.verify(kind, number).digest for kind in KINDS for number in ledger.numbers(kind)}

    undisturbed, listed = tmp_path / "undisturbed", tmp_path / "changes"
    assert attempts.run(undisturbed, list_to=listed, **BASE) == 0, attempts.log(1).read_text()
    want = end_state(undisturbed)
    assert {"base 0", "base 1", "window 1"} <= want.keys()

    changes = list(enumerate(listed.read_text().splitlines(), 1))
    of_base = [number for number, change in changes if "/base" in change]
    assert len(of_base) >= 4, "files and manifests of two windows"
    # In the middle; every commit of them is the matter of tests/unit/trainer/test_window.py.
    for number in of_base[len(of_base) // 2 :][:1]:
        trial = tmp_path / "trial"
        assert attempts.run(trial, kill_at=number, **BASE) == -9, attempts.log(1).read_text()
        assert attempts.run(trial, attempt=2, **BASE) == 0, attempts.log(2).read_text()
        assert end_state(trial) == want, attempts.log(1).read_text().splitlines()[-1]
        shutil.rmtree(trial)
