"""Memory of this process: its peak, and returning to the kernel what it no longer uses."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress

import torch


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10  # in kibibytes everywhere but on macOS


def peak_cuda_bytes() -> int | None:
    """Peak GPU memory of this process's tensors, in bytes; None where it uses no GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def trim_memory() -> None:
    """Return freed memory to the kernel, that of Python's unreachable objects too: after a model has been loaded or dropped.

    Takes some tenths of a second: Python looks at every object of the imported libraries.
    """
    gc.collect()
    return_freed_memory()


def return_freed_memory() -> None:
    """Return to the kernel what is free: glibc keeps the pages that train steps or writing a checkpoint have used.

    Takes some hundredths of a second. Does nothing with another C library.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
