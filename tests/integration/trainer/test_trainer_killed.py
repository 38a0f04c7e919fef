"""The trainer killed with SIGKILL at every file that a window brings to the ledger, and resumed."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.trainer.conftest import running_agent
from spinrun_protocol.ledger import Kind
from spinrun_worker.ledger import Ledger
from support.trainer_process import UID, Attempts

AT_A_TIME = 2
"""Trials that run side by side; each has an agent of its own, because an agent serves one version at a time."""

KINDS: tuple[Kind, ...] = ("weights", "window", "evaluation", "checkpoint")


def end_state(root: Path) -> dict[str, str]:
    """Digest of everything that counts; equal digests are equal bytes."""
    ledger = Ledger(root, UID)
    return {
        f"{kind} {number}": ledger.verify(kind, number).digest
        for kind in KINDS
        for number in ledger.numbers(kind)
        if kind != "checkpoint" or number == 4
    }


def killed_and_resumed(attempts: Attempts, prefix: Path, change: int, **spec: Any) -> tuple[dict[str, str], str]:
    """End state of a run that goes on from a copy of a ledger, is killed before a change of it and resumed, and where."""
    trial = Path(shutil.copytree(prefix, attempts.folder / "trial"))
    assert attempts.run(trial, attempt=2, kill_at=change, **spec) == -9, attempts.log(2).read_text()
    where = f"change {change}: {attempts.log(2).read_text().splitlines()[-1]}"
    assert attempts.run(trial, attempt=3, **spec) == 0, f"{where}\n{attempts.log(3).read_text()}"
    state = end_state(trial)
    shutil.rmtree(trial)
    return state, where


@pytest.mark.timeout(1800)
def test_a_run_killed_at_any_file_of_a_window_ends_in_the_same_state(attempts: Attempts, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert attempts.run(undisturbed) == 0, attempts.log(1).read_text()
    want = end_state(undisturbed)
    assert {"weights 2", "window 0", "window 1", "evaluation 2", "checkpoint 4"} <= set(want)

    # Every trial starts after window 0, which also shows that a longer run goes on exactly where a shorter one ended.
    prefix, listed = tmp_path / "prefix", tmp_path / "changes"
    assert attempts.run(prefix, duration={"windows": 1}) == 0, attempts.log(1).read_text()
    unkilled = Path(shutil.copytree(prefix, tmp_path / "unkilled"))
    assert attempts.run(unkilled, attempt=2, list_to=listed) == 0, attempts.log(2).read_text()
    assert end_state(unkilled) == want

    num_changes = len(listed.read_text().splitlines())
    assert num_changes > 20

    def killed_at(changes: range) -> None:
        folder = tmp_path / f"from-{changes.start}"
        folder.mkdir()
        with running_agent() as agent:
            mine = replace(attempts, folder=folder, agent=agent)
            for change in changes:
                got, where = killed_and_resumed(mine, prefix, change)
                assert got == want, where

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(killed_at, (range(first, num_changes + 1, AT_A_TIME) for first in range(1, AT_A_TIME + 1))))


def test_the_last_words_tell_how_the_run_went(attempts: Attempts, tmp_path: Path) -> None:
    assert attempts.run(tmp_path / "ledger") == 0, attempts.log(1).read_text()
    words = json.loads(attempts.last_words(1).read_text())
    assert (words["result"], words["exitCode"], words["window"], words["step"], words["version"]) == ("Complete", 0, 2, 4, 2)
