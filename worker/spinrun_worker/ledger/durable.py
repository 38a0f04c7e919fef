"""Every change that the ledger makes to a volume, one function a system call.

A crash can fall between any two of them, and tests need to be there: `observe` is called before each, with its name and path.
Every OSError becomes a LedgerUnavailableError that says what to do.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from spinrun_worker.ledger.errors import LedgerUnavailableError

observe: Callable[[str, Path], None] | None = None
"""Called before each change with (operation, path). For tests; nothing else sets it."""

# The largest piece passed to one write(): small enough to be still in the cache after it was hashed.
WRITE_BYTES = 4 << 20

# Files that are synced at once: a file system commits together what it is asked for together.
_SYNCED_AT_ONCE = 16

_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux alone has it
_SYNC_FILE_RANGE_WRITE = 2

_REMEDIES = {
    errno.ENOSPC: "Free space on the volume or enlarge it; the run then resumes from its last checkpoint",
    errno.EDQUOT: "Raise the quota or free space; the run then resumes from its last checkpoint",
    errno.EROFS: "Mount the volume so that it can be written to",
    errno.EACCES: "Give the process's user access to the volume (in Kubernetes: securityContext.fsGroup)",
    errno.EPERM: "Give the process's user access to the volume (in Kubernetes: securityContext.fsGroup)",
    errno.EIO: "Check the storage: it reports an input/output error",
    errno.ESTALE: "Remount the network volume: the server no longer knows this file",
    errno.ENOENT: "Check that the volume is mounted and that the folder has not been removed",
}


@contextmanager
def unavailable(path: Path, action: str) -> Generator[None]:
    """Turn an OSError into a LedgerUnavailableError that names path and action."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Check the volume")
        raise LedgerUnavailableError(f"Cannot {action} {path}: {error.strerror or error}. {remedy}") from error


def _announce(operation: str, path: Path) -> None:
    if observe is not None:
        observe(operation, path)


@contextmanager
def _change(operation: str, path: Path) -> Generator[None]:
    _announce(operation, path)
    with unavailable(path, operation):
        yield


def create(path: Path) -> int:
    """Open a new file for writing. An existing file is unlinked, never truncated: a reader may have it mapped."""
    unlink(path)
    with _change("create", path):
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def open_to_append(path: Path) -> int:
    """Open a file for appending and reading, creating it where it is missing."""
    with _change("create", path):
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def write(descriptor: int, data: memoryview, path: Path) -> None:
    """Write all bytes of a view, in a single system call where the system accepts them all."""
    while data.nbytes:
        with _change("write", path):
            data = data[os.write(descriptor, data) :]


def begin_writing_back(descriptor: int, start: int, size: int) -> None:
    """Have the kernel start writing back bytes of an open file, so that fsync finds less to do. Only a hint."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(descriptor, ctypes.c_int64(start), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def truncate(descriptor: int, size: int, path: Path) -> None:
    """Truncate an open file to a size in bytes."""
    with _change("truncate", path):
        os.ftruncate(descriptor, size)


def fsync(descriptor: int, path: Path) -> None:
    """Wait until an open file's content is on the volume."""
    with _change("fsync", path):
        os.fsync(descriptor)


def fsync_files(paths: Iterable[Path]) -> None:
    """Wait until the content of closed files is on the volume, whichever process of this machine wrote it; in parallel."""
    paths = list(paths)
    for path in paths:
        _announce("fsync", path)
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as threads:
        for _ in threads.map(_fsync_file, paths):
            pass


def _fsync_file(path: Path) -> None:
    with unavailable(path, "open"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with unavailable(path, "fsync"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the volume."""
    with unavailable(path, "open"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        with _change("fsync_directory", path):
            try:
                os.fsync(descriptor)
            except OSError as error:
                # SMB, which some clouds offer for ReadWriteMany, has no fsync for directories: the server already has them.
                if error.errno != errno.EINVAL:
                    raise
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Give a file another's name, atomically."""
    with _change("replace", target):
        source.replace(target)


def unlink(path: Path) -> None:
    """Remove a file or a link, if it exists."""
    with _change("unlink", path):
        path.unlink(missing_ok=True)


def make_directories(path: Path) -> None:
    """Create a directory and its parents, each durable before the next."""
    with unavailable(path, "stat"):
        if path.is_dir():
            return
    make_directories(path.parent)
    with _change("mkdir", path):
        path.mkdir(exist_ok=True)
    fsync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Remove an empty directory, if it exists."""
    with _change("rmdir", path):
        try:
            path.rmdir()
        except OSError as error:
            # An NFS client keeps a removed file in place for a process that still has it open: the directory then stays for now.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
