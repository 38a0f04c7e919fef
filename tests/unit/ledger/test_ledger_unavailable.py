"""A volume that is full, read-only or failing is named, and the ledger stays as it was."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spinrun_worker.ledger import Ledger, LedgerUnavailableError, LedgerWriter, read_metrics, verify_tree, write_file

KIB = 1024


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, unmounted at the end."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield mount
    subprocess.run(["umount", mount], check=True)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_full_volume_stops_the_write_and_leaves_the_ledger_as_it_was(small_volume, uid, put):
    writer = LedgerWriter(small_volume / "run", uid, 1)
    writer.claim()
    put(writer, "weights", 0)
    before = snapshot(small_volume)

    directory = writer.begin("weights", 1)
    with pytest.raises(LedgerUnavailableError, match=r"Cannot write .*v000001/model: No space left on device\. Free space"):
        write_file(directory / "model", [b"x" * 64 * KIB] * 5)

    assert snapshot(small_volume) == before
    assert writer.numbers("weights") == [0]

    # Space is back: the run resumes.
    put(writer, "weights", 1)
    assert writer.numbers("weights") == [0, 1]


def test_volume_that_is_full_when_the_manifest_is_written_leaves_no_trace_of_it(small_volume, uid, put):
    writer = LedgerWriter(small_volume / "run", uid, 1)
    writer.claim()
    directory = writer.begin("weights", 1)
    entry = write_file(directory / "a", [b"a"])
    fill(small_volume)

    with pytest.raises(LedgerUnavailableError, match="No space left on device"):
        writer.commit("weights", 1, [entry], step=1, version=1)

    assert [path.name for path in directory.iterdir()] == ["a"]
    (small_volume / "filler").unlink()
    assert writer.commit("weights", 1, [entry], step=1, version=1).number == 1


def test_metrics_line_that_does_not_fit_is_not_written_by_half(small_volume, uid, step_line):
    writer = LedgerWriter(small_volume / "run", uid, 1)
    writer.claim()
    writer.append_metrics(step_line(1))
    fill(small_volume)

    def append_until_it_is_full() -> None:
        for step in range(2, 1000):
            writer.append_metrics(step_line(step, loss=0.5))

    with pytest.raises(LedgerUnavailableError, match=r"metrics\.jsonl: No space left"):
        append_until_it_is_full()

    (small_volume / "filler").unlink()
    steps = [line.step for line in read_metrics(writer.layout.metrics)]
    assert writer.layout.metrics.read_bytes().endswith(b"\n")
    writer.append_metrics(step_line(steps[-1] + 1))
    writer.close()
    assert [line.step for line in read_metrics(writer.layout.metrics)] == [*steps, steps[-1] + 1]


def fill(volume: Path) -> None:
    with (volume / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * KIB)
        except OSError:
            return


def test_read_only_volume_can_be_read_and_says_so_when_written(small_volume, uid, put, step_line):
    writer = LedgerWriter(small_volume / "run", uid, 1)
    writer.claim()
    put(writer, "weights", 0)
    subprocess.run(["mount", "-o", "remount,ro", small_volume], check=True)

    assert Ledger(small_volume / "run", uid).verify("weights", 0).number == 0
    assert {finding.state for finding in verify_tree(small_volume)} == {"committed"}
    for change in (
        lambda: writer.begin("weights", 1),
        lambda: writer.begin("weights", 0),
        lambda: writer.delete("weights", 0),
        lambda: writer.append_metrics(step_line(1)),
        lambda: LedgerWriter(small_volume / "run", uid, 2).claim(),
        lambda: LedgerWriter(small_volume / "new", uid, 1).claim(),
    ):
        with pytest.raises(LedgerUnavailableError, match=r"Read-only file system\. Mount the volume so that it can be written"):
            change()
    assert writer.verify("weights", 0).number == 0


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (28, "No space left on device. Free space"),
        (122, "Disk quota exceeded. Raise the quota"),
        (30, "Read-only file system. Mount the volume"),
        (13, "Permission denied. Give the process's user access"),
        (5, "Input/output error. Check the storage"),
        (116, "Stale file handle. Remount the network volume"),
        (2, "No such file or directory. Check that the volume is mounted"),
        (110, "Connection timed out. Check the volume"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_the_volume_refuses_is_named_with_its_path_and_a_remedy(tmp_path, monkeypatch, call, number, remedy):
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(LedgerUnavailableError) as caught:
        write_file(tmp_path / "model.safetensors", [b"x"])
    assert f"Cannot {call} {tmp_path}/model.safetensors: {remedy}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:3]))

    entry = write_file(tmp_path / "a", [b"spinrun"])

    assert (tmp_path / "a").read_bytes() == b"spinrun"
    assert entry.size == 7


def test_file_system_without_fsync_for_directories_is_good_enough(writer, put, monkeypatch):
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(22, "Invalid argument")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert put(writer, "weights", 1).number == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_named(writer):
    writer.root.chmod(0o500)
    with pytest.raises(LedgerUnavailableError, match="Permission denied"):
        writer.begin("weights", 0)


def test_folder_that_is_gone_is_named(writer, tmp_path):
    with pytest.raises(LedgerUnavailableError, match="No such file or directory"):
        write_file(tmp_path / "gone" / "a", [b"a"])
