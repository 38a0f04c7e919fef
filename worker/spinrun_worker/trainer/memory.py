"""Main memory that the process no longer uses."""

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """Return to the kernel what was freed: glibc keeps the pages of a model's loading or a checkpoint's writing for itself.

    It takes some milliseconds. Another C library has nothing to return.
    """
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
