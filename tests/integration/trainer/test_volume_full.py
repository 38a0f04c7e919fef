"""The ledger's volume full in the middle of a publication, then enlarged: a real small file system."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.trainer.test_trainer_killed import end_state
from spinrun_protocol.exit_codes import ExitCode
from spinrun_worker.ledger import Ledger
from support.small_disk import SmallDisk, small_disk
from support.trainer_process import UID, Attempts


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[SmallDisk]:
    """Room for version 0 and not for version 1."""
    with small_disk(tmp_path / "volume", "2m") as disk:
        yield disk


def test_volume_full_while_publishing_ends_the_attempt_and_the_next_continues(
    attempts: Attempts, tmp_path: Path, volume: SmallDisk
) -> None:
    # Without a checkpoint at the boundary, the new version is what finds no room.
    trainer = attempts.document["spec"]["trainer"] | {"checkpointEverySteps": 100}
    undisturbed = tmp_path / "undisturbed"
    assert attempts.run(undisturbed, trainer=trainer) == 0, attempts.log(1).read_text()

    ledger = volume.folder / "ledger"
    assert attempts.run(ledger, trainer=trainer) == ExitCode.LEDGER_UNAVAILABLE, attempts.log(1).read_text()
    words = json.loads(attempts.termination_message(1).read_text())
    assert words["reason"] == "LedgerUnavailable"
    assert f"{ledger}/weights/v000001/" in words["message"]
    assert "No space left on device. Free space on the volume or enlarge it" in words["message"]
    before = Ledger(ledger, UID)
    assert before.numbers("weights") == [0], "what is half written does not count"
    assert before.verify("weights", 0)

    volume.resize("64m")
    assert attempts.run(ledger, attempt=2, trainer=trainer) == 0, attempts.log(2).read_text()
    assert end_state(ledger) == end_state(undisturbed)
