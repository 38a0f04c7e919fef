"""A reader trusts a directory when its manifest is there, is this run's, and agrees with it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spinrun_worker.ledger import (
    ForeignError,
    Ledger,
    LedgerUnavailableError,
    LedgerWriter,
    TornError,
    content_digest,
    durable,
    hash_file,
)

OTHER_UID = "ffffffff-0000-4000-8000-000000000002"


def test_committed_directory_reads_back_as_it_was_committed(writer, root, uid, put):
    manifest = put(writer, "window", 3, {"pairs.parquet": b"pairs", "samples.parquet": b"samples"}, step=48, parent="ab" * 16)

    read = Ledger(root, uid).verify("window", 3)

    assert read == manifest
    assert (read.kind, read.number, read.version, read.step, read.attempt) == ("window", 3, 3, 48, 1)
    assert read.parent == "ab" * 16
    assert [(entry.path, entry.size) for entry in read.files] == [("pairs.parquet", 5), ("samples.parquet", 7)]


def test_digest_is_the_content_and_not_the_attempt(root, uid, put):
    first = LedgerWriter(root, uid, attempt=1)
    first.claim()
    before = put(first, "weights", 4)
    second = LedgerWriter(root, uid, attempt=2)
    second.claim()
    after = put(second, "weights", 4, step=99)

    assert after.attempt == 2
    assert after.digest == before.digest == content_digest("weights", 4, uid, before.files)
    assert put(second, "weights", 5).digest != before.digest


def remove_manifest(directory: Path) -> None:
    (directory / "MANIFEST.json").unlink()


def truncate_manifest(directory: Path) -> None:
    os.truncate(directory / "MANIFEST.json", 100)


def empty_manifest(directory: Path) -> None:
    os.truncate(directory / "MANIFEST.json", 0)


def truncate_file(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 100)


def flip_a_bit(directory: Path) -> None:
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[700] ^= 0b100
    (directory / "model.safetensors").write_bytes(content)


def remove_file(directory: Path) -> None:
    (directory / "tokenizer" / "vocab.txt").unlink()


def add_file(directory: Path) -> None:
    (directory / "tokenizer" / "extra.bin").write_bytes(b"")


def link_instead_of_file(directory: Path) -> None:
    (directory / "config.json").rename(directory.parent / "config.json")
    (directory / "config.json").symlink_to(directory.parent / "config.json")


def linked_folder(directory: Path) -> None:
    (directory / "tokenizer").rename(directory.parent / "tokenizer")
    (directory / "tokenizer").symlink_to(directory.parent / "tokenizer")


def link_instead_of_directory(directory: Path) -> None:
    directory.rename(directory.parent / "elsewhere")
    directory.symlink_to(directory.parent / "elsewhere")


def pipe_instead_of_file(directory: Path) -> None:
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")


def pipe_instead_of_manifest(directory: Path) -> None:
    (directory / "MANIFEST.json").unlink()
    os.mkfifo(directory / "MANIFEST.json")


def link_instead_of_manifest(directory: Path) -> None:
    (directory / "MANIFEST.json").rename(directory.parent / "MANIFEST.json")
    (directory / "MANIFEST.json").symlink_to(directory.parent / "MANIFEST.json")


def folder_instead_of_manifest(directory: Path) -> None:
    (directory / "MANIFEST.json").unlink()
    (directory / "MANIFEST.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove_manifest, "MANIFEST.json"),
        (truncate_manifest, "MANIFEST.json"),
        (empty_manifest, "MANIFEST.json"),
        (truncate_file, "model.safetensors has 100 bytes, MANIFEST.json says 1280"),
        (remove_file, "tokenizer/vocab.txt is missing"),
        (add_file, "tokenizer/extra.bin is not in MANIFEST.json"),
        (link_instead_of_file, "config.json is a link"),
        (linked_folder, "tokenizer is a link"),
        (link_instead_of_directory, "v000007"),
        (pipe_instead_of_file, "config.json is a link or a special file"),
        (pipe_instead_of_manifest, "MANIFEST.json is not a regular file"),
        (link_instead_of_manifest, "MANIFEST.json is a link"),
        (folder_instead_of_manifest, "MANIFEST.json is not a regular file"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damaged_directory_is_torn_and_left_out(writer: LedgerWriter, put, damage: Callable[[Path], None], named: str) -> None:
    put(writer, "weights", 6)
    put(writer, "weights", 7)
    damage(writer.layout.weights(7))

    with pytest.raises(TornError, match=named):
        writer.verify("weights", 7, hashes=False)
    assert writer.numbers("weights") == [6]


def test_flipped_bit_is_found_by_its_hash(writer, put):
    put(writer, "weights", 7)
    flip_a_bit(writer.layout.weights(7))

    assert writer.verify("weights", 7, hashes=False).number == 7
    with pytest.raises(TornError, match=r"v000007/model\.safetensors has different content"):
        writer.verify("weights", 7)


def test_files_that_nfs_keeps_for_open_readers_do_not_count(writer, put):
    put(writer, "weights", 7)
    (writer.layout.weights(7) / ".nfs000000000001").write_bytes(b"still open somewhere")

    assert writer.verify("weights", 7).number == 7


def test_directory_of_another_run_is_foreign_and_left_out(root, put, uid, writer):
    put(writer, "weights", 1)
    other = Ledger(root, OTHER_UID)

    with pytest.raises(ForeignError, match=f"{uid}, not to {OTHER_UID}"):
        other.manifest("weights", 1)
    assert other.numbers("weights") == []


@pytest.mark.parametrize(("kind", "number"), [("weights", 2), ("checkpoint", 1)])
def test_directory_moved_under_another_name_is_foreign_and_left_out(writer, put, kind, number):
    put(writer, "weights", 1)
    target = writer.layout.path(kind, number)
    target.parent.mkdir(exist_ok=True)
    writer.layout.weights(1).rename(target)

    with pytest.raises(ForeignError, match="holds weights 1"):
        writer.manifest(kind, number)
    assert writer.numbers(kind) == []


def test_numbers_are_ascending_and_other_names_are_ignored(writer, put):
    for number in (12, 0, 1000000, 3):
        put(writer, "weights", number)
    for name in ("v7", "000004", "v0000012", "v000abc", "step-000001", "notes.txt"):
        (writer.root / "weights" / name).mkdir()

    assert writer.numbers("weights") == [0, 3, 12, 1000000]
    assert writer.numbers("checkpoint") == []


def test_weights_that_a_newer_attempt_left_behind_are_left_out_until_it_writes_them_again(root, uid, put):
    first = LedgerWriter(root, uid, attempt=1)
    first.claim()
    for version in (1, 2, 3, 4):
        put(first, "weights", version)
    second = LedgerWriter(root, uid, attempt=2)
    second.claim()
    put(second, "weights", 2)

    assert second.numbers("weights") == [1, 2]
    put(second, "weights", 3)
    assert second.numbers("weights") == [1, 2, 3]


def test_windows_of_an_older_attempt_count_as_long_as_their_weights_do(root, uid, put):
    first = LedgerWriter(root, uid, attempt=1)
    first.claim()
    put(first, "window", 2)
    second = LedgerWriter(root, uid, attempt=2)
    second.claim()
    put(second, "window", 1)

    assert second.numbers("window") == [1, 2]


def test_reader_creates_nothing(tmp_path, uid):
    ledger = Ledger(tmp_path, uid)

    assert ledger.numbers("weights") == []
    with pytest.raises(TornError):
        ledger.manifest("window", 0)
    assert list(tmp_path.iterdir()) == []


def test_missing_root_is_not_taken_for_an_empty_ledger(tmp_path, uid):
    ledger = Ledger(tmp_path / "unmounted", uid)

    with pytest.raises(LedgerUnavailableError, match="unmounted does not exist"):
        ledger.numbers("checkpoint")
    with pytest.raises(LedgerUnavailableError, match="unmounted does not exist"):
        ledger.manifest("weights", 0)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file"), OSError(116, "Stale file handle")], ids=["ENOENT", "ESTALE"]
)
def test_manifest_that_an_nfs_client_does_not_see_at_once_is_asked_for_again(writer, put, monkeypatch, error):
    put(writer, "weights", 1)
    real_open, failures = os.open, [error]

    def open_late(path, *args, **kwargs):
        if str(path).endswith("MANIFEST.json") and failures:
            raise failures.pop()
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_late)
    assert writer.manifest("weights", 1).number == 1
    assert failures == []


def test_volume_that_fails_is_not_taken_for_a_torn_directory(writer, put, monkeypatch):
    put(writer, "checkpoint", 16)
    real_open = os.open

    def broken_open(path, *args, **kwargs):
        if str(path).endswith("MANIFEST.json"):
            raise OSError(5, "Input/output error")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", broken_open)
    # A restart that took this for torn would resume from an earlier checkpoint, and overwrite the good one.
    with pytest.raises(LedgerUnavailableError, match=r"step-000016/MANIFEST\.json: Input/output error"):
        writer.numbers("checkpoint")


def test_reading_makes_no_change_to_the_volume(writer, put, operations):
    put(writer, "weights", 1)
    operations.clear()

    writer.verify("weights", 1)
    writer.numbers("weights")

    assert operations == []
    assert durable.observe is not None


def test_hash_file_names_files_relative_to_the_root(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.bin").write_bytes(b"spinrun")

    entry = hash_file(tmp_path / "inner" / "a.bin", root=tmp_path)

    assert entry.path == "inner/a.bin"
    assert entry.size == 7
    assert entry.xxh3_128 == "fca1ce7c837f6e8ad0d41a984261fecf"
    with pytest.raises(TornError, match="nothing is missing"):
        hash_file(tmp_path / "nothing", root=tmp_path)
