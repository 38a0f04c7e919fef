"""The yardstick of boundaries: the same bytes read, and written and synced, without anything else."""

import argparse
import os
import tempfile
from pathlib import Path

from bench import workload

CHUNK = 8 << 20


def read(path: Path, buffer: bytearray) -> None:
    """Read a file from the disk: what is in the page cache is dropped first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while os.readv(descriptor, [buffer]):
            pass
    finally:
        os.close(descriptor)


def write(path: Path, size: int, chunk: bytes) -> None:
    """Write and sync a file."""
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(chunk)):
            file.write(chunk)
        os.fsync(file.fileno())


def main() -> None:
    """Prints seconds of each repeat."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    chunk, buffer = os.urandom(CHUNK), bytearray(CHUNK)
    reads: list[float] = []
    writes: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for repeat in range(options.repeats):
            path = Path(folder) / str(repeat)
            writes.append(workload.seconds(lambda path=path: write(path, options.bytes, chunk)))
            reads.append(workload.seconds(lambda path=path: read(path, buffer)))
            path.unlink()
    workload.tell(reads=reads, writes=writes)


if __name__ == "__main__":
    main()
