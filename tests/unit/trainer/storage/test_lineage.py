"""Which weights a window is of, and what of it in the ledger agrees with them."""

from pathlib import Path

import pytest

from spinrun_protocol.ledger import Manifest, Reference
from spinrun_worker.ledger import ForeignError, LedgerWriter, TornError, write_file
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.lineage import PAIRS, SAMPLES, check_window, reference_of, replayed_file, sampler_of

OWN = Schedule(10, 1, 1)
"""Each window is compared with the version that it samples from."""
SHARED = Schedule(10, 1, 1, windows_per_reference=2)
REPLAYED = Schedule(10, 1, 1, replay_windows=1)
AHEAD = Schedule(10, 1, 1, overlap=1)
"""Each window samples from the version before the one that it is compared with."""


@pytest.fixture
def ledger(tmp_path: Path) -> LedgerWriter:
    writer = LedgerWriter(tmp_path / "ledger", "uid", attempt=1)
    writer.claim()
    return writer


def publish(ledger: LedgerWriter, version: int, content: bytes = b"weights") -> Manifest:
    directory = ledger.begin("weights", version)
    return ledger.commit("weights", version, [write_file(directory / "model", [content])], step=version, version=version)


def commit(
    ledger: LedgerWriter, weights: Manifest, reference: Reference | None, *further: str, number: int | None = None
) -> Manifest:
    """A window sampled from these weights. number: None for that of their version."""
    number = weights.version if number is None else number
    directory = ledger.begin("window", number)
    files = [write_file(directory / name, [b""]) for name in (SAMPLES, PAIRS, *further)]
    return ledger.commit(
        "window", number, files, step=number, version=weights.version, parent=weights.digest, reference=reference
    )


def of(weights: Manifest) -> Reference:
    return Reference(version=weights.version, digest=weights.digest)


def test_a_window_may_be_compared_with_the_version_that_it_samples_from(ledger: LedgerWriter) -> None:
    weights = publish(ledger, 1)
    window = commit(ledger, weights, of(weights))
    assert reference_of(ledger, OWN, weights) == of(weights)
    assert check_window(ledger, OWN, weights) == window


def test_a_window_from_before_references_were_written_down_is_compared_with_what_it_samples_from(ledger: LedgerWriter) -> None:
    weights = publish(ledger, 1)
    window = commit(ledger, weights, None)
    assert check_window(ledger, OWN, weights) == window


def test_an_older_reference_is_what_the_window_of_its_number_was_sampled_from(ledger: LedgerWriter) -> None:
    first, second = publish(ledger, 0), publish(ledger, 1)
    commit(ledger, first, of(first))
    window = commit(ledger, second, of(first))
    # What stands under its version by now does not matter.
    publish(ledger, 0, b"other weights")
    assert reference_of(ledger, SHARED, second) == of(first)
    assert check_window(ledger, SHARED, second) == window


def test_an_older_reference_without_its_window_is_refused(ledger: LedgerWriter) -> None:
    publish(ledger, 0)
    with pytest.raises(TornError, match="windows/000000 has no MANIFEST"):
        reference_of(ledger, SHARED, publish(ledger, 1))


def test_a_window_may_be_sampled_from_the_version_before(ledger: LedgerWriter) -> None:
    first, second = publish(ledger, 0), publish(ledger, 1)
    assert sampler_of(ledger, AHEAD, first) == first
    assert sampler_of(ledger, AHEAD, second) == first
    window = commit(ledger, first, of(second), number=1)
    assert check_window(ledger, AHEAD, second) == window
    with pytest.raises(TornError, match="sampled from other weights than version 1"):
        check_window(ledger, OWN, second)


def test_a_window_of_other_weights_under_the_version_before_is_refused(ledger: LedgerWriter) -> None:
    first, second = publish(ledger, 0), publish(ledger, 1)
    commit(ledger, first, of(second), number=1)
    publish(ledger, 0, b"other weights")
    with pytest.raises(TornError, match="sampled from other weights than version 0"):
        check_window(ledger, AHEAD, second)


def test_a_window_that_is_not_there_is_refused(ledger: LedgerWriter) -> None:
    with pytest.raises(TornError, match="windows/000001 has no MANIFEST"):
        check_window(ledger, OWN, publish(ledger, 1))


def test_a_window_of_other_weights_is_refused(ledger: LedgerWriter) -> None:
    old = publish(ledger, 1)
    commit(ledger, old, of(old))
    with pytest.raises(TornError, match="sampled from other weights than version 1"):
        check_window(ledger, OWN, publish(ledger, 1, b"new weights"))


@pytest.mark.parametrize("schedule", [OWN, SHARED], ids=["own", "shared"])
def test_a_window_that_is_compared_with_other_weights_is_refused(ledger: LedgerWriter, schedule: Schedule) -> None:
    first, second = publish(ledger, 0), publish(ledger, 1)
    commit(ledger, first, of(first))
    version = schedule.reference(1)
    assert version is not None
    commit(ledger, second, Reference(version=version, digest="0" * 32))
    with pytest.raises(TornError, match=f"compared with other weights than version {version}"):
        check_window(ledger, schedule, second)


@pytest.mark.parametrize(("schedule", "files"), [(OWN, [replayed_file(0)]), (REPLAYED, [])], ids=["too many", "too few"])
def test_a_window_that_replays_other_windows_is_refused(ledger: LedgerWriter, schedule: Schedule, files: list[str]) -> None:
    weights = publish(ledger, 1)
    commit(ledger, weights, of(weights), *files)
    with pytest.raises(TornError, match=r"replays other windows than spec\.method\.replayWindows says"):
        check_window(ledger, schedule, weights)


def test_a_window_of_another_run_is_refused(ledger: LedgerWriter) -> None:
    weights = publish(ledger, 1)
    commit(ledger, weights, of(weights))
    with pytest.raises(ForeignError, match="belongs to run uid"):
        check_window(LedgerWriter(ledger.root, "other", attempt=1), OWN, weights)
