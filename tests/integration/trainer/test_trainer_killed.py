"""The trainer's process killed with SIGKILL while it writes to the ledger, and resumed."""

import json
import shutil
from pathlib import Path

from spinrun_protocol.ledger import Kind
from spinrun_worker.ledger import Ledger
from support.trainer_process import UID, Attempts

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


def test_a_run_killed_wherever_it_writes_ends_in_the_same_state(attempts: Attempts, tmp_path: Path) -> None:
    """SIGKILL in the middle of each kind of directory: every single file is tests/unit/trainer/test_window.py's matter."""
    undisturbed = tmp_path / "undisturbed"
    assert attempts.run(undisturbed) == 0, attempts.log(1).read_text()
    want = end_state(undisturbed)
    assert {"weights 2", "window 0", "window 1", "evaluation 2", "checkpoint 4"} <= set(want)

    # Every trial starts after window 0, which also shows that a longer run continues exactly where a shorter one ended.
    prefix, listed = tmp_path / "prefix", tmp_path / "changes"
    assert attempts.run(prefix, duration={"windows": 1}) == 0, attempts.log(1).read_text()
    unkilled = Path(shutil.copytree(prefix, tmp_path / "unkilled"))
    assert attempts.run(unkilled, attempt=2, list_to=listed) == 0, attempts.log(2).read_text()
    assert end_state(unkilled) == want

    places = {
        Path(change.split()[1]).parent.parent.name: number for number, change in enumerate(listed.read_text().splitlines(), 1)
    }
    assert {"weights", "windows", "evaluations", "checkpoints"} <= places.keys()
    for kind in ("weights", "windows", "evaluations", "checkpoints"):
        trial = Path(shutil.copytree(prefix, tmp_path / f"killed-in-{kind}"))
        assert attempts.run(trial, attempt=2, kill_at=places[kind]) == -9, attempts.log(2).read_text()
        assert attempts.run(trial, attempt=3) == 0, f"{kind}\n{attempts.log(3).read_text()}"
        assert end_state(trial) == want, kind


def test_the_termination_message_tell_how_the_run_went(attempts: Attempts, tmp_path: Path) -> None:
    assert attempts.run(tmp_path / "ledger") == 0, attempts.log(1).read_text()
    words = json.loads(attempts.termination_message(1).read_text())
    assert (words["result"], words["exitCode"], words["window"], words["step"], words["version"]) == ("Complete", 0, 2, 4, 2)
