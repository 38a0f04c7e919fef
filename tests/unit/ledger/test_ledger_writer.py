"""One writer at a time, and a directory that counts only when it is whole."""

import json
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from spinrun_protocol.ledger import FileEntry, RunRecord
from spinrun_worker.ledger import (
    ForeignError,
    Ledger,
    LedgerUnavailableError,
    LedgerWriter,
    SupersededError,
    TornError,
    durable,
    hash_file,
    replace_file,
    write_file,
    write_json,
)

OTHER_UID = "ffffffff-0000-4000-8000-000000000002"


def attempt(number: int, root: Path, uid: str) -> LedgerWriter:
    writer = LedgerWriter(root, uid, attempt=number)
    writer.claim()
    return writer


def test_claim_makes_the_ledger_and_names_its_owner(root, uid):
    attempt(3, root, uid)

    assert json.loads((root / "OWNER.json").read_bytes()) == {"uid": uid, "attempt": 3}


def test_second_claim_of_the_same_attempt_changes_nothing(writer, operations):
    writer.claim()

    assert operations == []


def test_newer_attempt_takes_the_ledger_over(root, uid, writer, put):
    put(writer, "weights", 0)

    second = attempt(2, root, uid)

    assert json.loads((root / "OWNER.json").read_bytes())["attempt"] == 2
    assert second.numbers("weights") == [0]


def test_older_attempt_cannot_claim(root, uid):
    attempt(2, root, uid)

    with pytest.raises(SupersededError, match=r"Attempt 2 owns .* attempt 1 stops here"):
        attempt(1, root, uid)


def test_ledger_of_another_run_cannot_be_claimed(root, writer):
    with pytest.raises(ForeignError, match="give each run a folder of its own"):
        attempt(2, root, OTHER_UID)


def test_unreadable_owner_is_not_overwritten(root, uid, writer):
    (root / "OWNER.json").write_text("{")

    with pytest.raises(TornError, match=r"OWNER\.json is not a valid Owner"):
        attempt(2, root, uid)
    assert (root / "OWNER.json").read_text() == "{"


def test_superseded_attempt_commits_nothing(root, uid, writer):
    directory = writer.begin("weights", 5)
    entry = write_file(directory / "a", [b"a"])
    attempt(2, root, uid)

    with pytest.raises(SupersededError):
        writer.commit("weights", 5, [entry], step=5, version=5)
    assert Ledger(root, uid).numbers("weights") == []
    assert sorted(path.name for path in directory.iterdir()) == ["a"]


def test_superseded_attempt_changes_nothing_at_all(root, uid, writer, put, step_line):
    put(writer, "weights", 1)
    attempt(2, root, uid)
    before = sorted(root.rglob("*"))

    for change in (
        lambda: writer.begin("weights", 1),
        lambda: writer.begin("weights", 2),
        lambda: writer.delete("weights", 1),
        lambda: writer.append_metrics(step_line(1)),
        lambda: writer.write_run_record(run_record()),
        lambda: writer.claim(),
    ):
        with pytest.raises(SupersededError):
            change()
    assert sorted(root.rglob("*")) == before
    assert writer.verify("weights", 1).number == 1


def test_attempt_that_is_superseded_while_files_are_flushed_commits_nothing(root, uid, writer, monkeypatch):
    directory = writer.begin("weights", 5)
    entry = write_file(directory / "a", [b"a"])
    monkeypatch.setattr("spinrun_worker.ledger.ledger.flush_tree", lambda _: attempt(2, root, uid))

    with pytest.raises(SupersededError):
        writer.commit("weights", 5, [entry], step=5, version=5)
    assert not (directory / "MANIFEST.json").exists()


def test_newer_attempt_takes_back_a_claim_that_an_older_one_overwrote_in_a_race(root, uid, put):
    newer = attempt(2, root, uid)
    replace_file(root / "OWNER.json", json.dumps({"uid": uid, "attempt": 1}).encode())

    put(newer, "weights", 0)

    assert json.loads((root / "OWNER.json").read_bytes())["attempt"] == 2


def test_writer_without_an_owner_file_stops(writer):
    writer.layout.owner.unlink()

    with pytest.raises(LedgerUnavailableError, match=r"OWNER\.json does not exist"):
        writer.begin("weights", 0)


def test_begin_empties_a_directory_whatever_is_in_it(writer, put, tmp_path):
    put(writer, "checkpoint", 16)
    directory = writer.layout.checkpoint(16)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"not ours")
    (directory / "linked-folder").symlink_to(tmp_path / "precious")
    (directory / "linked-file").symlink_to(tmp_path / "precious" / "file")
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "deep" / "er" / "x").write_bytes(b"x")

    assert writer.begin("checkpoint", 16) == directory
    assert list(directory.iterdir()) == []
    assert (tmp_path / "precious" / "file").read_bytes() == b"not ours"


def test_begin_replaces_a_link_without_following_it(writer, put, tmp_path):
    put(writer, "weights", 1)
    writer.layout.weights(1).rename(tmp_path / "elsewhere")
    writer.layout.weights(1).symlink_to(tmp_path / "elsewhere")

    directory = writer.begin("weights", 1)

    assert not directory.is_symlink()
    assert (tmp_path / "elsewhere" / "MANIFEST.json").exists()


def test_directory_of_another_run_is_neither_emptied_nor_deleted(tmp_path, root, uid, writer, put):
    other = attempt(1, tmp_path / "other", OTHER_UID)
    put(other, "weights", 1)
    (root / "weights").mkdir()
    other.layout.weights(1).rename(writer.layout.weights(1))

    for change in (writer.begin, writer.delete):
        with pytest.raises(ForeignError, match=f"belongs to run {OTHER_UID}.*move it away"):
            change("weights", 1)
    assert Ledger(root, OTHER_UID).verify("weights", 1).uid == OTHER_UID


def test_manifest_goes_first_and_durably_when_a_directory_is_written_again(writer, put, operations):
    put(writer, "weights", 1)
    directory = writer.layout.weights(1)
    operations.clear()

    writer.begin("weights", 1)

    assert operations[:2] == [("unlink", directory / "MANIFEST.json"), ("fsync_directory", directory)]
    assert ("unlink", directory / "model.safetensors") in operations[2:]


def test_everything_is_durable_before_the_manifest_appears(writer, put, operations):
    put(writer, "checkpoint", 16)

    directory = writer.layout.checkpoint(16)
    replaced = operations.index(("replace", directory / "MANIFEST.json"))
    written = max(
        index for index, (operation, path) in enumerate(operations[:replaced]) if operation == "write" and path.suffix != ".tmp"
    )
    flushed = operations[written:replaced]
    for name in ("config.json", "model.safetensors", "tokenizer/vocab.txt"):
        assert ("fsync", directory / name) in flushed
    for folder in (directory / "tokenizer", directory, directory.parent):
        assert ("fsync_directory", folder) in flushed
    assert operations[replaced - 1][0] == "fsync"  # the manifest's own content
    assert operations[replaced + 1] == ("fsync_directory", directory)


def test_files_that_others_wrote_without_fsync_are_made_durable_by_commit(writer, operations):
    directory = writer.begin("checkpoint", 16)
    (directory / "__1_0.distcp").write_bytes(b"from another rank")

    writer.commit("checkpoint", 16, [hash_file(directory / "__1_0.distcp", root=directory)], step=16, version=1)

    assert ("fsync", directory / "__1_0.distcp") in operations
    assert writer.verify("checkpoint", 16).files[0].size == 17


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (["a"], "b is not in MANIFEST.json"),
        (["a", "b", "c"], "c is missing"),
        ([], "is not in MANIFEST.json"),
    ],
    ids=["file not named", "file missing", "none named"],
)
def test_commit_refuses_when_the_directory_holds_other_files(writer, entries, named):
    directory = writer.begin("weights", 1)
    for name in "ab":
        (directory / name).write_bytes(b"x")

    with pytest.raises(TornError, match=named):
        writer.commit("weights", 1, [FileEntry(path=name, size=1, xxh3_128="0" * 32) for name in entries], step=1, version=1)
    assert writer.numbers("weights") == []


def test_commit_refuses_another_size(writer):
    directory = writer.begin("weights", 1)
    entry = write_file(directory / "a", [b"abc"])
    (directory / "a").write_bytes(b"ab")

    with pytest.raises(TornError, match=r"a has 2 bytes, .* says 3"):
        writer.commit("weights", 1, [entry], step=1, version=1)


def test_delete_takes_the_manifest_first(writer, put, operations):
    put(writer, "weights", 1)
    directory = writer.layout.weights(1)
    operations.clear()

    writer.delete("weights", 1)

    assert operations[:2] == [("unlink", directory / "MANIFEST.json"), ("fsync_directory", directory)]
    assert not directory.exists()


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_deleting_what_is_not_there_or_not_committed_is_fine(writer, kind):
    writer.delete(kind, 1)
    (writer.begin(kind, 1) / "a").write_bytes(b"a")

    writer.delete(kind, 1)

    assert not writer.layout.path(kind, 1).exists()


def test_delete_leaves_what_an_nfs_client_holds_for_open_readers(writer, put):
    put(writer, "weights", 1)
    (writer.layout.weights(1) / ".nfs000000000001").write_bytes(b"still open")

    writer.delete("weights", 1)

    assert [path.name for path in writer.layout.weights(1).iterdir()] == [".nfs000000000001"]
    assert writer.numbers("weights") == []


def test_file_that_a_reader_has_open_keeps_its_content_when_it_is_written_again(tmp_path):
    write_file(tmp_path / "a", [b"old"])
    with (tmp_path / "a").open("rb") as reader:
        write_file(tmp_path / "a", [b"new"])
        assert reader.read() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"


def test_write_file_hashes_and_counts_across_chunks(tmp_path):
    entry = write_file(tmp_path / "a", [b"spin", bytearray(), memoryview(b"r"), b"un"])

    assert (tmp_path / "a").read_bytes() == b"spinrun"
    assert entry == hash_file(tmp_path / "a")


def test_write_file_lets_go_of_a_chunk_before_the_next_is_made(tmp_path):
    alive = 0
    most = 0

    class Chunk(bytearray):
        def __init__(self) -> None:
            nonlocal alive, most
            super().__init__(1 << 16)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    entry = write_file(tmp_path / "a", (Chunk() for _ in range(5)))

    assert entry.size == 5 << 16
    assert most == 1


def test_a_chunk_is_written_while_the_next_is_made(tmp_path):
    written = threading.Event()
    durable.observe = lambda operation, _: written.set() if operation == "write" else None

    def chunks() -> Iterator[bytes]:
        yield b"spin"
        assert written.wait(10)
        yield b"run"

    entry = write_file(tmp_path / "a", chunks(), overlap=True)

    assert (tmp_path / "a").read_bytes() == b"spinrun"
    assert entry == hash_file(tmp_path / "a")


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_a_volume_that_refuses_an_overlapped_write_leaves_no_file(tmp_path, refused):
    writes = count()

    def observe(operation: str, _: Path) -> None:
        if operation == "write" and next(writes) == refused:
            raise LedgerUnavailableError("No space left on device")

    durable.observe = observe
    with pytest.raises(LedgerUnavailableError, match="No space left"):
        write_file(tmp_path / "a", [b"spin", b"run", b"!"], overlap=True)
    assert list(tmp_path.iterdir()) == []


def test_large_chunk_is_written_in_pieces_and_read_back(tmp_path):
    content = bytes(range(251)) * 50_000  # 12.5 MB

    entry = write_file(tmp_path / "a", [content])

    assert (tmp_path / "a").read_bytes() == content
    assert entry == hash_file(tmp_path / "a")


def test_json_is_the_same_bytes_for_the_same_content(tmp_path):
    first = write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    second = write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})

    assert first.xxh3_128 == second.xxh3_128
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"a": [1.5, None], "b": 1}


def run_record() -> RunRecord:
    return RunRecord(
        run={"metadata": {"name": "gsm8k"}},
        versions={"torch": "2.13.0"},
        machine={"cores": 2},
        compute_dtype="float32",
        published_dtype="bfloat16",
        attempt=1,
        world_size=2,
    )


def test_run_record_is_replaced_whole(writer):
    writer.write_run_record(run_record())
    writer.write_run_record(run_record().model_copy(update={"world_size": 4}))

    record = RunRecord.model_validate_json(writer.layout.run_record.read_bytes())
    assert record.world_size == 4
    assert sorted(path.name for path in writer.root.iterdir()) == ["OWNER.json", "run.json"]


def test_run_record_holds_no_secret(writer):
    environment = [{"name": "ANYTHING", "value": "s3cr3t"}]
    template = {"spec": {"containers": [{"name": "trainer", "env": environment}]}}
    spec = {"trainer": {"template": template}, "rollout": {"engineArgs": {"hf-token": "s3cr3t"}, "maxTokens": 8}}
    writer.write_run_record(run_record().model_copy(update={"run": {"metadata": {"name": "a"}, "spec": spec}}))
    assert "s3cr3t" not in writer.layout.run_record.read_text()
    record = RunRecord.model_validate_json(writer.layout.run_record.read_bytes())
    assert record.run["spec"]["rollout"]["maxTokens"] == 8
