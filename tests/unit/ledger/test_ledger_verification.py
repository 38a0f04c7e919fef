"""What `spinrun ledger` finds in a run's folder or on a whole volume."""

import os
import shutil
from pathlib import Path

import pytest

from spinrun_protocol.ledger import Reference
from spinrun_worker.ledger import LedgerWriter, find_ledgers, verify_tree, write_file

OTHER_UID = "ffffffff-0000-4000-8000-000000000002"


def states(root: Path, *, hashes: bool = True) -> dict[str, str]:
    return {str(finding.path.relative_to(root)): finding.state for finding in verify_tree(root, hashes=hashes)}


def details(root: Path) -> str:
    return "\n".join(finding.detail for finding in verify_tree(root))


@pytest.fixture
def full(writer: LedgerWriter, put, step_line) -> LedgerWriter:
    """A ledger with something of every kind."""
    weights = [put(writer, "weights", version, step=16 * version) for version in (0, 1)]
    for number in (0, 1):
        put(writer, "window", number, parent=weights[number].digest)
        put(writer, "evaluation", number, parent=weights[number].digest)
    put(writer, "checkpoint", 16, version=1)
    writer.append_metrics(step_line(1))
    writer.close()
    return writer


def test_sound_ledger(full):
    assert states(full.root) == {
        "OWNER.json": "committed",
        "metrics.jsonl": "committed",
        "weights/v000000": "committed",
        "weights/v000001": "committed",
        "windows/000000": "committed",
        "windows/000001": "committed",
        "evaluations/000000": "committed",
        "evaluations/000001": "committed",
        "checkpoints/step-000016": "committed",
    }
    assert details(full.root).strip() == ""


def test_findings_say_what_a_listing_needs(full):
    finding = next(finding for finding in verify_tree(full.root) if finding.kind == "checkpoint")

    assert finding.manifest is not None
    assert (finding.number, finding.manifest.version, finding.manifest.step, finding.manifest.attempt) == (16, 1, 16, 1)
    assert finding.size == sum(path.stat().st_size for path in finding.path.rglob("*") if path.is_file())
    assert finding.modified == (finding.path / "MANIFEST.json").stat().st_mtime


def test_nothing_is_changed(full):
    def snapshot() -> list[tuple[str, int, int]]:
        return [(str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(full.root.rglob("*"))]

    (full.layout.weights(1) / "MANIFEST.json").unlink()
    before = snapshot()

    verify_tree(full.root)

    assert snapshot() == before


def test_flipped_bit_is_found_only_with_hashes(full):
    file = full.layout.weights(1) / "model.safetensors"
    file.write_bytes(b"X" + file.read_bytes()[1:])

    assert states(full.root, hashes=False)["weights/v000001"] == "committed"
    assert states(full.root)["weights/v000001"] == "torn"
    assert "weights/v000001/model.safetensors has different content" in details(full.root)


def test_interrupted_write_is_torn(full):
    full.begin("checkpoint", 32)

    assert states(full.root)["checkpoints/step-000032"] == "torn"
    assert "step-000032 has no MANIFEST.json" in details(full.root)


def test_directory_of_another_run_is_foreign(full, tmp_path, put):
    other = LedgerWriter(tmp_path / "other", OTHER_UID, 1)
    other.claim()
    put(other, "weights", 2)
    other.layout.weights(2).rename(full.layout.weights(2))

    assert states(full.root)["weights/v000002"] == "foreign"


def test_unknown_name_is_foreign(full):
    (full.root / "weights" / "backup of v000001").mkdir()

    assert states(full.root)["weights/backup of v000001"] == "foreign"


def test_a_merged_model_of_an_adapter_that_has_changed_since_is_superseded(full, put):
    put(full, "merged", 1, version=1, parent=full.manifest("weights", 1).digest)
    assert states(full.root)["merged/v000001"] == "committed"

    put(full, "weights", 1, {"a": b"other"}, step=16)

    assert states(full.root)["merged/v000001"] == "superseded"
    assert "merged/v000001 was merged from other weights than" in details(full.root)


def test_weights_ahead_of_a_newer_attempt_are_superseded_until_they_are_written_again(full, root, uid, put):
    second = LedgerWriter(root, uid, 2)
    second.claim()
    put(second, "weights", 0, step=0)

    assert states(root)["weights/v000001"] == "superseded"
    assert "v000001 was written by attempt 1; a newer attempt" in details(root)
    put(second, "weights", 1, step=16)
    assert states(root)["weights/v000001"] == "committed"


def test_window_from_other_weights_than_those_that_are_there_is_superseded(full, root, put):
    put(full, "weights", 1, {"model.safetensors": b"trained another way"}, step=16)

    found = states(root)
    assert found["windows/000001"] == found["evaluations/000001"] == "superseded"
    assert found["windows/000000"] == "committed"
    full.delete("weights", 1)
    assert states(root)["windows/000001"] == "committed"


def test_torn_owner_and_metrics_are_named(full):
    full.layout.owner.write_text("{")
    with full.layout.metrics.open("ab") as file:
        file.write(b'{"event"')

    found = states(full.root)
    assert found["OWNER.json"] == found["metrics.jsonl"] == "torn"
    assert found["weights/v000001"] == "committed"
    assert "metrics.jsonl ends mid-line" in details(full.root)


def test_missing_owner_is_named(full):
    full.layout.owner.unlink()

    assert states(full.root)["OWNER.json"] == "torn"
    assert "OWNER.json is missing" in details(full.root)


def test_unreadable_run_record_is_named(full):
    full.layout.run_record.write_text("[]")

    assert states(full.root)["run.json"] == "torn"


def test_file_that_the_volume_does_not_give_is_unreadable_and_the_rest_is_checked(full, monkeypatch):
    real_open = os.open

    def broken_open(path, *args, **kwargs):
        if str(path).endswith("v000000/model.safetensors"):
            raise OSError(5, "Input/output error")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", broken_open)
    found = states(full.root)
    assert found["weights/v000000"] == "unreadable"
    assert found["weights/v000001"] == "committed"
    assert "v000000/model.safetensors: Input/output error" in details(full.root)


def test_volume_with_several_ledgers(full, root, tmp_path, put):
    volume = tmp_path / "volume"
    other = LedgerWriter(volume / "other-team" / "run-ffffffff", OTHER_UID, 1)
    other.claim()
    put(other, "weights", 0)
    (volume / "models" / "llama").mkdir(parents=True)
    (volume / "models" / "llama" / "model.safetensors").write_bytes(b"x")
    (volume / "lost+found").mkdir(mode=0)

    assert find_ledgers(volume) == [other.root, root]
    assert find_ledgers(volume / "team") == [root]
    assert set(states(volume).values()) == {"committed"}
    assert "other-team/run-ffffffff/weights/v000000" in states(volume)


def test_ledger_without_an_owner_is_still_a_ledger(full, tmp_path):
    full.layout.owner.unlink()

    assert find_ledgers(tmp_path / "volume") == [full.root]


def test_folder_without_a_ledger(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "file").write_bytes(b"")

    assert verify_tree(tmp_path) == []
    assert verify_tree(tmp_path / "missing") == []
    assert verify_tree(tmp_path / "file") == []


def test_links_on_a_volume_are_not_followed(full, root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked").symlink_to(root)

    assert find_ledgers(elsewhere) == []
    shutil.rmtree(elsewhere)
    assert root.exists()


def test_a_window_that_is_compared_with_weights_that_have_changed_since_is_superseded(full, put):
    first, second = (full.manifest("weights", version) for version in (0, 1))
    directory = full.begin("window", 1)
    reference = Reference(version=0, digest=first.digest)
    files = [write_file(directory / "pairs.parquet", [b""])]
    full.commit("window", 1, files, step=16, version=1, parent=second.digest, reference=reference)
    assert states(full.root)["windows/000001"] == "committed"

    put(full, "weights", 0, {"model.safetensors": b"other weights"})

    assert states(full.root)["windows/000001"] == "superseded"
    assert "windows/000001 is compared with other weights than" in details(full.root)
