"""Files of a run's folder, read and written with suspicion: others may write there, too.

What stands in a file's place may be a pipe, whose reader waits for ever, a device, which never ends, or a link, through which
one would read or write elsewhere.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from spinrun_api.base import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)

MAX_RECORD_BYTES = 1 << 20


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: It cannot be opened, or is something other than a file.
    """
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def open_to_update(path: Path) -> BinaryIO:
    """Open a file for reading and writing, creating it where it is missing. Raises as open_regular does."""
    return os.fdopen(_open(path, os.O_RDWR | os.O_CREAT), "rb+")


def open_to_append(path: Path) -> BinaryIO:
    """Open a file for appending, creating it where it is missing. Raises as open_regular does."""
    return os.fdopen(_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, and links are not followed", str(path)) from error
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a socket, not a regular file", str(path)) from error
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_record(path: Path, model: type[AnyRecord]) -> AnyRecord | None:
    """A small document of one of our processes; None where it is missing, or not what it should be."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_RECORD_BYTES + 1)
        return model.model_validate_json(data) if len(data) <= MAX_RECORD_BYTES else None
    except (OSError, ValidationError):
        return None


def replace_file(path: Path, data: bytes) -> None:
    """Write a file as a whole: a crash leaves the old one or the new one, and a link is replaced, not followed.

    Raises:
        OSError: It cannot be written. What was there stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
