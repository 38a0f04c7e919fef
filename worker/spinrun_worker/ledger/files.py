"""Files of a ledger: written with their hash and made durable, listed and read with suspicion.

Nothing on a volume is trusted: links are not followed, special files are refused, documents have a maximum size.
"""

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import xxhash
from pydantic import ValidationError
from typing_extensions import Buffer

from spinrun_api.base import Record, first_problem
from spinrun_protocol.ledger import FileEntry
from spinrun_worker.ledger import durable
from spinrun_worker.ledger.errors import LedgerUnavailableError, TornError

# A manifest of 100 000 files is smaller.
MAX_DOCUMENT_BYTES = 32 << 20

# The disk starts on pieces of this size, large enough for it, while the rest is still being made.
WRITE_BACK_BYTES = 32 << 20

# What an NFS client leaves in place of a file that was removed while a process on the same machine had it open.
_NFS_LEFTOVER = ".nfs"

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a link is refused; a pipe is not waited for

AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_file(
    path: Path, chunks: Iterable[Buffer], *, root: Path | None = None, sync: bool = True, overlap: bool = False
) -> FileEntry:
    """Write a new file, hashing on the way, and wait until it is on the volume.

    Holds one chunk at a time. An existing file of that name is replaced; its readers see the new one at their next open.

    Args:
        path: The file.
        chunks: Its content.
        root: The folder that the entry's path is relative to, by default the file's own; missing folders below it are created.
        sync: False where this machine will sync the file together with others.
        overlap: Whether a chunk is hashed and written by another thread while this one makes the next: two are then held, and
            each must stay as it is until the one after the next is asked for.

    Returns:
        The file's entry for a manifest.

    Raises:
        LedgerUnavailableError: The volume refuses. What was written so far has been removed.
    """
    if root is not None:
        durable.make_directories(path.parent)
    descriptor = durable.create(path)
    try:
        content = _Content(descriptor, path)
        if overlap:
            _write_overlapped(content, chunks)
        else:
            for chunk in chunks:
                content.add(chunk)
                del chunk  # the loop would hold it until the next one exists
        if sync:
            durable.fsync(descriptor, path)
    except LedgerUnavailableError:
        with suppress(LedgerUnavailableError):
            durable.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return FileEntry(path=_name(path, root), size=content.size, xxh3_128=content.hasher.hexdigest())


class _Content:
    """What has been written to an open file so far."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.size = 0
        self.hasher = xxhash.xxh3_128()
        self._under_way = 0
        self._descriptor = descriptor
        self._path = path

    def add(self, chunk: Buffer) -> None:
        """Hash and write the next bytes."""
        view = memoryview(chunk)
        if not view.nbytes:
            return
        data = view.cast("B")
        for start in range(0, data.nbytes, durable.WRITE_BYTES):
            piece = data[start : start + durable.WRITE_BYTES]
            self.hasher.update(piece)
            durable.write(self._descriptor, piece, self._path)
        self.size += data.nbytes
        if self.size - self._under_way >= WRITE_BACK_BYTES:
            durable.begin_writing_back(self._descriptor, self._under_way, self.size - self._under_way)
            self._under_way = self.size


def _write_overlapped(content: _Content, chunks: Iterable[Buffer]) -> None:
    """Write each chunk while the next is made. Both hashing and writing leave Python's lock to this thread meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        writing: Future[None] | None = None
        for chunk in chunks:
            if writing is not None:
                writing.result()
            writing = thread.submit(content.add, chunk)
        if writing is not None:
            writing.result()


def hash_file(path: Path, *, root: Path | None = None) -> FileEntry:
    """The manifest entry of an existing file.

    Args:
        path: The file.
        root: The folder that the entry's path is relative to, by default the file's own.

    Raises:
        TornError: The file is missing, or not a regular file.
    """
    hasher = xxhash.xxh3_128()
    size = 0
    buffer = bytearray(durable.WRITE_BYTES)
    view = memoryview(buffer)
    descriptor = open_regular(path)
    if descriptor is None:
        raise TornError(f"{path} is missing")
    try:
        with durable.unavailable(path, "read"):
            while count := os.readv(descriptor, [buffer]):
                hasher.update(view[:count])
                size += count
    finally:
        os.close(descriptor)
    return FileEntry(path=_name(path, root), size=size, xxh3_128=hasher.hexdigest())


def _name(path: Path, root: Path | None) -> str:
    return path.relative_to(root if root is not None else path.parent).as_posix()


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new content atomically: after a crash the file is whole, either the old one or the new one."""
    # Two attempts may do this at once, so each has a temporary name of its own.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    write_file(temporary, [data])
    try:
        durable.replace(temporary, path)
    except LedgerUnavailableError:
        with suppress(LedgerUnavailableError):
            durable.unlink(temporary)
        raise
    durable.fsync_directory(path.parent)


def write_json(path: Path, document: object) -> FileEntry:
    """Write a new JSON file; the same document gives the same bytes."""
    return write_file(path, [json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"])


def write_record(path: Path, record: Record) -> None:
    """Put a record in a file's place, atomically."""
    replace_file(path, record.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode() + b"\n")


def read_record(path: Path, model: type[AnyRecord]) -> AnyRecord | None:
    """Read a record; None when the file does not exist.

    Raises:
        TornError: The file is not a valid record of this kind.
        LedgerUnavailableError: The volume does not let it be read.
    """
    descriptor = open_regular(path)
    if descriptor is None:
        return None
    with durable.unavailable(path, "read"), os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise TornError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes: it is not a valid {model.__name__}")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise TornError(f"{path} is not a valid {model.__name__}: {first_problem(error)}") from error


def open_regular(path: Path) -> int | None:
    """Open a regular file for reading; None when it does not exist. Raises TornError for anything else of that name."""
    with durable.unavailable(path, "read"):
        try:
            descriptor = _open_fresh(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise TornError(f"{path} is a link, and links are not followed: replace it with a file") from error
            if error.errno == errno.ENXIO:
                raise TornError(f"{path} is a socket, not a regular file: remove it") from error
            raise
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    os.close(descriptor)
    raise TornError(f"{path} is not a regular file: remove it")


def _open_fresh(path: Path) -> int:
    """open(), but past the cache of an NFS client.

    The client may remember for up to a minute that a name did not exist, or which file it stood for. Reading the folder makes it
    ask the server.
    """
    try:
        return os.open(path, _READ)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        with os.scandir(path.parent) as entries:
            next(entries, None)
        return os.open(path, _READ)


def list_files(directory: Path) -> dict[str, int]:
    """Size in bytes of every file below a directory, by its relative name.

    Raises:
        TornError: The directory is missing, or there are links or special files.
    """
    return {
        path.relative_to(directory).as_posix(): status.st_size
        for path, status in _walk(directory)
        if not stat.S_ISDIR(status.st_mode)
    }


def flush_tree(directory: Path) -> None:
    """Wait until every file and entry below a directory, and its own entry, are on the volume. Raises as list_files does."""
    found = _walk(directory)
    durable.fsync_files(path for path, status in found if not stat.S_ISDIR(status.st_mode))
    for path, status in reversed(found):
        if stat.S_ISDIR(status.st_mode):
            durable.fsync_directory(path)
    durable.fsync_directory(directory)
    durable.fsync_directory(directory.parent)


def _walk(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """Every file and folder below a directory, a folder before what is in it."""
    found: list[tuple[Path, os.stat_result]] = []
    folders = [directory]
    with durable.unavailable(directory, "list"):
        if not is_directory(directory):
            raise TornError(f"{directory} is not a directory")
        try:
            while folders:
                for path in folders.pop().iterdir():
                    status = path.lstat()
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(path)
                    elif not stat.S_ISREG(status.st_mode):
                        raise TornError(f"{path} is a link or a special file, which a ledger never holds: remove it")
                    if not path.name.startswith(_NFS_LEFTOVER):
                        found.append((path, status))
        except FileNotFoundError as error:
            raise TornError(f"{error.filename} disappeared while {directory} was read") from error
    return found


def is_directory(path: Path) -> bool:
    """Whether a path is a directory, and not a link to one."""
    with durable.unavailable(path, "stat"):
        return path.is_dir() and not path.is_symlink()


def empty_directory(directory: Path) -> None:
    """Remove everything in a directory; of a link only the link itself."""
    for parent, folders, names in os.walk(directory, topdown=False, onerror=_raise):
        for name in names:
            if not name.startswith(_NFS_LEFTOVER):
                durable.unlink(Path(parent, name))
        for name in folders:
            folder = Path(parent, name)
            if folder.is_symlink():
                durable.unlink(folder)
            else:
                durable.remove_directory(folder)


def _raise(error: OSError) -> None:
    with durable.unavailable(Path(error.filename), "list"):
        raise error
