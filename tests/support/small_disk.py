"""A file system of its own, small enough to be full: what a full disk does cannot be had otherwise."""

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """Where it is."""

    folder: Path

    def resize(self, size: str) -> None:
        """Gives it another size, as mount writes it."""
        assert not (refused := _mount("-o", f"remount,size={size}", str(self.folder))), refused

    def fill(self) -> None:
        """Takes all that is free."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue


@contextmanager
def small_disk(folder: Path, size: str) -> Generator[SmallDisk]:
    """Mounts one on a folder that is made for it; skips the test where that needs another user."""
    folder.mkdir()
    if refused := _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        pytest.skip(f"a file system of its own needs root: {refused}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> str:
    """Runs mount; returns why it failed, empty when it did not."""
    return subprocess.run(["mount", *arguments], capture_output=True, text=True).stderr.strip()
