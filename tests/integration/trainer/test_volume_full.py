"""The ledger's volume full in the middle of a publication, then enlarged: a real small file system."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.trainer.test_trainer_killed import end_state
from spinrun_protocol.exit_codes import ExitCode
from spinrun_worker.ledger import Ledger
from support.trainer_process import UID, Attempts

Resize = Callable[[str], None]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A file system of 2 MB, room for version 0 and not for version 1, and what gives it another size."""
    folder = tmp_path / "volume"
    folder.mkdir()
    if refused := mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)):
        pytest.skip(f"a file system of its own needs root: {refused}")

    def resize(size: str) -> None:
        assert not (refused := mount("-o", f"remount,size={size}", str(folder))), refused

    try:
        yield folder, resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> str:
    """Runs mount; returns why it failed, empty when it did not."""
    return subprocess.run(["mount", *arguments], capture_output=True, text=True).stderr.strip()


def test_volume_full_while_publishing_ends_the_attempt_and_the_next_continues(
    attempts: Attempts, tmp_path: Path, volume: tuple[Path, Resize]
) -> None:
    folder, resize = volume
    # Without a checkpoint at the boundary, the new version is what finds no room.
    trainer = attempts.document["spec"]["trainer"] | {"checkpointEverySteps": 100}
    undisturbed = tmp_path / "undisturbed"
    assert attempts.run(undisturbed, trainer=trainer) == 0, attempts.log(1).read_text()

    ledger = folder / "ledger"
    assert attempts.run(ledger, trainer=trainer) == ExitCode.LEDGER_UNAVAILABLE, attempts.log(1).read_text()
    words = json.loads(attempts.termination_message(1).read_text())
    assert words["reason"] == "LedgerUnavailable"
    assert f"{ledger}/weights/v000001/" in words["message"]
    assert "No space left on device. Free space on the volume or enlarge it" in words["message"]
    before = Ledger(ledger, UID)
    assert before.numbers("weights") == [0], "what is half written does not count"
    assert before.verify("weights", 0)

    resize("64m")
    assert attempts.run(ledger, attempt=2, trainer=trainer) == 0, attempts.log(2).read_text()
    assert end_state(ledger) == end_state(undisturbed)
