"""What is said when the disk of a run's folder can no longer be written to: the words of the ledger."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from spinrun_cli.errors import CommandError

LITTLE_BYTES = 1 << 20
"""Less than this free is full for those who write logs and weights."""

_REMEDIES = {
    errno.ENOSPC: "Free space on the volume or enlarge it; then continue with --resume",
    errno.EDQUOT: "Raise the quota or free space; then continue with --resume",
    errno.EROFS: "Mount the volume so that it can be written to; then continue with --resume",
    errno.EIO: "Check the storage: it reports an input/output error",
    errno.EFBIG: "Raise the limit on the size of files; then continue with --resume",
}


class DiskError(CommandError):
    """The disk of a run's folder is full, read-only or failing."""


def disk_message(error: OSError, root: Path) -> str | None:
    """What to do about an error of the disk; None where it is another error.

    Args:
        error: The error.
        root: Folder of the run, named where the error names no file.
    """
    remedy = _REMEDIES.get(error.errno or 0)
    return None if remedy is None else f"Cannot write {error.filename or root}: {error.strerror}. {remedy}"


@contextmanager
def disk_errors_said(root: Path) -> Generator[None]:
    """Turns an error of the disk into a sentence; others stay.

    Args:
        root: Folder of the run.

    Raises:
        DiskError: The disk is full, read-only or failing.
    """
    try:
        yield
    except OSError as error:
        if (message := disk_message(error, root)) is not None:
            raise DiskError(message) from error
        raise


def full_disk_hint(root: Path) -> str:
    """A sentence where so little is free that processes fail for want of it; else empty.

    Args:
        root: Folder of the run.
    """
    try:
        free = shutil.disk_usage(root).free
    except OSError:
        return ""
    if free >= LITTLE_BYTES:
        return ""
    return f"The disk of {root} is full, {free >> 10} KiB are free. {_REMEDIES[errno.ENOSPC]}"
